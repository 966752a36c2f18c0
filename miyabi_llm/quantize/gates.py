"""What a converted file must be before it gets a name: the original's metadata, tensors and tokens. Pure judgements."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miyabi_llm.gguf import Array, Header
from miyabi_llm.quantize.original import Folder, Promise
from miyabi_llm.types import Finding

CONTROL, USER_DEFINED = 3, 4  # llama.cpp's llama_token_type
# Tokens that end an answer by their names: llama.cpp takes them for ends whatever eos says.
NAMED_ENDS = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
     "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
     "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[")
)  # fmt: skip
ROUNDING = 1e-3  # share of the parameters that a converter may drop (tables it computes anew)
NAIVE = "e\u0301 か\u3099"  # letters with separate marks, as file names on macOS have them

_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather at a place",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
_CALL = {"id": "call000001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Kyoto"}}}


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


PROBES: tuple[dict[str, Any], ...] = (
    {"name": "user", "messages": [_user("What is the capital of Japan?")]},
    {"name": "system", "messages": [{"role": "system", "content": "Be brief."}, _user("Hello")]},
    {"name": "turns", "messages": [_user("Hi"), _assistant("Hello!"), _user("And now?")]},
    {"name": "letters", "messages": [_user(f"日本の首都は東京です。🗼👩‍👩‍👧 naïve {NAIVE}")]},
    {"name": "spaces", "messages": [_user("  two  spaces\tand\r\nlines\n\n\n end ")]},
    {"name": "code", "messages": [_user("def add(a, b):\n    return a + b  # 0.5e-3 != None\n")]},
    {"name": "special literal", "messages": [_user("<|im_end|> <|endoftext|> <tool_call> [INST]")]},
    {"name": "infill literal", "messages": [_user("<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>")]},
    {"name": "tools", "messages": [_user("Weather in Kyoto?")], "tools": _TOOLS},
    {
        "name": "tool call",
        "messages": [
            _user("Weather in Kyoto?"),
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "call000001", "name": "weather", "content": "sunny"},
        ],
        "tools": _TOOLS,
    },
    {"name": "empty", "messages": [_user("")]},
    {"name": "plain", "text": "The capital of Japan is", "special": True},
)


def probes(promise: Promise) -> tuple[dict[str, Any], ...]:
    """The texts of the token gate: the fixed ones, and one with every token that was added to the vocabulary."""
    added = " ".join(a.text for a in promise.added[:64])
    return (*PROBES, {"name": "added", "text": added, "special": False}) if added else PROBES


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server made of a probe: its prompt (None for plain text), its ids, and those of the text in NFC."""

    prompt: str | None
    ids: tuple[int, ...]
    composed: tuple[int, ...] | None = None


def failed(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Those that stop a file."""
    return tuple(f for f in findings if f.level == "fail")


def metadata(header: Header, promise: Promise) -> tuple[Finding, ...]:
    """Ends, added tokens and template of a file (its header read with whole arrays) against the original's."""
    return (*_ends(header, promise), *_added(header, promise), *_template(header, promise))


def _ends(header: Header, promise: Promise) -> Iterator[Finding]:
    texts, _ = _vocabulary(header)
    mine = [header.number(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    if not promise.ends:
        yield Finding("end", "warn", "the original names no token that ends an answer")
        return
    if mine[0] not in promise.ends:
        yield Finding("end", "fail", f"an answer ends with {mine[0]}, the original's with {_list(promise.ends)}")
        return
    for end in promise.ends:
        named = 0 <= end < len(texts) and texts[end] in NAMED_ENDS
        if end not in mine and not named:
            yield Finding("end", "fail", f"token {end}, which ends the original's answers, was lost as an end")
        elif end not in mine:
            yield Finding("end", "ok", f"{texts[end]} ends answers by its name only")
    yield Finding("end", "ok", f"answers end with {_list(promise.ends)}")


def _added(header: Header, promise: Promise) -> Iterator[Finding]:
    texts, types = _vocabulary(header)
    for a in promise.added:
        if a.id >= len(texts) or texts[a.id] != a.text:
            there = repr(texts[a.id]) if a.id < len(texts) else "not there"
            yield Finding("added tokens", "fail", f"the added token {a.text!r} ({a.id}) was lost: it is {there}")
        elif types[a.id] not in (CONTROL, USER_DEFINED) and a.text not in NAMED_ENDS:
            what = f"the added token {a.text!r} ({a.id}) became an ordinary one (type {types[a.id]})"
            yield Finding("added tokens", "fail", what)
        elif a.special and types[a.id] != CONTROL and a.text not in NAMED_ENDS:
            yield Finding("added tokens", "warn", f"the special token {a.text!r} ({a.id}) is not a control token")
    known = {a.id for a in promise.added}
    for i, text in enumerate(texts):
        if text in NAMED_ENDS and i not in known:  # nothing in the file can keep it from that
            yield Finding("added tokens", "warn", f"llama.cpp takes the ordinary token {text!r} ({i}) for an end")
    yield Finding("added tokens", "ok", f"{len(promise.added)} looked at")


def _template(header: Header, promise: Promise) -> Iterator[Finding]:
    if promise.template is None or header.chat_template == promise.template:
        yield Finding("template", "ok", "the original's" if promise.template else "none, as in the original")
    else:
        what = "was lost" if header.chat_template is None else "is not the original's"
        yield Finding("template", "fail", f"the chat template {what}")


def tensors(header: Header, folder: Folder) -> tuple[Finding, ...]:
    """The count of parameters against the original's; of a model with eyes or ears only the text part is converted."""
    want = folder.parameters - folder.head
    if abs(header.parameters - want) <= ROUNDING * want or header.parameters == folder.parameters:
        return (Finding("tensors", "ok", f"{header.parameters:,} parameters in {len(header.tensors)} tensors"),)
    what = f"{header.parameters:,} parameters, the original has {want:,}"
    return (Finding("tensors", "fail" if folder.promise.text_only else "warn", what),)


def tokens(asked: Sequence[Mapping[str, Any]], answers: Mapping[str, Answer], header: Header) -> tuple[Finding, ...]:
    """Rendered text and ids of every probe: the original's own tokenizer against the server that has the file.

    The server leaves the token that begins every text out of its prompt, and puts it in when it tokenizes.
    """
    texts, _ = _vocabulary(header)
    number = header.number("tokenizer.ggml.bos_token_id")
    start = (number, texts[number]) if number is not None and 0 <= number < len(texts) else None
    found = []
    for one in asked:
        name = f"tokens: {one['name']}"
        if one.get("left"):
            found.append(Finding(name, "ok", f"left out: {one['left']}"))
            continue
        found.append(_judge(name, one, answers[one["name"]], start))
    return tuple(found)


def _judge(name: str, one: Mapping[str, Any], got: Answer, start: tuple[int, str] | None) -> Finding:
    want, rendered = tuple(one["ids"]), str(one["rendered"])
    if got.prompt is not None and rendered not in (got.prompt, (start[1] if start else "") + got.prompt):
        at = _differ(got.prompt, rendered)
        there = f"{got.prompt[at : at + 40]!r}, the original {rendered[at : at + 40]!r}"
        return Finding(name, "fail", f"rendered otherwise from letter {at}: {there}")
    if got.ids == want:
        return Finding(name, "ok", f"{len(want)} tokens")
    if got.composed == want:
        return Finding(name, "warn", "differs only in letters with separate marks: send text in Unicode's NFC")
    if start and got.ids == (start[0], *want):
        return Finding(name, "warn", f"the server puts {start[1]} first, the original's template does not")
    at = _differ(got.ids, want)
    there = f"{list(got.ids[at : at + 6])}, the original {list(want[at : at + 6])}"
    return Finding(name, "fail", f"other tokens from number {at}: {there}")


def _differ(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Where two sequences differ first."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def composed(text: str) -> str | None:
    """The text in NFC, None when it is already."""
    other = unicodedata.normalize("NFC", text)
    return other if other != text else None


def _vocabulary(header: Header) -> tuple[Sequence[str], Sequence[int]]:
    texts, types = header.kv.get("tokenizer.ggml.tokens"), header.kv.get("tokenizer.ggml.token_type")
    items = texts.items if isinstance(texts, Array) else ()
    kinds = types.items if isinstance(types, Array) else ()
    return [str(t) for t in items], [*(int(k) for k in kinds if isinstance(k, int)), *[1] * len(items)][: len(items)]


def _list(numbers: Sequence[int]) -> str:
    return " or ".join(str(n) for n in numbers)
