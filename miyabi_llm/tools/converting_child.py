"""Look at a folder of safetensors, or scale an adapter's tensors; run as a script by `converting`.

Runs in an environment that has torch, transformers and safetensors, and imports nothing of ours. Its one argument is
an order in JSON; the answer is a file of JSON, whose `wrong` says why nothing may be made of this folder.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHOWN = 5  # tensors named in a complaint


def main() -> int:
    """Do what the order in the file of the first argument says."""
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer = look(order) if order["job"] == "look" else scale(order)
    Path(order["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def look(order: dict[str, Any]) -> dict[str, Any]:
    """Every weight seen once, every probe tokenized."""
    folder = Path(order["folder"])
    parameters, largest, bad = 0, 0.0, []
    for name, tensor in weights(folder):
        parameters += tensor.numel()
        if tensor.is_floating_point() and tensor.numel():
            least, most = (float(v) for v in tensor.aminmax())  # NaN goes through both
            here = max(abs(least), abs(most))
            if math.isfinite(here):
                largest = max(largest, here)
            else:
                bad.append(name)
    names = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
    return {
        "parameters": parameters,
        "largest": largest,
        "bad": bad[:SHOWN],
        "probes": probe(folder, order["probes"]) if order["probes"] else [],
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def weights(folder: Path) -> Iterator[tuple[str, Any]]:
    """Each tensor of the folder, one at a time."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as f:
            for name in list(f.keys()):
                tensor = f.get_tensor(name)
                yield name, tensor.float() if tensor.element_size() == 1 and tensor.is_floating_point() else tensor


def probe(folder: Path, probes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The text and the ids of each probe as the original's own tokenizer has them."""
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    refused = (TemplateError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
    found = []
    for one in probes:
        name, text, left = one["name"], one.get("text"), None
        if text is None and tokenizer.chat_template:
            try:
                text = tokenizer.apply_chat_template(
                    one["messages"], tools=one.get("tools"), tokenize=False, add_generation_prompt=True
                )
            except refused as e:  # a template is a program of the model's, and takes what messages it likes
                left = f"the template refuses it: {type(e).__name__}: {str(e)[:120]}"
        elif text is None:
            text = "\n".join(str(m.get("content") or "") for m in one["messages"])
            one = {"name": name, "text": text, "special": True}
        special = bool(one.get("special"))
        ids = tokenizer(text, add_special_tokens=special)["input_ids"] if text is not None else []
        found.append({**one, "rendered": text, "special": special, "ids": ids, "left": left})
    return found


def scale(order: dict[str, Any]) -> dict[str, Any]:
    """The adapter's tensors in float32, those with a factor multiplied by it."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(order["source"], device="cpu")
    factors = order["factors"]
    if missing := sorted(set(factors) - set(tensors)):
        return {"wrong": f"the adapter has no tensor {missing[0]}"}
    made = {name: (t.float() * factors.get(name, 1.0)).contiguous() for name, t in tensors.items()}
    save_file(made, order["target"], metadata={"format": "pt"})
    return {}


if __name__ == "__main__":
    raise SystemExit(main())
