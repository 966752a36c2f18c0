"""How well models know held-out rows: the loss of every row, and the answers they write; one call for several models.

The order: `stages` (each a model as in `opening`, with a `name`), `rows` and `forget` (paths of .jsonl, either may be
None), `answers` (rows that are answered greedily, 0: none), `most` (tokens of an answer), `template` (further words
for the template), `tokenizer` (the folder whose tokenizer and template all stages share).
The answer: stage -> `rows` and `forget` (each a list of `[id, nats, tokens]`, of a preference followed by nats and
tokens of the rejected answer), `answers` (`{id, text, want, stop}`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from miyabi_llm.engines.child import common
from miyabi_llm.engines.child.opening import (
    continued,
    ends_of,
    ids_of,
    open_model,
    read_rows,
    split,
    text_of,
    tokenizer_of,
)  # fmt: skip


def run(order: Mapping[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    """See the module."""
    rows, forget = read_rows(order.get("rows")), read_rows(order.get("forget"))
    found: dict[str, Any] = {}
    for stage in order["stages"]:
        say("phase", "score", stage["name"])
        tokenizer = common.tokenizer(order["tokenizer"]) if order.get("tokenizer") else tokenizer_of(stage)
        model = open_model(stage)
        found[stage["name"]] = {
            "rows": losses(model, tokenizer, rows, order, say, stage["name"]),
            "forget": losses(model, tokenizer, forget, order, say, f"{stage['name']}, forgetting"),
            "answers": answers(model, tokenizer, rows[: int(order.get("answers") or 0)], order, say),
        }
        del model
    return {"stages": found}


def losses(
    model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], order: Mapping[str, Any],
    say: Callable[..., None], name: str,
) -> list[list[Any]]:  # fmt: skip
    """`[id, nats of the answer's tokens together, their number]` of each row; one row at a time, so no padding."""
    found: list[list[Any]] = []
    for i, row in enumerate(rows):
        told: list[Any] = [row["id"]]
        for wanted in ("chosen", "rejected") if "chosen" in row else ("completion",):
            one = {k: v for k, v in row.items() if k not in ("chosen", "rejected")} | {"completion": row[wanted]}
            told += nats(model, *split(tokenizer, one, order.get("template") or {}))
        found.append(told)
        say("progress", name, done=i + 1, total=len(rows), unit="rows")
    return found


def nats(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> list[Any]:
    """How surprised the model is by the answer, in nats over all its tokens, and their number."""
    import torch

    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
        wanted = torch.tensor(list(answer), device=logits.device)
        each = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    return [float(each.double().sum()), len(answer)]


def answers(
    model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], order: Mapping[str, Any], say: Callable[..., None]
) -> list[dict[str, Any]]:
    """What the model writes after each prompt, greedily, beside what the row wants."""
    ends, most = ends_of(model, tokenizer), int(order.get("most") or 64)
    found: list[dict[str, Any]] = []
    for i, row in enumerate(rows):
        said = row["prompt"]
        ids = tokenizer(said)["input_ids"] if isinstance(said, str) else ids_of(
            tokenizer, said, True, order.get("template") or {}
        )  # fmt: skip
        written = [token for token, _ in continued(model, ids, ends, most)]
        stopped = bool(written) and written[-1] in ends
        text = tokenizer.decode(written[:-1] if stopped else written)
        found.append({"id": row["id"], "text": text, "want": text_of(row), "stop": "eos" if stopped else "limit"})
        say("progress", "answers", done=i + 1, total=len(rows), unit="rows")
    return found
