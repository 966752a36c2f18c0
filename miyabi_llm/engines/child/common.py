"""What the jobs of a child share: events, errors, and loading of tokenizers and models. Torch only when asked."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TRY_SMALLER = (
    "Use a smaller train.batch_size (and a larger grad_accum), a smaller data.max_length, "
    "train.gradient_checkpointing: true, or lora.method: qlora."
)

GO_ON = "`miyabi-llm finetune resume` goes on from there."
SPACE = "Free some space, then `miyabi-llm finetune resume`: the last whole checkpoint is kept."
# torch's writer says it so when the disk is full, without naming the reason.
_FULL = ("no space left", "errno 28", "os error 28", "disk quota", "pytorchstreamwriter failed writing")


class Failed(Exception):
    """A failure the parent shows as its own error: `code` is one of worker.ERRORS, or anything else."""

    def __init__(self, code: str, message: str, hint: str = "", **data: Any) -> None:
        super().__init__(message)
        self.code, self.message, self.hint, self.data = code, message, hint, data


class Say:
    """Appends events, one JSON line each, to the file the parent reads. Only the first process of several speaks."""

    def __init__(self, file: str) -> None:
        self._fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(
        self,
        kind: str,
        name: str,
        message: str = "",
        *,
        done: float = 0,
        total: float | None = None,
        unit: str = "",
        **data: Any,
    ) -> None:
        """Say one event; `kind` is phase, progress, log, warning or done."""
        if main_process():
            body = {"kind": kind, "name": name, "message": message, "done": done, "total": total, "unit": unit}
            self._line(body | {"data": data})

    def failed(self, code: str, message: str, hint: str = "", **data: Any) -> None:
        """Say why the job ends here; any process may."""
        self._line({"kind": "failed", "code": code, "message": message, "hint": hint, "data": data})

    def _line(self, body: Mapping[str, Any]) -> None:
        os.write(self._fd, json.dumps(body, ensure_ascii=False, default=str).encode() + b"\n")


def main_process() -> bool:
    """Whether this is the first of several processes, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def named(job: str, e: BaseException) -> tuple[str, str, str]:
    """Code, message and hint for what a library raised: memory and disk by their names, the rest by its own text."""
    text = f"{type(e).__name__}: {e}".strip()
    first = text.splitlines()[0][:300]
    if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk-full", f"{job}: no space left on the disk", SPACE
    low = text.lower()
    if isinstance(e, MemoryError) or "outofmemory" in low or "out of memory" in low or "allocate memory" in low:
        return "machine-limit", f"{job} ran out of memory: {first}", TRY_SMALLER
    if any(word in low for word in _FULL):
        return "disk-full", f"{job}: no space left on the disk", SPACE
    return "failed", f"{job}: {first}", ""


def dtype(precision: str) -> Any:
    """The torch type of `fp32` or `bf16`."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def device() -> str:
    """cuda, mps or cpu: the best this environment's torch sees."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def tokenizer(folder: str | Path) -> Any:
    """The tokenizer of an HF folder, from its own files; no code of the model's is run."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


def model(
    folder: str | Path,
    precision: str = "fp32",
    *,
    nf4: bool = False,
    compute: str = "",
    spread: bool = False,
    shared: bool = False,
) -> Any:
    """The model of an HF folder in `precision`; with `nf4` its linear layers in 4 bits, which compute in `compute`.

    It is put on the best device; with `spread` it is left to accelerate, which copies it to each process or, `shared`,
    gives each a part: the 4-bit weights are then kept in words of the type that all parts have. (Not run here.)
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    more: dict[str, Any] = {}
    if nf4:
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype(compute or precision),
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_storage=dtype(precision) if shared else None,
        )
    where = device()
    if not shared and (nf4 or not spread):
        more["device_map"] = {"": f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if where == "cuda" else where}
    return AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=dtype(precision), trust_remote_code=False, use_safetensors=True, **more
    )


def adapted(base: Any, folder: str | Path) -> Any:
    """`base` with the adapter in `folder` on top, for use, not for training."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder), is_trainable=False)
