"""How likely given tokens are right after given prompts, as the trainer's own library has them.

The order: `model` (`base`, a folder, and `adapter`, peft's folder or None; both are read in 32 bits), `asked` (pairs of
the ids of a prompt and the token ids whose log-probabilities are wanted). The answer: `chances`, a list of
log-probabilities for each pair, in its order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from miyabi_llm.engines.child import common


def run(order: Mapping[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    """See the module."""
    import torch

    spec, found = order["model"], []
    model = common.model(spec["base"], "fp32")
    model = (common.adapted(model, spec["adapter"]) if spec.get("adapter") else model).eval()
    with torch.inference_mode():
        for i, (ids, tokens) in enumerate(order["asked"]):
            out = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False, logits_to_keep=1)
            chances = torch.log_softmax(out.logits[0, -1].float(), dim=-1).cpu()
            found.append([float(v) for v in chances[torch.tensor(tokens, dtype=torch.long)]])
            say("progress", "trainer", done=i + 1, total=len(order["asked"]), unit="prompts")
    return {"chances": found}
