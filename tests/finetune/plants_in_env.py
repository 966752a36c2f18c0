"""Faults that only the trainer's libraries can make; run as a script in the training environment: JOB ORDER.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "miyabi_llm" / "engines" / "child"))
import main as child

child._package(Path(__file__).parents[2] / "miyabi_llm")
from miyabi_llm.engines.child import common, merge, opening  # noqa: E402


def asked(order: dict[str, Any], base: str) -> Any:
    rows = opening.read_rows(order["rows"])
    return list(merge.questions(common.tokenizer(base), rows, {"positions": 100}))


def four_bits(order: dict[str, Any]) -> dict[str, float]:
    """The adapter merged into the packed layers themselves, as peft does it with a warning."""
    spec = order["model"]
    places = asked(order, spec["base"])
    want = merge.said(opening.open_model(spec, packed=True), places)
    base = opening.open_model({k: v for k, v in spec.items() if k != "adapter"}, packed=True)
    made = opening.put_on(base, spec["adapter"]).merge_and_unload()
    return merge.compare(want, merge.said(made, places))


def apart(order: dict[str, Any]) -> dict[str, Any]:
    """A tied model whose output matrix was trained apart: written, read, and read as if it were tied."""
    import torch
    from safetensors.torch import load_file, save_file

    places = asked(order, order["base"])
    model = opening.open_model({"base": order["base"]})
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone().flip(0))
    want = merge.said(model, places)
    target = Path(order["target"]) / "apart"
    told = merge.write(model, {"base": order["base"]}, common.tokenizer(order["base"]), target)
    again = merge.compare(want, merge.said(opening.open_model({"base": str(target)}), places))
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    weights = load_file(target / "model.safetensors")  # as a writer leaves them that holds the two for one
    save_file(
        {k: v for k, v in weights.items() if k != "lm_head.weight"}, target / "model.safetensors", {"format": "pt"}
    )
    worse = merge.compare(want, merge.said(opening.open_model({"base": str(target)}), places))
    return {"untied": told["untied"], "kld": again["kld"], "tied_kld": worse["kld"]}


if __name__ == "__main__":
    order = json.loads(Path(sys.argv[2]).read_text())
    Path(order["answer"]).write_text(json.dumps({"four_bits": four_bits, "apart": apart}[sys.argv[1]](order)))
