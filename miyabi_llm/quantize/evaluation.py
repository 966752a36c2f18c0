"""The text that a loss is measured on: the shipped one, the person's, or conversations as the model reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from miyabi_llm.errors import BadUsage, Corrupt, ServerFailed
from miyabi_llm.quantize import measure, respell
from miyabi_llm.quantize.source import Source
from miyabi_llm.quantize.values import Order
from miyabi_llm.refs import Digest
from miyabi_llm.store.adopt import hash_file
from miyabi_llm.tools.moment import Kitchen, Moment, moment
from miyabi_llm.types import Event, OnEvent

TEXT = "evaluation.txt"  # the shipped text, under miyabi_llm/data
CTX = 512  # tokens of the server that renders: it computes none
LONG = 8  # letters that a token has at most, by and large: more text than the windows hold is not rendered
LINE = 4 << 20  # bytes of one conversation


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A text to measure on, by its hash. `conversations` 0: plain text.

    `tokens` are those that a server would read in its beginning; `differ` how many of them the measurement read
    otherwise, None when nobody compared.
    """

    path: Path
    sha256: Digest
    conversations: int = 0
    tokens: tuple[int, ...] = field(default=(), repr=False)
    differ: int | None = None

    @property
    def chat(self) -> bool:
        """Whether it is rendered conversations."""
        return self.conversations > 0


def is_chat(order: Order) -> bool:
    """Whether the text holds conversations, by its name."""
    return order.text is not None and order.text.suffix.lower() == ".jsonl"


def prepare(source: Source, order: Order, kitchen: Kitchen, on_event: OnEvent) -> Evaluation:
    """The text in a file of ours: what is hashed is what is read. Raises BadUsage, ServerFailed."""
    target = kitchen.folder / TEXT
    if is_chat(order):
        assert order.text is not None
        return _render(source, order, kitchen, target, on_event)
    try:
        if order.text is None:
            target.write_bytes(resources.files("miyabi_llm").joinpath("data", TEXT).read_bytes())
        else:
            shutil.copyfile(order.text, target)
            target.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise BadUsage(f"{order.text} is not UTF-8 text: {e.reason} at byte {e.start}") from e
    except OSError as e:
        raise BadUsage(f"{order.text}: {e.strerror}", hint="Name a text file after --eval.") from e
    return Evaluation(target, hash_file(target))


def conversations(path: Path) -> list[dict[str, Any]]:
    """The conversations of a .jsonl file, {"messages": [...]} on each line. Raises BadUsage with the line's number."""
    found = []
    try:
        with path.open("rb") as f:
            for number, line in enumerate(iter(lambda: f.readline(LINE), b""), 1):
                if line.strip():
                    found.append(_conversation(line, f"{path}, line {number}"))
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}", hint="Name a .jsonl file after --eval.") from e
    if not found:
        raise BadUsage(f"{path} holds no conversation")
    return found


def _conversation(line: bytes, where: str) -> dict[str, Any]:
    hint = 'Each line is {"messages": [{"role": "user", "content": "..."}, ...]}.'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise BadUsage(f"{where} is no JSON", hint=hint) from None
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages or not all(_is_message(m) for m in messages):
        raise BadUsage(f"{where} has no messages with a role and a content", hint=hint)
    return {"messages": messages, "tools": row.get("tools") if isinstance(row.get("tools"), list) else None}


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str) and ("content" in value)


def _render(source: Source, order: Order, kitchen: Kitchen, target: Path, on_event: OnEvent) -> Evaluation:
    assert order.text is not None
    if source.header.chat_template is None:
        raise BadUsage(
            f"{source.ref} has no chat template: it is a base model",
            hint="Give plain text (.txt) after --eval, of the kind it shall continue.",
        )
    rows = conversations(order.text)
    on_event(Event("phase", "evaluation", f"rendering {len(rows)} conversations with the model's own template"))
    enough = order.window.ctx * order.window.chunks * LONG
    with moment(source.first, kitchen, CTX) as server:
        parts, size = list[str](), 0
        for i, row in enumerate(rows, 1):
            parts.append(_one(server, row, f"{order.text}, conversation {i}"))
            size += len(parts[-1])
            if size >= enough:
                break
        text = "".join(part if part.endswith("\n") else f"{part}\n" for part in parts)
        tokens = server.tokens(text)
    target.write_text(text, encoding="utf-8", newline="")
    return Evaluation(target, hash_file(target), len(parts), tokens)


def _one(server: Moment, row: Mapping[str, Any], where: str) -> str:
    try:
        return server.render(row["messages"], row["tools"])
    except ServerFailed as e:
        if e.details.get("status") in (400, 500):
            raise BadUsage(f"{where}: the model's template refuses it: {e.message}") from e
        raise


def for_recording(source: Source, text: Evaluation, folder: Path, on_event: OnEvent) -> tuple[Path, Path]:
    """The model and the text that llama-perplexity gets: of conversations a copy that reads control tokens as such."""
    if not text.chat:
        return source.first, text.path
    on_event(Event("phase", "evaluation", "copying the source, so that control tokens are read as a server reads them"))
    model, spelling = respell.copy(source.first, source.files, source.header, folder / "speller")
    other = text.path.with_name(f"spelled-{TEXT}")
    other.write_text(respell.spell(text.path.read_text(encoding="utf-8"), spelling), encoding="utf-8", newline="")
    return model, other


def compared(text: Evaluation, logits: Path) -> Evaluation:
    """With the number of tokens that were recorded otherwise than a server reads them. Raises Corrupt."""
    if not text.chat:
        return text
    recorded = measure.tokens(logits)
    if not recorded or len(text.tokens) < len(recorded):
        raise Corrupt("the recorded text is longer than the rendered one")
    return replace(text, differ=sum(a != b for a, b in zip(recorded, text.tokens, strict=False)))
