"""What a training will need: memory, disk and time, from the shapes of the model. Pure; each formula says its terms.

The formulas were derived here and set against measured runs: see docs/explanation/finetune-engines.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from miyabi_llm.errors import BadUsage
from miyabi_llm.finetune.recipe import Recipe

MLP = ("gate_proj", "up_proj", "down_proj")
# NF4: half a byte a weight, a byte a block of 64 for its scale, 4 bytes a 256 of those for the scale of scales.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
RUNTIME_CPU = 680 << 20  # torch, transformers and trl in memory before a model is there; measured with the tiny model
RUNTIME_CUDA = 1400 << 20  # a context with its libraries, as others quote it; not measured here
MEMORY_ERROR = 0.35  # part of the estimate by which runs differed at most where it was measured
MEASURED_ERROR = 2.0  # a factor either way after earlier runs here: what else ran then and now is not known
TIME_ERROR = 3.0  # a factor either way when no run was measured on this machine
OPTIMIZER = {"adamw": 2.0, "adamw-8bit": 0.5, "paged-adamw-8bit": 0.5, "adafactor": 0.05, "sgd": 0.0}  # of 4 bytes


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's shape: widths, layers, the width of its keys and values, its vocabulary; `tied` embeddings."""

    hidden: int
    inner: int
    layers: int
    kv: int
    queries: int
    vocab: int
    tied: bool

    @property
    def linear(self) -> int:
        """Weights of the layers' linear maps: those that an adapter can go on, and that NF4 holds in 4 bits."""
        attention = self.hidden * (2 * self.queries + 2 * self.kv)
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def other(self) -> int:
        """Embeddings and norms."""
        return self.vocab * self.hidden * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.linear + self.other


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes a training needs, by part."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    runtime: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.adapter + self.gradients + self.optimizer + self.activations + self.runtime


@dataclass(frozen=True, slots=True)
class Given:
    """What an estimate is made of beside shape and recipe.

    `rows` to learn from, `mean` and `longest` tokens of one; `speed` in operations a second, if known: `measured` says
    by an earlier training here, and not by products of matrices alone. `cuda`: on a card. `copy`: the base must be
    copied first.
    """

    rows: int
    mean: int
    longest: int
    speed: float | None = None
    measured: bool = False
    cuda: bool = False
    copy: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a training will need. `seconds` is None where nothing is known of this machine's speed; it may be wrong by
    the factor `within` either way. `memory_error` is the part by which memory may be wrong. Disk in bytes."""

    parameters: int
    trained: int
    memory: Memory
    memory_error: float
    disk: int
    tokens: int
    steps: int
    seconds: float | None
    within: float


def shape(config: Mapping[str, Any]) -> Shape:
    """The shape out of a config.json. Raises BadUsage when it is not that of a decoder we know how to count."""
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head = int(config.get("head_dim") or hidden // heads)
        return Shape(
            hidden,
            int(config["intermediate_size"]),
            int(config["num_hidden_layers"]),
            int(config.get("num_key_value_heads") or heads) * head,
            heads * head,
            int(config["vocab_size"]),
            bool(config.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as e:
        raise BadUsage(f"the model's configuration says no {e}: its needs cannot be told") from e


def trained(form: Shape, recipe: Recipe) -> int:
    """Weights that are trained: rank x (inputs + outputs) of each map with an adapter; dora one more an output."""
    lora = recipe.lora
    if lora.method == "full":
        return form.parameters
    sizes = {
        "q_proj": (form.hidden, form.queries),
        "k_proj": (form.hidden, form.kv),
        "v_proj": (form.hidden, form.kv),
        "o_proj": (form.queries, form.hidden),
        "gate_proj": (form.hidden, form.inner),
        "up_proj": (form.hidden, form.inner),
        "down_proj": (form.inner, form.hidden),
    }
    names = sizes if lora.targets == "all-linear" else [n for n in sizes if n in lora.targets]
    each = sum(lora.rank * sum(sizes[n]) + (sizes[n][1] if lora.method == "dora" else 0) for n in names)
    return each * form.layers


def memory(form: Shape, recipe: Recipe, precision: str, *, cuda: bool, longest: int) -> Memory:
    """Bytes one process needs; `longest` is the longest row in tokens.

    weights: linear in NF4 or the precision's bytes, the rest in the precision's; float32 when all are trained.
    adapter and gradients: 4 bytes a trained weight, 2 for qlora, whose adapters trl holds in bf16; the gradients of
    weights that are trained in full are their own. Optimizer: two moments, 8 bits each, or hardly any.
    activations: what the backward pass of one layer needs of every token, times the layers that keep it (all, or with
    gradient checkpointing one and an input each), and the chunk of logits trl computes at a time.
    """
    width = 2 if precision == "bf16" else 4
    full, four = recipe.lora.method == "full", recipe.lora.method == "qlora"
    count = trained(form, recipe)
    weights = form.parameters * 4 if full else int(form.linear * (NF4 if four else width)) + form.other * width
    if four and not cuda:
        weights += (
            form.linear * 2
        )  # the 16-bit file they are made of stays mapped: 5.5 GiB were seen with the 1.5B model
    own = 2 if four else 4
    rows = recipe.train.batch_size * longest
    # norms, q, k, v, what attention gives and its projection, gate, up, their product, down, two residual sums
    each = rows * (7 * form.hidden + 2 * form.kv + 2 * form.queries + 4 * form.inner) * width
    held = (
        each + form.layers * rows * form.hidden * width if recipe.train.gradient_checkpointing else each * form.layers
    )
    branches = {"sft": 1, "dpo": 2, "orpo": 2, "kto": 2}[recipe.train.method]
    logits = rows * form.vocab * 4 * (3 if branches == 2 else 0) + min(rows, 256) * form.vocab * 4
    return Memory(
        weights,
        0 if full else count * own,
        count * own,
        int(count * own * OPTIMIZER[recipe.train.optimizer]),
        held * branches + logits,
        RUNTIME_CUDA if cuda else RUNTIME_CPU,
    )


def steps(recipe: Recipe, rows: int) -> int:
    """Optimizer steps of the whole training."""
    if recipe.train.max_steps is not None:
        return recipe.train.max_steps
    launch = recipe.train.launch
    batch = recipe.train.batch_size * recipe.train.grad_accum * launch.processes * launch.nodes
    return max(1, int(-(-rows * recipe.train.epochs // batch)))


def work(form: Shape, recipe: Recipe, tokens: int) -> float:
    """Floating-point operations to train on `tokens`.

    Forward 2 a weight (embeddings are looked up, the output matrix is multiplied), backward 2 for what flows through,
    2 more for the gradients of weights that are trained in full; checkpointing does the forward pass twice.
    """
    passed = form.linear + form.vocab * form.hidden
    each = 6 if recipe.lora.method == "full" else 4
    each += 2 if recipe.train.gradient_checkpointing else 0
    extra = {"sft": 1.0, "dpo": 1.5, "orpo": 1.0, "kto": 1.5}[recipe.train.method]  # the reference's forward pass
    return float(each) * passed * tokens * extra


def disk(form: Shape, recipe: Recipe, *, copy: bool) -> int:
    """Bytes a run writes: a copy of the base if it must be made, checkpoints, adapter, merged model, GGUF files.

    A checkpoint holds the adapter and the optimizer's state, and some 12 MB of tokenizer.
    """
    count = trained(form, recipe)
    state = int(count * 4 * (1 + OPTIMIZER[recipe.train.optimizer])) + (12 << 20)
    kept = (recipe.train.keep_checkpoints + 1) * state + count * 4
    merged = 2 * form.parameters * 2  # the merged folder and its f16 GGUF, 2 bytes a weight each
    quantized = sum(int(form.parameters * bits(t) / 8) for t in recipe.export.types)
    return (form.parameters * 2 if copy else 0) + kept + merged + quantized


def bits(kind: str) -> float:
    """Bits a weight of a GGUF type takes, about: the digit in its name, and the scales."""
    if kind in ("F16", "BF16"):
        return 16.0
    if kind == "F32":
        return 32.0
    digits = [int(c) for c in kind if c.isdigit()]
    return (digits[0] if digits else 8) + 0.9


def estimate(form: Shape, recipe: Recipe, precision: str, given: Given) -> Estimate:
    """All of it."""
    count = steps(recipe, given.rows)
    launch = recipe.train.launch
    together = recipe.train.batch_size * recipe.train.grad_accum * launch.processes * launch.nodes
    tokens = count * together * given.mean
    return Estimate(
        form.parameters,
        trained(form, recipe),
        memory(form, recipe, precision, cuda=given.cuda, longest=given.longest),
        MEMORY_ERROR,
        disk(form, recipe, copy=given.copy),
        tokens,
        count,
        round(work(form, recipe, tokens) / given.speed, 1) if given.speed else None,
        MEASURED_ERROR if given.measured else TIME_ERROR,
    )
