"""Open a model as it was trained, and turn rows into token ids: what score, merge and logprobs share.

A model is named by a mapping: `base` (folder), `adapter` (peft's folder or None), `nf4` (whether the base's layers
are packed to 4 bits), `precision` (fp32 or bf16, in which the weights were loaded for training).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from miyabi_llm.engines.child import common

BORDER = 2  # tokens of a prompt that the beginning of an answer may change
ROOM = 0.85  # of the free memory: the rest is for what is computed on the way
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def open_model(spec: Mapping[str, Any], *, packed: bool = False) -> Any:
    """The model, ready to be asked, in 32-bit arithmetic on the very weights that were trained on.

    Packed weights are unpacked once, to the numbers that the packed kernels unpack them to at every token; with
    `packed` the kernels themselves are used.

    They are loaded in the precision of the training first, because packing to 4 bits depends on it; only then are the
    numbers that are not packed widened. So two models differ by their weights, not by rounding on the way.
    """
    model = common.model(spec["base"], str(spec.get("precision") or "fp32"), nf4=bool(spec.get("nf4")))
    wide = roomy(model)
    if spec.get("nf4") and not packed and wide:
        model = unpacked(model)
    if wide:
        widen(model)
    if spec.get("adapter"):
        model = put_on(model, spec["adapter"], wide=wide)
    return model.eval()


def roomy(model: Any) -> bool:
    """Whether every weight has room in 32 bits where the model lies; else it is asked in the precision it came in."""
    import torch

    numbers = here = 0
    for tensor in model.parameters():
        state = getattr(tensor, "quant_state", None)
        numbers += math.prod(state.shape) if state is not None else tensor.numel()
        here += tensor.numel() * tensor.element_size()
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        import psutil

        free = psutil.virtual_memory().available
    return bool(4 * numbers - here < ROOM * free)


def arithmetic(model: Any) -> str:
    """The narrowest type among the model's weights that are not packed: no answer is more exact than it."""
    sizes = {str(p.dtype).removeprefix("torch."): p.element_size() for p in model.parameters() if p.is_floating_point()}
    return min(sizes, key=lambda k: sizes[k]) if sizes else "float32"


def unpacked(model: Any) -> Any:
    """The model with plain layers in the place of packed ones. Raises common.Failed where one stayed packed."""
    model = model.dequantize()
    if any(type(m).__name__.endswith("Linear4bit") for m in model.modules()):
        raise common.Failed("corrupt", "layers stayed packed: nothing is merged into 4 bits")
    return model


def put_on(model: Any, adapter: str, *, wide: bool = True) -> Any:
    """`model` with the adapter of that folder on it, not merged; with `wide` in 32 bits."""
    made = common.adapted(model, adapter)
    if wide:
        widen(made)
    return made.eval()


def widen(model: Any) -> None:
    """Every number that is not packed to 32 bits, in place; `float()` refuses a model with packed ones."""
    import torch

    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and type(tensor).__name__ != "Params4bit":
                tensor.data = tensor.data.float()
    for module in model.modules():
        if type(module).__name__.endswith("Linear4bit") and hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32


def tokenizer_of(spec: Mapping[str, Any]) -> Any:
    """The tokenizer of a model: the adapter's where the training changed it, else the base's."""
    adapter = spec.get("adapter")
    if adapter and all((Path(adapter) / name).is_file() for name in TOKENIZER_FILES):
        return common.tokenizer(adapter)
    return common.tokenizer(spec["base"])


def ids_of(tokenizer: Any, messages: Sequence[Mapping[str, Any]], begin: bool, more: Mapping[str, Any]) -> list[int]:
    """Token ids of the messages as the template writes them; with `begin` an answer is begun."""
    found = tokenizer.apply_chat_template(
        list(messages), tokenize=True, add_generation_prompt=begin, return_dict=False, **more
    )
    return [int(i) for i in found]


def split(tokenizer: Any, row: Mapping[str, Any], more: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Ids of the prompt, and of what the model shall write after it.

    The prompt must be a beginning of the whole, as it is at serving; at the border letters of both may be one token.
    Raises common.Failed, naming the row.
    """
    answer = row.get("completion") or row["chosen"]
    if isinstance(answer, str):
        prompt = tokenizer(row["prompt"], add_special_tokens=True)["input_ids"]
        return prompt, tokenizer(answer, add_special_tokens=False)["input_ids"]
    prompt = ids_of(tokenizer, row["prompt"], True, more)
    whole = ids_of(tokenizer, [*row["prompt"], *answer], False, more)
    at = alike(prompt, whole)
    if at < len(prompt) - BORDER:
        raise common.Failed(
            "corrupt",
            f"row {row.get('row', row.get('id', '?'))}: the template writes the prompt otherwise before an answer",
        )
    return whole[:at], whole[at:]


def alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def text_of(row: Mapping[str, Any]) -> str:
    """The answer that a row holds, as text."""
    answer = row.get("completion") or row.get("chosen") or ""
    return answer if isinstance(answer, str) else "".join(str(m.get("content") or "") for m in answer)


def read_rows(path: str | None) -> list[dict[str, Any]]:
    """The rows of a .jsonl, none without a path."""
    if not path:
        return []
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def ends_of(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: those of the generation's configuration, else the tokenizer's."""
    said = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = said if isinstance(said, list) else [said]
    kept = [int(i) for i in found if i is not None]
    return kept or ([int(tokenizer.eos_token_id)] if tokenizer.eos_token_id is not None else [])


def template_of(tokenizer: Any) -> str | None:
    """The chat template's text."""
    said = tokenizer.chat_template
    return said if isinstance(said, str) else (said or {}).get("default") if isinstance(said, dict) else None


def sha256(text: str) -> str:
    """Of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def continued(model: Any, ids: Sequence[int], ends: Sequence[int], most: int) -> Iterator[tuple[int, Any]]:
    """The likeliest next token and all log-probabilities (float32, on the CPU), until an end or `most` tokens."""
    import torch

    given = torch.tensor([list(ids)], device=model.device)
    past = None
    with torch.inference_mode():
        for _ in range(most):
            out = model(input_ids=given, past_key_values=past, use_cache=True, logits_to_keep=1)
            past = out.past_key_values
            chances = torch.log_softmax(out.logits[0, -1].float(), dim=-1).cpu()
            token = int(chances.argmax())
            yield token, chances
            if token in ends:
                return
            given = torch.tensor([[token]], device=model.device)
