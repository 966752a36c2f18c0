"""The job `probe`: what a tokenizer and a chat template do, in a second: no torch and no transformers is imported."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

WORDS = {
    "system": "Sys-probe-1.",
    "user": "User-probe-2?",
    "assistant": "Answer-probe-3!",
    "thought": "Thought-probe-4",
}


def run(order: dict[str, Any], say: Any) -> dict[str, Any]:
    """Look at the folder `order["model"]`; `text` is what llama.cpp's converter knows tokenizers by.

    The answer: `pre` is the hash of that text's tokens (None for another kind of tokenizer than BPE), `wrong` and
    `odd` say what training on this template would break or may break.
    """
    folder = Path(order["model"])
    config = _json(folder / "tokenizer_config.json")
    template = _template(folder, config)
    told: dict[str, Any] = {"pre": None, "wrong": [], "odd": [], "template": None}
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        return told | {"odd": ["it has no tokenizer.json: its tokens are looked at in the run only"]}
    tokenizer = Tokenizer.from_file(str(path))
    if json.loads(tokenizer.to_str())["model"]["type"] == "BPE" and order.get("text"):
        ids = tokenizer.encode(order["text"]).ids
        told["pre"] = hashlib.sha256(str(ids).encode()).hexdigest()
    if template is None:
        return told | {"wrong": ["it has no chat template: nothing says how a conversation becomes tokens"]}
    told["template"] = hashlib.sha256(template.encode()).hexdigest()
    ends = _ends(folder, config, tokenizer)
    wrong, odd = judge(_render(template, config), tokenizer, ends, config)
    return told | {"wrong": wrong, "odd": odd}


def judge(render: Any, tokenizer: Any, ends: set[int], config: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What is wrong, and what is odd, with a template."""
    user, answer = ({"role": r, "content": WORDS[r]} for r in ("user", "assistant"))
    wrong: list[str] = []
    odd: list[str] = []
    try:
        full, opened = render([user, answer], False), render([user], True)
    except Exception as e:  # a template may raise anything
        return [f"the template fails on a question with its answer: {type(e).__name__}: {str(e)[:200]}"], odd
    for role in ("user", "assistant"):
        if WORDS[role] not in full:
            wrong.append(f"the text of the role {role} is not in the rendered conversation")
    if not full.startswith(opened.rstrip()):
        odd.append("the rendered prompt is not the beginning of the rendered conversation")
    after = full[full.rfind(WORDS["assistant"]) + len(WORDS["assistant"]) :]
    if not ends & set(tokenizer.encode(after, add_special_tokens=False).ids):
        wrong.append(f"no token ends the answer: after it comes {after[:40]!r}")
    bos = config.get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos
    if bos and full.startswith(bos) and config.get("add_bos_token"):
        odd.append(f"template and tokenizer both begin with {bos}")
    try:
        if WORDS["system"] not in render([{"role": "system", "content": WORDS["system"]}, user, answer], False):
            odd.append("it drops system prompts")
    except Exception:
        odd.append("it refuses system prompts")
    thought = {"role": "assistant", "content": f"<think>{WORDS['thought']}</think>{WORDS['assistant']}"}
    try:
        if WORDS["thought"] not in render([user, thought], False):
            odd.append("it drops reasoning in <think> (data.thinking: keep would be refused)")
    except Exception:
        odd.append("it refuses reasoning in <think>")
    return wrong, odd


def _render(template: str, config: dict[str, Any]) -> Any:
    """The template as transformers compiles it: sandboxed, blocks trimmed, with its few helpers."""
    import datetime

    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda x, **more: json.dumps(x, ensure_ascii=False, **more)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    compiled = environment.from_string(template)
    named = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(key)
        named[key] = value.get("content") if isinstance(value, dict) else value
    words = {k: v for k, v in named.items() if v is not None}
    return lambda turns, opened: compiled.render(messages=turns, add_generation_prompt=opened, **words)


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    told = config.get("chat_template")
    if isinstance(told, list):  # several by name
        told = next((t.get("template") for t in told if t.get("name") == "default"), None)
    return told if isinstance(told, str) else None


def _ends(folder: Path, config: dict[str, Any], tokenizer: Any) -> set[int]:
    told = _json(folder / "generation_config.json").get("eos_token_id")
    found = set(told) if isinstance(told, list) else {told}
    eos = config.get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    found.add(tokenizer.token_to_id(eos) if eos else None)
    return {e for e in found if isinstance(e, int)}


def _json(path: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return told
    except (OSError, ValueError):
        return {}
