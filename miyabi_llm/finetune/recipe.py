"""The recipe of a fine-tune: a closed schema. Every key says what it is; nothing unknown passes.

The descriptions here are the only ones: the JSON Schema for editors and docs/reference/recipe.md are made of them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "preference", "unpaired"]
Role = Literal["system", "user", "assistant", "tool"]
Method = Literal["sft", "dpo", "kto", "orpo"]
Metric = Literal["loss", "exact", "contains", "overlap", "preference"]
GgufType = Annotated[str, Field(pattern=r"^(I?Q[1-8]_[A-Z0-9_]{1,8}|F16|BF16|F32|MXFP4)$")]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """What all parts of a recipe have in common: nothing unknown, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)


class Tiny(Section):
    """A model with random weights and a real tokenizer: the whole road in a minute, on any machine."""

    from_: str = Field("qwen2.5-coder:1.5b", alias="from", min_length=1, description="Model that gives its tokenizer.")
    hidden: int = Field(128, ge=32, le=2048, multiple_of=32, description="Width of the model.")
    layers: int = Field(2, ge=1, le=64, description="Layers.")
    seed: int = Field(1, ge=0, lt=2**32, description="Seed of the random weights.")


class Base(Section):
    """The model the tune starts from."""

    model: str | None = Field(
        None, min_length=1, description="A model of the store (qwen2.5-coder:1.5b) or a Hugging Face model folder."
    )
    revision: str | None = Field(None, min_length=1, description="Revision of a hub model; the newest when left out.")
    tiny: Tiny | None = Field(None, description="Instead of `model`: a model with random weights, to try the road.")


class Data(Section):
    """What it learns from, and how rows are read."""

    train: str = Field(min_length=1, description="File (.jsonl, .json, .csv, .parquet) or hf:ORG/NAME[:SPLIT].")
    eval: str | None = Field(
        None, min_length=1, description="Held-out rows; when left out, a part of `train` is held out."
    )
    format: Format = Field("auto", description="Form of the rows; auto looks at their keys.")
    roles: dict[str, Role] = Field(
        default_factory=dict, description="Names of roles in the file that are not system, user, assistant or tool."
    )
    group: str | None = Field(
        None, min_length=1, description="Column whose rows stay together on one side of the split."
    )
    eval_fraction: float = Field(0.1, ge=0, lt=1, description="Part of the rows held out when `eval` is left out.")
    max_length: int = Field(1024, ge=16, description="Most tokens of a row, prompt and answer together.")
    over_length: Literal["drop", "fail"] = Field(
        "drop", description="What to do with a longer row. An answer is never cut."
    )
    max_dropped: Share = Field(0.1, description="Part of the rows that may be dropped as too long; more is an error.")
    bad_rows: Literal["fail", "skip"] = Field(
        "fail", description="A row that cannot be read stops the run, or is left out and written to data/bad.jsonl."
    )
    system: str | None = Field(None, min_length=1, description="System prompt for rows that have none.")
    thinking: Literal["keep", "strip", "none"] = Field(
        "none", description="Reasoning in answers: keep it, strip it, or none is expected (then one is an error)."
    )
    seed: int = Field(17, ge=0, lt=2**32, description="Seed of the split.")


class Lora(Section):
    """Which weights are trained."""

    method: Literal["lora", "qlora", "rslora", "dora", "full"] = Field(
        "lora", description="qlora holds the base in 4 bits (NF4); full trains every weight."
    )
    rank: int = Field(16, ge=1, le=1024, description="Rank of the adapter.")
    alpha: int = Field(32, ge=1, le=4096, description="Scale of the adapter: alpha / rank (rslora: / root of rank).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in the adapter.")
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "all-linear", description="Layers that get an adapter: all-linear, or names such as [q_proj, v_proj]."
    )


class EarlyStopping(Section):
    """Stop when the loss on the held-out rows falls no more."""

    patience: int = Field(3, ge=1, description="Evaluations without a fall.")
    min_delta: float = Field(0.0, ge=0, description="Least fall of the loss that counts, in nats.")


class Launch(Section):
    """Processes and how they share the model."""

    processes: int = Field(1, ge=1, le=1024, description="Processes on this machine, one a GPU.")
    strategy: Literal["none", "ddp", "fsdp", "zero2", "zero3"] = Field(
        "none", description="ddp copies the model; fsdp and zero3 split it; zero2 splits gradients and optimizer."
    )
    nodes: int = Field(1, ge=1, le=1024, description="Machines.")
    node: int = Field(0, ge=0, description="Number of this machine, from 0.")
    address: str | None = Field(None, min_length=1, description="HOST:PORT of machine 0, when there are several.")


class Train(Section):
    """How it is trained."""

    method: Method = Field("sft", description="sft learns answers; dpo and orpo learn from pairs, kto from judgements.")
    engine: Literal["auto", "trl", "unsloth"] = Field(
        "auto", description="auto takes unsloth on a GPU it supports, else trl."
    )
    epochs: float = Field(1.0, gt=0, le=10_000, description="Times the whole data is seen.")
    max_steps: int | None = Field(None, ge=1, description="Steps in all; when given, `epochs` does not count.")
    batch_size: int = Field(1, ge=1, description="Rows a process takes at once.")
    grad_accum: int = Field(1, ge=1, description="Batches added up before a step.")
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Highest learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="How the learning rate falls.")
    warmup: float = Field(0.03, ge=0, description="Steps of rising learning rate; below 1: part of all steps.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped at this norm.")
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit", "adafactor", "sgd"] = Field(
        "adamw", description="Optimizer; the 8-bit ones need bitsandbytes."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the machine computes in it, else fp32. fp32 resumes bit for bit."
    )
    seed: int = Field(17, ge=0, lt=2**32, description="Seed of the adapter and of the order of the rows.")
    gradient_checkpointing: bool = Field(False, description="Less memory for about a third more time.")
    packing: bool = Field(False, description="Several short rows in one sequence.")
    beta: float = Field(0.1, gt=0, le=10, description="dpo, kto and orpo: how far from the base it may go.")
    save_steps: int = Field(50, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that are kept.")
    eval_steps: int | None = Field(None, ge=1, description="Steps between losses on held-out rows; none if left out.")
    early_stopping: EarlyStopping | None = Field(None, description="Stop when the held-out loss falls no more.")
    tracker: Literal["none", "tensorboard", "trackio", "wandb"] = Field(
        "none", description="Where curves are sent besides the report; wandb sends them off this machine."
    )
    launch: Launch = Field(default_factory=Launch, description="Several processes or machines.")


class Evaluate(Section):
    """What is measured before and after, on held-out rows, at every stage."""

    metric: Metric = Field(
        "loss",
        description="loss in nats a token; exact, contains, overlap compare answers; preference prefers the chosen.",
    )
    samples: int = Field(64, ge=1, description="Held-out rows measured, at most.")
    max_tokens: int = Field(256, ge=1, description="Longest answer that is generated, in tokens.")
    forgetting: str | None = Field(
        None, min_length=1, description="File of rows it should still know; `builtin` for our own small set."
    )
    bootstrap: int = Field(2000, ge=100, le=1_000_000, description="Resamples of the confidence intervals.")


class Gates(Section):
    """What must hold before a model is published."""

    min_gain: float | None = Field(
        0.0, description="Least gain in the metric over the base, outside the confidence interval; null: no gate."
    )
    max_forgetting: float | None = Field(
        None, ge=0, description="Most that the loss on the forgetting set may rise, in nats; null: no gate."
    )
    max_loss_in_gguf: float | None = Field(
        None, ge=0, description="Most of the metric that may be lost between the adapter and the quantized GGUF."
    )
    parity: bool = Field(True, description="Trainer and server must agree on prompt, tokens, probabilities and stop.")


class Export(Section):
    """What is made of the adapter, and where it goes."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="Name in the store; the recipe's own if none."
    )
    merge_base: Literal["auto", "trained", "full"] = Field(
        "auto", description="Weights merged into: as trained (4-bit rounded), the full ones, or whichever is nearer."
    )
    types: tuple[GgufType, ...] = Field(("Q8_0", "Q4_K_M"), description="GGUF types made; empty: none, only the f16.")
    max_kld: float | None = Field(
        None, gt=0, description="Most a quantized file may differ, mean KL divergence in nats."
    )
    ollama: str | None = Field(None, min_length=1, description="Name to give it in the Ollama that runs here.")


class Recipe(Section):
    """One fine-tune, whole: the same file on a laptop and on eight GPUs."""

    base: Base = Field(description="The model the tune starts from.")
    data: Data = Field(description="What it learns from, and how rows are read.")
    lora: Lora = Field(default_factory=Lora, description="Which weights are trained.")
    train: Train = Field(default_factory=Train, description="How it is trained.")
    evaluate: Evaluate = Field(default_factory=Evaluate, description="What is measured before and after.")
    gates: Gates = Field(default_factory=Gates, description="What must hold before a model is published.")
    export: Export = Field(default_factory=Export, description="What is made of the adapter, and where it goes.")


# Keys of other tools, and where ours are: for the error that names them.
KNOWN_ELSEWHERE = {
    "base_model": "base.model", "model_name_or_path": "base.model", "model_name": "base.model",
    "dataset": "data.train", "datasets": "data.train", "train_file": "data.train", "format_type": "data.format",
    "val_set_size": "data.eval_fraction", "val_size": "data.eval_fraction", "eval_dataset": "data.eval",
    "test_datasets": "data.eval", "sequence_len": "data.max_length", "max_seq_length": "data.max_length",
    "cutoff_len": "data.max_length", "excess_length_strategy": "data.over_length", "system_prompt": "data.system",
    "adapter": "lora.method", "finetuning_type": "lora.method", "load_in_4bit": "lora.method",
    "quantization_bit": "lora.method", "lora_r": "lora.rank", "lora_rank": "lora.rank", "r": "lora.rank",
    "lora_alpha": "lora.alpha", "lora_dropout": "lora.dropout", "lora_target": "lora.targets",
    "target_modules": "lora.targets", "lora_target_modules": "lora.targets", "use_rslora": "lora.method",
    "use_dora": "lora.method", "lr": "train.learning_rate", "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs", "iters": "train.max_steps", "micro_batch_size": "train.batch_size",
    "per_device_train_batch_size": "train.batch_size", "gradient_accumulation_steps": "train.grad_accum",
    "lr_scheduler": "train.schedule", "lr_scheduler_type": "train.schedule", "warmup_ratio": "train.warmup",
    "warmup_steps": "train.warmup", "optim": "train.optimizer", "bf16": "train.precision", "fp16": "train.precision",
    "dtype": "train.precision", "random_seed": "train.seed", "sample_packing": "train.packing",
    "neat_packing": "train.packing", "stage": "train.method", "report_to": "train.tracker",
    "enable_wandb": "train.tracker", "enable_tensorboard": "train.tracker", "deepspeed": "train.launch.strategy",
    "fsdp": "train.launch.strategy", "output_dir": "export.name", "hub_model_id": "export.name",
    "quantization_method": "export.types", "early_stopping_patience": "train.early_stopping.patience",
}  # fmt: skip
