"""How fast a training through us is beside a bare trl script with the same settings, in turns.

    python benchmarks/finetune.py [FOLDER ...] [--rounds N] [--steps N] [--length TOKENS] [--batch N] [--qlora] [--bf16]

FOLDER is a model in safetensors; without one the tiny model is used (random weights, a real tokenizer, one thread).
Both train the same rows from the same seed, write one checkpoint at the end and end with the same adapter, bit for
bit: the bare script is `BARE` below. Printed are tokens a second of wall time, and tokens a second of processor time,
which other programs on the machine disturb less; and their ratio, ours by bare, the median over the rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from miyabi_llm import catalog, config
from miyabi_llm.config import Settings
from miyabi_llm.engines import environment, tiny, worker
from miyabi_llm.engines.base import Job
from miyabi_llm.engines.trl import PINS, Trl
from miyabi_llm.finetune.recipe import Recipe
from miyabi_llm.proc.environ import allowed
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Store

BARE = """
import json, sys, time
import torch, transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

o = json.load(open(sys.argv[1]))
transformers.set_seed(17)
kind = torch.bfloat16 if o["bf16"] else torch.float32
more = {}
if o["qlora"]:
    more["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=kind, bnb_4bit_use_double_quant=True)
model = AutoModelForCausalLM.from_pretrained(o["base"], dtype=kind, device_map={"": "cpu"}, **more)
model.config.use_cache = False
rows = [json.loads(line) for line in open(o["rows"])]
args = SFTConfig(output_dir=o["out"], max_steps=o["steps"], per_device_train_batch_size=o["batch"], learning_rate=2e-4,
    lr_scheduler_type="cosine", warmup_steps=0.03, weight_decay=0.0, bf16=o["bf16"], seed=17, data_seed=17,
    gradient_checkpointing=False, save_steps=o["steps"], max_length=None, report_to="none", use_cpu=True,
    optim="adamw_torch_fused", disable_tqdm=True, dataloader_pin_memory=False)
trainer = SFTTrainer(model=model, args=args,
    train_dataset=Dataset.from_list([{k: r[k] for k in ("prompt", "completion")} for r in rows]),
    processing_class=AutoTokenizer.from_pretrained(o["base"]),
    peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"))
wall, cpu = time.monotonic(), time.process_time()
trainer.train()
wall, cpu = time.monotonic() - wall, time.process_time() - cpu
trainer.save_model(o["out"] + "/made")
json.dump({"tokens": trainer._total_train_tokens, "seconds": wall, "cpu_s": cpu}, open(o["answer"], "w"))
"""


def main() -> None:
    """Print the table."""
    words = argparse.ArgumentParser()
    words.add_argument("folder", nargs="*", type=Path)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--steps", type=int, default=40)
    words.add_argument("--length", type=int, default=96)
    words.add_argument("--batch", type=int, default=4)
    words.add_argument("--qlora", action="store_true")
    words.add_argument("--bf16", action="store_true")
    asked = words.parse_args()
    settings = config.load()
    Trl().install(settings)
    print(f"{'model':24} {'way':12} {'bare tok/s':>11} {'ours tok/s':>11} {'ratio':>6} {'by CPU time':>11}  same bytes")
    for folder in asked.folder or [None]:
        one = settings if folder else replace(settings, env={**settings.env, "OMP_NUM_THREADS": "1"})
        base = folder.absolute() if folder else _tiny(one)
        pairs = [_round(base, one, asked) for _ in range(asked.rounds)]
        _show(base.name if folder else "tiny", asked, pairs)


def _show(name: str, asked: argparse.Namespace, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    def speed(told: dict[str, Any], key: str) -> float:
        return float(told["tokens"]) / float(told[key])

    wall = statistics.median(speed(o, "seconds") / speed(b, "seconds") for b, o in pairs)
    cpu = statistics.median(speed(o, "cpu_s") / speed(b, "cpu_s") for b, o in pairs)
    bare = statistics.median(speed(b, "seconds") for b, _ in pairs)
    ours = statistics.median(speed(o, "seconds") for _, o in pairs)
    way = f"{'qlora' if asked.qlora else 'lora'} {'bf16' if asked.bf16 else 'fp32'}"
    same = all(b["sha256"] == o["sha256"] for b, o in pairs)
    print(f"{name:24} {way:12} {bare:11.1f} {ours:11.1f} {wall:6.3f} {cpu:11.3f}  {'yes' if same else 'no'}")


def _round(base: Path, settings: Settings, asked: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    with tempfile.TemporaryDirectory(dir=".", prefix=".finetune-") as place:
        work = Path(place).absolute()
        rows = work / "rows.jsonl"
        rows.write_text("".join(json.dumps(_row(i, asked.length)) + "\n" for i in range(asked.steps * asked.batch)))
        return _bare(base, rows, work, settings, asked), _ours(base, rows, work, settings, asked)


def _row(number: int, length: int) -> dict[str, Any]:
    words = " ".join(f"word{(number * 31 + k * 7) % 97}" for k in range(max(1, (length - 30) // 3)))
    return {
        "prompt": [{"role": "user", "content": f"Repeat number {number}: {words}"}],
        "completion": [{"role": "assistant", "content": words}],
    }


def _bare(base: Path, rows: Path, work: Path, settings: Settings, asked: argparse.Namespace) -> dict[str, Any]:
    script, order, answer, out = (work / n for n in ("bare.py", "bare.json", "bare-answer.json", "bare"))
    script.write_text(BARE)
    body = {"base": str(base), "rows": str(rows), "out": str(out), "answer": str(answer), "steps": asked.steps}
    order.write_text(json.dumps(body | {"batch": asked.batch, "qlora": asked.qlora, "bf16": asked.bf16}))
    python = environment.need(PINS, settings).python
    env = allowed(settings.env) | worker.QUIET | {"GOMP_SPINCOUNT": "10000"}  # as `proc` gives it to ours
    subprocess.run([str(python), "-I", "-B", str(script), str(order)], check=True, env=env, capture_output=True)
    told: dict[str, Any] = json.loads(answer.read_text())
    return told | {"sha256": _sha256(out / "made" / "adapter_model.safetensors")}


def _ours(base: Path, rows: Path, work: Path, settings: Settings, asked: argparse.Namespace) -> dict[str, Any]:
    body: dict[str, Any] = {
        "base": {"model": "x"},
        "data": {"train": "x"},
        "lora": {"method": "qlora" if asked.qlora else "lora"},
        "train": {"max_steps": asked.steps, "batch_size": asked.batch, "save_steps": asked.steps},
    }
    recipe = Recipe.model_validate(body).model_dump(mode="json")
    order = {
        **{"engine": "trl", "base": str(base), "name": "base", "rows": str(rows), "eval_rows": None},
        **{"max_length": 4096, "precision": "bf16" if asked.bf16 else "fp32", "processes": 1},
        **{"lora": recipe["lora"], "train": recipe["train"], "resume": None, "identity": "benchmark"},
        **{"checkpoints": str(work / "checkpoints"), "adapter": str(work / "adapter")},
    }
    told = dict(Trl().run(Job("train", order), work, settings))
    return told | {"sha256": _sha256(work / "adapter" / "adapter_model.safetensors")}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tiny(settings: Settings) -> Path:
    store = Store(settings.store)
    found = store.find(catalog.load(settings).canonical(ModelRef.parse("qwen2.5-coder:1.5b")))
    path = next(iter(store.files(found).values()))
    return tiny.make(path, found.files[0].sha256, tiny.Tiny(), Trl(), settings)


if __name__ == "__main__":
    main()
