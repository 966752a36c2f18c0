"""How private a request is: the maximum of everything known about it. Only positive evidence makes it PUBLIC."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from miyabi_llm.route.values import Facts, Policy, Verdict


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict with its reasons, the strongest first; each names the verdict it asks for."""

    verdict: Verdict
    reasons: tuple[tuple[Verdict, str], ...]


def judge(policy: Policy, facts: Facts) -> Judged:
    """The verdict of a request. Pure; the maximum wins, so nothing a client says can make it less private."""
    reasons = sorted(_reasons(policy, facts), key=lambda r: -r[0])
    return Judged(max((v for v, _ in reasons), default=Verdict.CONFIDENTIAL), tuple(reasons))


def _reasons(policy: Policy, facts: Facts) -> Iterator[tuple[Verdict, str]]:
    if policy.error:
        yield Verdict.CONFIDENTIAL, f"no policy to trust: {policy.error}"
    yield policy.privacy.default_verdict, f"the policy's default is {policy.privacy.default_verdict.name.lower()}"
    if facts.findings:
        kinds = ", ".join(sorted({f.kind for f in facts.findings}))
        yield Verdict.CONFIDENTIAL, f"found: {kinds}"
    if not facts.complete:
        yield Verdict.CONFIDENTIAL, f"not looked through: {', '.join(facts.unseen[:4]) or 'the whole'}"
    if facts.asked:
        yield facts.asked, f"the client asked for {facts.asked.name.lower()}"
    if facts.taint:
        yield facts.taint, f"the session is {facts.taint.name.lower()} since an earlier turn"
    for project in policy.privacy.projects:
        if project.verdict and glob(project.match, facts.project):
            yield project.verdict, f"project {project.match}"
    for denied in policy.privacy.deny_globs:
        if any(glob(denied, name) or glob(denied, name.rsplit("/", 1)[-1]) for name in facts.files):
            yield Verdict.CONFIDENTIAL, f"a path matches {denied}"


def glob(words: str, text: str) -> bool:
    """Whether `text` is what `words` mean, case aside: `*` any, `?` one, a leading `**/` any folder or none."""
    return _compiled(words).fullmatch(text) is not None


@lru_cache(maxsize=1024)
def _compiled(words: str) -> re.Pattern[str]:
    return re.compile(_meaning(words), re.IGNORECASE | re.DOTALL)


@lru_cache(maxsize=64)
def pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    """One pattern that means any of the globs."""
    return re.compile("|".join(f"(?:{_meaning(g)})" for g in globs), re.IGNORECASE | re.DOTALL)


def _meaning(words: str) -> str:
    anywhere = words.startswith("**/")
    stars = re.sub(r"\*+", "*", words.removeprefix("**/"))
    body = "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in stars)
    return f"(?:.*/)?{body}" if anywhere else body
