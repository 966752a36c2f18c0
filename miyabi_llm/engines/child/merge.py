"""A trained adapter merged into its base: both bases tried on held-out rows, the closer one written, and read again.

The order: `model` (as in `opening`, with an adapter), `rows` (held-out .jsonl), `positions` (answer tokens compared at
most), `base` (trained, full or auto), `target` (a new folder), `template`, `most` (a divergence that is refused).
`trained` is the base as the training saw it: for packed weights the numbers they unpack to. `full` is the original
weights. Nothing is ever merged into packed weights: they would be rounded again, and the tune with them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from miyabi_llm.engines.child import common
from miyabi_llm.engines.child.opening import arithmetic, open_model, put_on, read_rows, split, tokenizer_of

F16_MAX = 65504.0
WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".gguf")
OWN = ("config.json", "generation_config.json")  # written by the merge, or taken from the base by a rule


def run(order: Mapping[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    """See the module. The answer: `base`, `tried` (base -> `kld`, `same_top`), `kld` and `same_top` as written."""
    spec = order["model"]
    tokenizer = tokenizer_of(spec)
    asked = list(questions(tokenizer, read_rows(order["rows"]), order))
    if not asked:
        raise common.Failed("usage", "there is no held-out row to compare the merged model on")
    say("phase", "merge", f"what the adapter says at {sum(n for _, n in asked)} places")
    want = said(open_model(spec, packed=True), asked)
    kinds = ["trained"] if not spec.get("nf4") else {"auto": ["full", "trained"]}.get(order["base"], [order["base"]])
    if not spec.get("nf4") and order["base"] == "full":
        kinds = ["full"]  # the same numbers
    tried: dict[str, dict[str, float]] = {}
    model: Any = None
    for kind in kinds:  # the likelier one last: it need not be made twice
        say("phase", "merge", f"into the base as {'trained on' if kind == 'trained' else 'published'}")
        del model
        model = merged(spec, kind)
        tried[kind] = compare(want, said(model, asked))
    best = min(tried, key=lambda k: tried[k]["kld"])
    if best != kinds[-1]:
        del model
        model = merged(spec, best)
    target = Path(order["target"])
    say("phase", "merge", f"writing, {best} base")
    how = write(model, spec, tokenizer, target)
    del model
    say("phase", "merge", "reading it again")
    again = compare(want, said(open_model({"base": str(target), "precision": "fp32"}), asked))
    if again["kld"] > float(order["most"]):
        raise common.Failed(
            "gate-failed",
            f"the merged model is not base and adapter: KL divergence {again['kld']:.2e}, at most {order['most']}",
            "The merged folder was left for a look; nothing was made of it.", tried=tried, written=again,
        )  # fmt: skip
    return {"base": best, "tried": tried, "positions": sum(n for _, n in asked), **again, **how}


def questions(
    tokenizer: Any, rows: Sequence[Mapping[str, Any]], order: Mapping[str, Any]
) -> Iterator[tuple[list[int], int]]:
    """The ids of whole rows, and how many tokens at their ends are compared; `positions` in all."""
    left = int(order["positions"])
    for row in rows:
        if left <= 0:
            return
        prompt, answer = split(tokenizer, row, order.get("template") or {})
        answer = answer[:left]
        left -= len(answer)
        if answer:
            yield [*prompt, *answer], len(answer)


def said(model: Any, asked: Sequence[tuple[list[int], int]]) -> list[Any]:
    """The log-probabilities of every token at the asked places, float32."""
    import torch

    found = []
    with torch.inference_mode():
        for ids, n in asked:
            given = torch.tensor([ids], device=model.device)
            logits = model(input_ids=given, use_cache=False, logits_to_keep=n + 1).logits[0, :-1]
            found.append(torch.log_softmax(logits.float(), dim=-1).cpu())
    return found


def compare(want: Sequence[Any], got: Sequence[Any]) -> dict[str, float]:
    """Mean KL divergence in nats, and the share of places with the same likeliest token.

    Tokens that were added to or padded off the vocabulary of one side only are left out.
    """
    total, same, places = 0.0, 0, 0
    for a, b in zip(want, got, strict=True):
        n = min(a.shape[-1], b.shape[-1])
        a, b = a[:, :n].double(), b[:, :n].double()
        total += float((a.exp() * (a - b)).sum())
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        places += a.shape[0]
    return {"kld": max(0.0, total / places), "same_top": same / places}  # rounding alone may go below 0


def merged(spec: Mapping[str, Any], kind: str) -> Any:
    """Base and adapter as one plain model in 32 bits."""
    base = {k: v for k, v in spec.items() if k != "adapter"} | {"nf4": bool(spec.get("nf4")) and kind == "trained"}
    model = open_model(base)
    if not spec.get("adapter"):  # every weight was trained: there is nothing to merge
        return model
    return put_on(model, spec["adapter"], wide=arithmetic(model) == "float32").merge_and_unload(safe_merge=True).eval()


def write(model: Any, spec: Mapping[str, Any], tokenizer: Any, target: Path) -> dict[str, Any]:
    """The folder: weights in 16 bits (32 where the base has 32), the base's own files where nothing changed.

    F16 keeps three digits more than BF16 of what a merge adds, so it is taken where every weight fits it.
    """
    import torch

    base = Path(spec["base"])
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    narrow = str(config.get("dtype") or config.get("torch_dtype") or "float32") != "float32"
    largest = max(float(p.detach().abs().max()) for p in model.parameters() if p.numel())
    kind = (torch.float16 if largest <= F16_MAX else torch.bfloat16) if narrow else torch.float32
    untied = untie(model)
    for leftover in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, leftover):
            delattr(model.config, leftover)
    model.hf_quantizer = None
    for flag in ("is_quantized", "is_loaded_in_4bit"):
        if hasattr(model, flag):
            setattr(model, flag, False)
    model.to(kind)
    model.config.dtype = kind
    target.mkdir(parents=True)
    model.save_pretrained(target, max_shard_size="4GB")
    kept = same_tokenizer(spec, tokenizer)
    if kept:
        for path in sorted(base.iterdir()):
            if path.is_file() and not path.name.endswith((*WEIGHTS, ".py")) and path.name not in OWN:
                shutil.copyfile(path, target / path.name)
    else:
        tokenizer.save_pretrained(target)
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", target / "generation_config.json")
    return {
        "dtype": str(kind).removeprefix("torch."), "largest": largest, "untied": untied,
        "tokenizer": "the base's, copied" if kept else "the adapter's",
    }  # fmt: skip


def untie(model: Any) -> bool:
    """Whether input and output matrices that were one are two now: the configuration must not say that they are one."""
    out, into = model.get_output_embeddings(), model.get_input_embeddings()
    if not getattr(model.config, "tie_word_embeddings", False) or out is None:
        return False
    one, other = out.weight, into.weight
    if one.data_ptr() == other.data_ptr() or (one.shape == other.shape and bool((one == other).all())):
        return False
    model.config.tie_word_embeddings = False
    for name in ("_tied_weights_keys", "_dynamic_tied_weights_keys", "all_tied_weights_keys"):
        if hasattr(model, name):
            setattr(model, name, {} if isinstance(getattr(model, name), dict) else [])
    return True


def same_tokenizer(spec: Mapping[str, Any], tokenizer: Any) -> bool:
    """Whether the training kept the base's vocabulary and template, so that the base's own files hold."""
    own = common.tokenizer(spec["base"])
    return bool(
        own.get_vocab() == tokenizer.get_vocab()
        and own.chat_template == tokenizer.chat_template
        and own.eos_token_id == tokenizer.eos_token_id
    )
