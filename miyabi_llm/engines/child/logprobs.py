"""What the trainer's side says to probes: prompt, ids, the greedy answer with its likeliest tokens, why it ends.

The order: `model` (as in `opening`), `probes` (`{name, messages, answered, tools}`), `tokens` (of an answer at most),
`top` (likeliest tokens kept at each step), `template` (further words for the template), `tokenizer` (a folder, None:
the model's).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from miyabi_llm.engines.child import common
from miyabi_llm.engines.child.opening import (
    arithmetic,
    continued,
    ends_of,
    ids_of,
    open_model,
    sha256,
    template_of,
    tokenizer_of,
)  # fmt: skip


def run(order: Mapping[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    """See the module. A probe that the template refuses has `left`, the reason, and nothing else."""
    spec = order["model"]
    tokenizer = common.tokenizer(order["tokenizer"]) if order.get("tokenizer") else tokenizer_of(spec)
    model = open_model(spec)
    ends, template = ends_of(model, tokenizer), template_of(tokenizer)
    found = []
    for i, probe in enumerate(order["probes"]):
        found.append(_asked(model, tokenizer, probe, order, ends))
        say("progress", "probes", done=i + 1, total=len(order["probes"]), unit="probes")
    sha = sha256(template) if template else None
    return {"probes": found, "ends": ends, "template": sha, "arithmetic": arithmetic(model)}


def _asked(
    model: Any, tokenizer: Any, probe: Mapping[str, Any], order: Mapping[str, Any], ends: list[int]
) -> dict[str, Any]:
    more = dict(order.get("template") or {}) | ({"tools": probe["tools"]} if probe.get("tools") else {})
    try:
        text = tokenizer.apply_chat_template(probe["messages"], tokenize=False, add_generation_prompt=True, **more)
        ids = ids_of(tokenizer, probe["messages"], True, more)
    except Exception as e:  # a template is a program of the model's, and takes what messages it likes
        return {"name": probe["name"], "left": f"the template refuses it: {type(e).__name__}: {str(e)[:120]}"}
    steps = []
    if probe.get("answered"):
        for token, chances in continued(model, ids, ends, int(order["tokens"])):
            top = chances.topk(int(order["top"]))
            pairs = [[int(k), float(v)] for k, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
            steps.append({"token": token, "top": pairs})
    stop = "eos" if steps and steps[-1]["token"] in ends else "limit" if steps else ""
    return {"name": probe["name"], "text": text, "ids": ids, "steps": steps, "stop": stop}
