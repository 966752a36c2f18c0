"""Whether the model that is served is the model that was trained: prompt, tokens, probabilities, end. Pure judgement.

The trainer's side is the base as it was trained on with the adapter beside it, in 32-bit arithmetic. The server's side
is the finished GGUF in the real llama-server. The prompt and its tokens have to be the same to the letter; how far
probabilities may differ depends on the type of the file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from miyabi_llm import gguf
from miyabi_llm.finetune.server import Server
from miyabi_llm.gguf import Header
from miyabi_llm.quantize import gates, original
from miyabi_llm.types import Event, Finding, OnEvent, silent

TOP, TOKENS, ANSWERS = 20, 12, 4  # likeliest tokens compared, tokens of an answer, probes that are answered
LIKELY = 0.01  # of the likeliest token's chance: a rarer one decides no answer, and is mostly rounding
# Keys of a file's own, which another type of the same model has otherwise.
OWN = ("general.file_type", "general.quantization_version", "split.", "quantize.")
NEEDED = ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
          "tokenizer.ggml.eos_token_id")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a file may be from the trainer. `delta`: log-probability of a likely token, in nats, at the worst place;
    `kl`: divergence over the likeliest tokens, in nats, on average; `top`: least share of places with the same first
    token, where the trainer does not hold two for about equally likely."""

    delta: float
    kl: float
    top: float


@dataclass(frozen=True, slots=True)
class Told:
    """What one side says to one probe. `steps`: for each token of the trainer's answer, the likeliest tokens with
    their log-probabilities; `tokens` is its own greedy answer and `stop` why it ended (eos, limit). `composed`: the
    ids of the prompt in Unicode's NFC, where that is another text."""

    name: str
    text: str
    ids: tuple[int, ...]
    composed: tuple[int, ...] | None = None
    tokens: tuple[int, ...] = ()
    steps: tuple[Mapping[int, float], ...] = ()
    stop: str = ""


@dataclass(frozen=True, slots=True)
class Parity:
    """The table of one file: a line for each probe, what is wrong, and the worst numbers over all probes."""

    type: str
    probes: tuple[Mapping[str, Any], ...]
    findings: tuple[Finding, ...]
    delta: float
    kl: float
    top: float
    places: int
    limits: Limits
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not gates.failed(self.findings)


# Above what was measured, see docs/explanation/finetune-proof.md; a type that is not named gets the widest.
LIMITS: Mapping[str, Limits] = {
    "F32": Limits(0.10, 1e-4, 1.0),
    "F16": Limits(0.10, 1e-4, 1.0),
    "BF16": Limits(0.30, 2e-3, 1.0),
    "Q8_0": Limits(0.50, 5e-3, 1.0),
    "Q6_K": Limits(0.75, 1.5e-2, 0.95),
    "Q5_K_M": Limits(1.00, 3e-2, 0.95),
    "Q4_K_M": Limits(3.00, 0.1, 0.90),
}
WIDEST = Limits(3.0, 0.3, 0.80)
NARROW = Limits(0.5, 1e-2, 0.95)  # of a trainer in 16-bit arithmetic


def limits(kind: str, arithmetic: str = "float32") -> Limits:
    """What a type of file is held to; a trainer that had no room for 32-bit arithmetic is itself not exact."""
    found = LIMITS.get(kind.upper(), WIDEST)
    if arithmetic == "float32":
        return found
    return Limits(max(found.delta, NARROW.delta), max(found.kl, NARROW.kl), min(found.top, NARROW.top))


def probes(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is asked: held-out prompts, which are answered, and fixed ones, of which only the tokens are compared."""
    chats = [r for r in rows if not isinstance(r.get("prompt"), str)]
    short = sorted(chats, key=lambda r: (sum(len(str(m.get("content"))) for m in r["prompt"]), r["id"]))[:ANSWERS]
    held = [{"name": f"held-out {r['id']}", "messages": r["prompt"], "answered": True} for r in short]
    fixed = [
        {k: p[k] for k in ("name", "messages", "tools") if k in p} | {"answered": False}
        for p in gates.PROBES if "messages" in p
    ]  # fmt: skip
    return [*held, *fixed]


def trainer(told: Mapping[str, Any]) -> dict[str, Told]:
    """The trainer's side, out of the answer of the job `logprobs`."""
    return {
        p["name"]: Told(
            p["name"], p["text"], tuple(p["ids"]), None, tuple(s["token"] for s in p["steps"]),
            tuple({int(k): float(v) for k, v in s["top"]} for s in p["steps"]), p["stop"],
        )
        for p in told["probes"] if not p.get("left")
    }  # fmt: skip


def server(
    one: Server, asked: Sequence[Mapping[str, Any]], want: Mapping[str, Told], on_event: OnEvent = silent
) -> dict[str, Told]:
    """The server's side of the same probes, its probabilities along the trainer's answer. Raises ServerFailed."""
    whole = one.whole()
    found = {}
    for i, probe in enumerate(p for p in asked if p["name"] in want):
        theirs = want[probe["name"]]
        text = one.moment.render(probe["messages"], probe.get("tools"), begin=True, words=one.words)
        ids = one.ids(text)
        other = gates.composed(text)
        told = Told(probe["name"], text, ids, one.ids(other) if other is not None else None)
        if probe["answered"] and ids == theirs.ids:
            said = one.answer(ids, len(theirs.tokens), TOP)
            steps = said.top
            if said.tokens != theirs.tokens or len(steps) != len(theirs.tokens):
                steps = tuple(one.chances((*ids, *theirs.tokens[:k]), TOP, whole) for k in range(len(theirs.tokens)))
            told = replace(told, tokens=said.tokens, steps=steps, stop=said.stop)
        found[probe["name"]] = told
        on_event(Event("progress", "parity", done=i + 1, total=len(want), unit="probes"))
    return found


def judge(
    kind: str, want: Mapping[str, Told], got: Mapping[str, Told], static: Sequence[Finding], start: str = "",
    arithmetic: str = "float32",
) -> Parity:  # fmt: skip
    """The table and its findings. `start` is the text of the token that begins every text: the server leaves it out of
    the prompt it shows and puts it in when it tokenizes."""
    allowed = limits(kind, arithmetic)
    findings, lines = [*static], []
    deltas, divergences, same, clear = [0.0], list[float](), 0, 0
    for name, theirs in want.items():
        ours = got[name]
        wrong = [*_words(theirs, ours, start)]
        near = 2 * allowed.delta
        for a, b in zip(theirs.steps, ours.steps, strict=False):
            deltas.append(delta(a, b))
            divergences.append(divergence(a, b))
            if margin(a) > near:
                clear += 1
                same += max(a, key=a.__getitem__) == max(b, key=b.__getitem__)
        wrong += _answer(theirs, ours, near)
        findings += [Finding(f"parity: {name}", "fail", text) for text in wrong]
        if ours.ids != theirs.ids == ours.composed:  # llama.cpp knows no NFC: a limit of the program, not of this file
            findings.append(
                Finding(
                    f"parity: {name}",
                    "warn",
                    "llama.cpp reads letters with separate marks as other tokens: send text in Unicode's NFC",
                )
            )
        lines.append(_line(theirs, ours, start))
    top = same / clear if clear else 1.0
    kl = sum(divergences) / len(divergences) if divergences else 0.0
    worst = max(deltas)
    if worst > allowed.delta:
        words = f"a likely token's log-probability is {worst:.3g} off, allowed is {allowed.delta:g} for {kind}"
        findings.append(Finding("parity: probabilities", "fail", words))
    if kl > allowed.kl:
        words = f"mean divergence over the likeliest tokens is {kl:.2e}, allowed is {allowed.kl:g} for {kind}"
        findings.append(Finding("parity: divergence", "fail", words))
    if top < allowed.top:
        words = f"the likeliest token is the same at {top:.1%} of the clear places, needed is {allowed.top:.0%}"
        findings.append(Finding("parity: first token", "fail", words))
    return Parity(kind, tuple(lines), tuple(findings), worst, kl, top, len(divergences), allowed)


def _words(theirs: Told, ours: Told, start: str) -> Iterator[str]:
    """Whether the prompt and its tokens are the same."""
    if theirs.text not in (ours.text, start + ours.text):
        at = _differ(theirs.text, ours.text)
        yield f"rendered {ours.text[at : at + 40]!r} from letter {at}, the trainer {theirs.text[at : at + 40]!r}"
    if theirs.ids not in (ours.ids, ours.composed):
        at = _differ(theirs.ids, ours.ids)
        yield f"tokens {list(ours.ids[at : at + 5])} from number {at}, the trainer {list(theirs.ids[at : at + 5])}"


def _answer(theirs: Told, ours: Told, near: float) -> Iterator[str]:
    """Whether the answers are the same up to a place where the trainer itself is undecided, and end for one reason."""
    if not theirs.tokens or ours.ids != theirs.ids:
        return
    at = _differ(theirs.tokens, ours.tokens)
    if at < len(theirs.tokens):
        step = theirs.steps[at]
        if margin(step) > near:
            got = ours.tokens[at] if at < len(ours.tokens) else "the end"
            yield f"answers {got} at place {at}, the trainer {theirs.tokens[at]}, by {margin(step):.2f} nats"
        return
    if ours.stop != theirs.stop:
        yield f"the answer ends by {ours.stop or 'nothing'}, the trainer's by {theirs.stop}"


def _line(theirs: Told, ours: Told, start: str) -> dict[str, Any]:
    pairs = list(zip(theirs.steps, ours.steps, strict=False))
    return {
        "probe": theirs.name,
        "prompt": theirs.text in (ours.text, start + ours.text),
        "tokens": len(theirs.ids) if theirs.ids in (ours.ids, ours.composed) else 0,
        "answered": len(theirs.tokens),
        "same": _differ(theirs.tokens, ours.tokens) if theirs.tokens else 0,
        "delta": max((delta(a, b) for a, b in pairs), default=0.0),
        "stop": [theirs.stop, ours.stop],
    }


def delta(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """The worst difference of log-probabilities over the tokens that `a` holds for likely, in nats.

    A token that `b` does not list is at most as likely there as the last one that is listed.
    """
    least = min(b.values(), default=-math.inf)
    from_ = max(a.values(), default=0.0) + math.log(LIKELY)
    return max((abs(v - b.get(k, min(least, v))) for k, v in a.items() if v >= from_), default=math.inf)


def divergence(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """KL divergence over the tokens that `a` lists and one for all others, in nats: never above the whole one."""
    least = min(b.values(), default=-math.inf)
    there = {k: b.get(k, min(least, v)) for k, v in a.items()}
    rest_a, rest_b = (max(1e-12, 1 - sum(math.exp(v) for v in side.values())) for side in (a, there))
    inside = sum(math.exp(v) * (v - there[k]) for k, v in a.items())
    return max(0.0, inside + rest_a * math.log(rest_a / rest_b))


def margin(step: Mapping[int, float]) -> float:
    """How much likelier the first token is than the second, in nats."""
    first = sorted(step.values(), reverse=True)[:2]
    return first[0] - first[1] if len(first) == 2 else math.inf


def _differ(a: Sequence[Any], b: Sequence[Any]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file's header must say: what the merged folder promises, the template that was trained with (its hash),
    and the keys of the F16 file, None where there is none."""

    promise: original.Promise
    template: str | None
    keys: Mapping[str, Any] | None = field(default=None)


def header_of(path: Path) -> Header:
    """A file's header with its whole vocabulary. Raises Corrupt."""
    with path.open("rb") as f:
        return gguf.read(f, path.stat().st_size, whole_arrays=True)


def static(header: Header, expected: Expected) -> tuple[Finding, ...]:
    """What no answer shows: ends, types of added tokens, the template's hash, the keys."""
    return (*gates.metadata(header, expected.promise), *_template(header, expected), *_keys(header, expected))


def _template(header: Header, expected: Expected) -> Iterator[Finding]:
    there = hashlib.sha256(header.chat_template.encode()).hexdigest() if header.chat_template is not None else None
    if there != expected.template:
        what = f"sha256 {there[:12]}" if there else "none"
        want = f"sha256 {expected.template[:12]}" if expected.template else "none"
        yield Finding("template", "fail", f"the file's chat template is {what}, trained was with {want}")
    if extra := sorted(k for k in header.kv if k.startswith("tokenizer.chat_template.")):
        yield Finding("template", "warn", f"there are more templates in the file: {', '.join(extra)}")


def _keys(header: Header, expected: Expected) -> Iterator[Finding]:
    if lost := [k for k in NEEDED if k not in header.kv]:
        yield Finding("keys", "fail", f"the file lacks {', '.join(lost)}")
    if expected.keys is None:
        return
    mine = {k: v for k, v in header.kv.items() if not k.startswith(OWN)}
    want = {k: v for k, v in expected.keys.items() if not k.startswith(OWN)}
    if odd := sorted(k for k in mine.keys() | want.keys() if mine.get(k) != want.get(k)):
        yield Finding("keys", "fail", f"keys differ from those of the converted file: {', '.join(odd[:5])}")
    else:
        yield Finding("keys", "ok", f"{len(mine)} keys")
