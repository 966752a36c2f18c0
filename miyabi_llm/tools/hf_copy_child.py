"""Read a GGUF file with transformers and write it as a folder of safetensors; run as a script by `hf_copy`.

Runs in an environment that has torch, transformers and gguf, and imports nothing of ours. Its one argument is an order
in JSON; it says what it does as JSON lines on stdout, `{"kind": ..., "name": ..., "message": ...}`, the last of them
`done` with the facts of the copy in `data`, or `failed`.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

CONTROL, USER_DEFINED = 3, 4  # llama.cpp's llama_token_type
PROBES = (
    "The capital of Japan is",
    "def add(a, b):\n    return a + b\n",
    "日本の首都は東京です。🗼",
    "  spaces\tand\r\nlines  ",
    "1234567890 + 0.5e-3 != None",
)


def say(kind: str, name: str, message: str = "", **data: Any) -> None:
    """One event to whoever started us."""
    # A line of its own: libraries write to the same log and do not always end theirs.
    sys.stdout.write("\n" + json.dumps({"kind": kind, "name": name, "message": message, "data": data}) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Do what the order in the file of the first argument says."""
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    source, target = Path(order["source"]), Path(order["target"])
    vocabulary = json.loads(Path(order["vocabulary"]).read_text(encoding="utf-8"))
    say("phase", "tokenizer", source.name)
    tokenizer = read_tokenizer(source, vocabulary)
    trouble = check_tokenizer(tokenizer, vocabulary)
    if trouble:
        say("failed", "tokenizer", trouble)
        return 1
    say("phase", "weights", "dequantize to bfloat16")
    model = read_model(source)
    trouble = check_weights(model, order["parameters"])
    if trouble:
        say("failed", "weights", trouble)
        return 1
    next_tokens = greedy(model, tokenizer, PROBES[0])
    say("phase", "write", target.name)
    write(model, tokenizer, vocabulary, target)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "gguf", "tokenizers")}
    probes = {text: tokenizer.encode(text, add_special_tokens=False) for text in PROBES}
    say("done", "copy", str(target), versions=versions, greedy={PROBES[0]: next_tokens}, probes=probes)
    return 0


def read_tokenizer(source: Path, vocabulary: dict[str, Any]) -> Any:
    """The tokenizer of the file, with what its reader loses: added tokens, the end of an answer, the template."""
    from transformers import AutoTokenizer
    from transformers.tokenization_utils_base import AddedToken

    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    tokens, types = vocabulary["tokens"], vocabulary["types"]
    named = [(tokens[i], kind) for i, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)]
    for special in (True, False):
        wanted = [AddedToken(text, normalized=False, special=special) for text, kind in named
                  if (kind == CONTROL) is special]  # fmt: skip
        tokenizer.add_tokens(wanted, special_tokens=special)
    for role in ("bos", "eos", "pad"):
        number = vocabulary.get(role)
        setattr(tokenizer, f"{role}_token", tokens[number] if number is not None else None)
    if vocabulary["normalize"]:
        from tokenizers import normalizers

        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()  # the publisher's has it, a GGUF cannot say it
    if vocabulary.get("template"):
        tokenizer.chat_template = vocabulary["template"]
    tokenizer.model_max_length = vocabulary["context_length"] or tokenizer.model_max_length
    return tokenizer


def check_tokenizer(tokenizer: Any, vocabulary: dict[str, Any]) -> str:
    """What is wrong with the tokenizer against the file's own vocabulary; empty when nothing is."""
    tokens, types = vocabulary["tokens"], vocabulary["types"]
    got = tokenizer.convert_ids_to_tokens(list(range(len(tokens))))
    for number, (mine, theirs) in enumerate(zip(tokens, got, strict=True)):
        if mine != theirs:
            return f"token {number} is {theirs!r}, in the file {mine!r}"
    for number, kind in enumerate(types):
        if kind in (CONTROL, USER_DEFINED):
            ids = tokenizer.encode(tokens[number], add_special_tokens=False)
            if ids != [number]:
                return f"{tokens[number]!r} is read as {ids}, in the file it is token {number}"
    for text in PROBES:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
            return f"{text!r} does not come back from its tokens {ids}"
    eos = vocabulary.get("eos")
    return f"the end of an answer is {tokenizer.eos_token_id}, not {eos}" if tokenizer.eos_token_id != eos else ""


def read_model(source: Path) -> Any:
    """The weights, dequantized to bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, dtype=torch.bfloat16, low_cpu_mem_usage=True
    )
    model.hf_quantizer = None  # else saving refuses: the weights are no longer quantized
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model.eval()


def check_weights(model: Any, parameters: int) -> str:
    """What is wrong with the weights; empty when nothing is. `parameters` is the count of the file's header."""
    import torch

    count = 0
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not torch.isfinite(tensor).all():
            return f"{name} holds numbers that are not finite"
    for _, tensor in model.named_parameters():  # tied ones once
        count += tensor.numel()
    return f"{count:,} parameters, in the file {parameters:,}" if count != parameters else ""


def greedy(model: Any, tokenizer: Any, text: str) -> str:
    """What follows `text`: a sign of life that a person can judge."""
    import torch

    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    with torch.inference_mode():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    return str(tokenizer.decode(made[0, ids.shape[1] :]))


def write(model: Any, tokenizer: Any, vocabulary: dict[str, Any], target: Path) -> None:
    """The folder: weights, tokenizer, template and the tokens that end an answer."""
    from transformers import GenerationConfig

    ends = vocabulary["ends"]
    for name in ("bos", "eos", "pad"):
        setattr(model.config, f"{name}_token_id", vocabulary.get(name))
    model.generation_config = GenerationConfig(
        bos_token_id=vocabulary.get("bos"), eos_token_id=ends or None, pad_token_id=vocabulary.get("pad")
    )
    if hasattr(model.config, "_name_or_path"):
        model.config._name_or_path = ""  # a path of this machine is nobody's business
    model.save_pretrained(target, max_shard_size="4GB")
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    raise SystemExit(main())
