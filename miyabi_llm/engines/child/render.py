"""The job `render`: rows become text and token ids by the model's own template, the way the trainer does it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

EVERY = 200  # rows between two words about progress


def run(order: dict[str, Any], say: Any) -> dict[str, Any]:
    """Render the rows in the file `order["rows"]` and write what is known of each to `order["target"]`, a line each.

    `model` is the folder of the tokenizer. The first `keep` rows are given back whole: pieces, ids, and where training
    begins. Of a pair the chosen answer comes first, then the rejected one, as lines of their own.
    """
    from miyabi_llm.dataset.facts import Facts, facts
    from miyabi_llm.engines.child import common

    # A tokenizer needs no torch, whose import takes most of the seconds of this job: transformers sees none.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    tokenizer = common.tokenizer(order["model"])
    if not tokenizer.chat_template:
        raise common.Failed(
            "usage",
            f"{order['model']} has no chat template, so nothing says how a conversation becomes tokens",
            "Start from a model that was tuned for instructions (its name often ends with -Instruct).",
        )
    render = Renderer(tokenizer, Path(order["model"]))
    kept: list[dict[str, Any]] = []
    done = 0
    with open(order["rows"], encoding="utf-8") as rows, open(order["target"], "w", encoding="utf-8") as target:
        for line in rows:
            row = json.loads(line)
            for prompt, answer in conversations(row):
                try:
                    rendered = render(prompt, answer)
                except Exception as e:  # a template may raise anything: it is the row's fault, and is told as such
                    known = Facts(row["id"], row["row"], error=f"{type(e).__name__}: {e}"[:300])
                else:
                    known = facts(row["id"], row["row"], [*prompt, *answer], rendered, render.special)
                    if len(kept) < order.get("keep", 0):
                        kept.append(whole(row, rendered, tokenizer))
                target.write(json.dumps(known.json()) + "\n")
            done += 1
            if done % EVERY == 0:
                say("progress", "render", done=done, unit="rows")
    return {"rows": done, "kept": kept, "special": render.told(), "template": _sha(tokenizer.chat_template)}


def conversations(row: Mapping[str, Any]) -> Iterator[tuple[list[dict[str, str]], list[dict[str, str]]]]:
    """Each prompt of a row with one of its answers."""
    for key in ("completion", "chosen", "rejected"):
        if key in row:
            yield row["prompt"], row[key]


class Renderer:
    """A tokenizer with its template: `(prompt, answer)` to `Rendered`, as trl's conversational rows are."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        from miyabi_llm.dataset.facts import Special

        self._tokenizer = tokenizer
        self._blanks: dict[int, bool] = {}
        self.special = Special(tokenizer.bos_token_id, ends(tokenizer, folder), tokenizer.pad_token_id)

    def __call__(self, prompt: list[dict[str, str]], answer: list[dict[str, str]]) -> Any:
        from miyabi_llm.dataset.facts import Rendered

        turns = [*prompt, *answer]
        text = self._tokenizer.apply_chat_template(turns, tokenize=False)
        ids = self._ids(turns, opened=False)
        return Rendered(text, ids, self._ids(prompt, opened=True), self._blank(ids))

    def _ids(self, turns: list[dict[str, str]], *, opened: bool) -> list[int]:
        told = self._tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=opened, return_dict=True)
        return list(told["input_ids"])

    def _blank(self, ids: list[int]) -> frozenset[int]:
        """Those of the last ids that are white space: a template's newline after the end of a turn."""
        for i in ids[-4:]:
            if i not in self._blanks:
                self._blanks[i] = not self._tokenizer.decode([i]).strip()
        return frozenset(i for i in ids[-4:] if self._blanks[i])

    def told(self) -> dict[str, Any]:
        """The special tokens, by id and by name."""
        name = self._tokenizer.convert_ids_to_tokens
        s = self.special
        return {
            "bos": s.bos, "eos": list(s.eos), "pad": s.pad,
            "names": {"bos": name(s.bos) if s.bos is not None else None, "eos": [name(i) for i in s.eos]},
        }  # fmt: skip


def ends(tokenizer: Any, folder: Path) -> tuple[int, ...]:
    """All tokens that end an answer: the tokenizer's own, and those of generation_config.json."""
    found = [tokenizer.eos_token_id]
    path = folder / "generation_config.json"
    if path.is_file():
        more = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        found += more if isinstance(more, list) else [more]
    return tuple(dict.fromkeys(i for i in found if isinstance(i, int)))


def whole(row: Mapping[str, Any], rendered: Any, tokenizer: Any) -> dict[str, Any]:
    """A row for people: its tokens as text, their ids, and where training begins."""
    pieces = [tokenizer.decode([i]) for i in rendered.ids]
    return {"id": row["id"], "row": row["row"], "ids": list(rendered.ids), "pieces": pieces, "start": rendered.start}


def _sha(template: Any) -> str:
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
