"""How much memory llama.cpp will take for a model, from the model's header alone.

Formulas and tables follow the source of llama.cpp 0c1e570 (src/llama-kv-cache*.cpp, src/models/*.cpp,
ggml/src/ggml-cpu/repack.cpp and amx/). Buffers of dense models come out to within a few per cent; for mixtures of
experts and for recurrent models the working memory is an estimate that no measurement here backs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from miyabi_llm.gguf import Header, TensorInfo
from miyabi_llm.types import MemoryEstimate

MIB: Final = 1 << 20
MARGIN: Final = 512 * MIB  # left to the rest of the machine: a server that takes the last page makes all of it crawl
RUNTIME: Final = 70 * MIB  # vocabulary, graphs and libraries of llama-server, measured: 55 MiB anonymous, 15 mapped
CTX_STEP: Final = 256  # llama.cpp pads a context to this many tokens
UBATCH: Final = 512  # llama.cpp's default `--ubatch-size`
MAX_LAYERS: Final = 512  # LLAMA_MAX_LAYERS
AUTO_SLOTS: Final = 4  # llama-server: "n_parallel is set to auto, using n_parallel = 4 and kv_unified = true"

# cache type -> (elements per block, bytes per block)
KV_TYPES: Final[dict[str, tuple[int, int]]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
    "iq4_nl": (32, 18),
}

# architecture -> (layers in a period, whether its first layer is the full one, window when the header names none):
# `load_swa_pattern` and `n_swa` in src/models/*.cpp. Elsewhere `attention.sliding_window` is not used by llama.cpp.
_SLIDING: Final[dict[str, tuple[int, bool, int]]] = {
    "afmoe": (4, False, 0),
    "cohere2": (4, False, 0),
    "cohere2moe": (4, True, 0),
    "exaone-moe": (4, False, 128),
    "exaone4": (4, False, 0),
    "gemma-embedding": (6, False, 0),
    "gemma2": (2, False, 4096),
    "gemma3": (6, False, 0),
    "gemma3n": (5, False, 0),
    "gpt-oss": (2, False, 0),
    "laguna": (4, True, 0),
    "llama4": (4, False, 8192),
    "mellum": (4, False, 0),
    "olmo2": (4, False, 0),
    "plamo3": (8, False, 0),
    "smallthinker": (4, True, 0),
}
_FIXED_WINDOW: Final = {"llama4": 8192, "smallthinker": 4096}  # set in the source, whatever the header says
_LOOKED_UP: Final = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")  # rows, not products


@dataclass(frozen=True, slots=True)
class Use:
    """How llama-server is started, as far as its memory depends on it.

    `parallel` as in `-np`: that many slots, each with its part of the context; None for the default, four slots that
    share it. `repack` holds the processor's flags as the kernel names them: which tensors get a second copy in the
    layout its instructions want depends on them; empty means `--no-repack`. `runtime` is what the program takes
    beside its buffers, in bytes.
    """

    kv_type: str = "f16"
    parallel: int | None = None
    repack: frozenset[str] = frozenset()
    ubatch: int = UBATCH
    runtime: int = RUNTIME


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's cache: elements of K and V per token, and the tokens it can look back (None: all)."""

    k: int
    v: int
    window: int | None
    recurrent: bool


def estimate(header: Header, ctx: int, use: Use | None = None) -> MemoryEstimate:
    """Bytes that `llama-server -c ctx` takes on the CPU, weights mapped from the file."""
    use = use or Use()
    streams, sequences = _slots(use)
    kv = layer_caches(header, ctx, use)
    return MemoryEstimate(
        weights=header.weight_bytes,
        repack=repack_bytes(header, use.repack),
        kv=sum(kv),
        compute=compute_bytes(header, ctx, use) + 4 * (header.vocab_size or 0) * streams * sequences,
        runtime=use.runtime,
    )


def layer_caches(header: Header, ctx: int, use: Use) -> list[int]:
    """Bytes that each layer keeps of the context, in the order of the layers."""
    streams, sequences = _slots(use)
    state = _state_bytes(header) * streams * sequences
    return [
        state
        if layer.recurrent
        else streams * _cells(layer, ctx, use) * (_row(layer.k, use.kv_type) + _row(layer.v, use.kv_type))
        for layer in _layers(header)
    ]


def compute_bytes(header: Header, ctx: int, use: Use) -> int:
    """Working memory of one batch of `use.ubatch` tokens, without the row of results."""
    streams, _ = _slots(use)
    slides = max((_cells(layer, ctx, use) for layer in _layers(header) if layer.window is not None), default=0)
    return _compute(header, use.ubatch, _pad(_pad(ctx) // streams) + slides)


def largest_ctx(header: Header, budget: int, use: Use | None = None) -> int | None:
    """The most tokens of context, up to what the model was trained for, that fit `budget` bytes; None if none do."""
    least, most = 1, max(1, (header.context_length or 4096) // CTX_STEP)

    def fits(steps: int) -> bool:
        return estimate(header, steps * CTX_STEP, use).total <= budget

    if not fits(least):
        return None
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least * CTX_STEP


def _slots(use: Use) -> tuple[int, int]:
    """Caches, and sequences that share each of them."""
    return (1, AUTO_SLOTS) if use.parallel is None else (max(1, use.parallel), 1)


def _cells(layer: _Layer, ctx: int, use: Use) -> int:
    """Tokens that a layer's cache has room for, of one slot."""
    streams, sequences = _slots(use)
    full = _pad(_pad(ctx) // streams)
    return full if layer.window is None else _pad(min(full, layer.window * sequences + use.ubatch))


def repack_bytes(header: Header, flags: Collection[str]) -> int:
    """Bytes of the second copies that the CPU backend makes of the tensors it multiplies with."""
    tied = not any(t.name == "output.weight" for t in header.tensors)
    total = 0
    for t in header.tensors:
        is_matrix = t.name.endswith(".weight") and len(t.shape) in (2, 3)
        if is_matrix and (not t.name.startswith(_LOOKED_UP) or (tied and t.name == "token_embd.weight")):
            total += _amx_bytes(t, flags) or (t.nbytes if _repackable(t, flags) else 0)
    return total


def _amx_bytes(t: TensorInfo, flags: Collection[str]) -> int:
    """Size of a tensor in the layout of AMX tiles, 0 when it has none (amx.cpp `supports_op`, mmq.cpp `get_row_size`).

    Sums and minima take 4 bytes more per block in some types.
    """
    if not {"amx_int8", "avx512_vnni"} <= set(flags) or len(t.shape) != 2 or t.shape[1] % 32:
        return 0
    if t.type == "F16":
        return t.nbytes if t.shape[0] % 16 == 0 else 0
    per_block = {"Q4_0": 4, "Q4_1": 0, "Q8_0": 4, "Q4_K": 4, "Q5_K": 4, "Q6_K": 0, "IQ4_XS": 2}.get(t.type)
    if per_block is None:
        return 0
    block = 32 if t.type in ("Q4_0", "Q4_1", "Q8_0") else 256
    return t.nbytes + t.elements // block * per_block if t.shape[0] % block == 0 else 0


def _repackable(t: TensorInfo, flags: Collection[str]) -> bool:
    """`ggml_repack_get_optimal_repack_type` in repack.cpp: rows in groups of 8, or of 4 on ARM for some types."""
    neon = "asimd" in flags or "neon" in flags
    arm = neon and ("i8mm" in flags or "asimddp" in flags)
    rows = t.shape[1]
    if "avx2" in flags and t.type in ("Q4_0", "Q4_K", "IQ4_NL", "MXFP4"):
        return rows % 8 == 0
    if "avx512f" in flags and t.type == "Q2_K":
        return rows % 8 == 0
    if arm and t.type in ("Q4_K", "Q5_K", "Q6_K"):
        return rows % 8 == 0
    return arm and t.type in ("Q4_0", "Q8_0", "IQ4_NL", "MXFP4") and rows % 4 == 0


def _layers(header: Header) -> list[_Layer]:
    count = min((header.layers or 0) - (header.number("{arch}.nextn_predict_layers") or 0), MAX_LAYERS)
    heads = header.numbers("{arch}.attention.head_count")
    kv_heads = header.numbers("{arch}.attention.head_count_kv") or heads
    embedding = header.number("{arch}.embedding_length") or 0
    head = embedding // max(1, max(heads, default=1))
    k = header.number("{arch}.attention.key_length") or head
    v = header.number("{arch}.attention.value_length") or head
    k_sliding = header.number("{arch}.attention.key_length_swa") or k
    v_sliding = header.number("{arch}.attention.value_length_swa") or v
    if header.number("{arch}.attention.key_length_mla"):
        v = v_sliding = 0  # multi-head latent attention keeps one compressed row, in K
    interval = header.number("{arch}.full_attention_interval") or 1
    own = count - _shared(header)
    windows = _windows(header, count)
    layers = []
    for i in range(count):
        n = kv_heads[i] if len(kv_heads) > i else kv_heads[0] if len(kv_heads) == 1 else 0
        recurrent = n == 0 or (i + 1) % interval != 0
        if recurrent or i >= own:
            layers.append(_Layer(0, 0, None, recurrent))
        elif windows[i] is None:
            layers.append(_Layer(n * k, n * v, None, False))
        else:
            layers.append(_Layer(n * k_sliding, n * v_sliding, windows[i], False))
    return layers


def _shared(header: Header) -> int:
    """Last layers that use an earlier layer's cache."""
    if header.architecture == "gemma3n":
        return max(0, (header.layers or 0) - 20)  # gemma3n.cpp: n_layer_kv_from_start = 20
    return header.number("{arch}.attention.shared_kv_layers") or 0


def _windows(header: Header, count: int) -> list[int | None]:
    """For each layer the tokens it looks back, None for all."""
    arch = header.architecture
    period, first_full, default = _SLIDING.get(arch, (0, False, 0))
    named = header.number("{arch}.attention.sliding_window")
    window = default if named is None else named and _FIXED_WINDOW.get(arch, named)
    pattern = header.numbers("{arch}.attention.sliding_window_pattern")
    if not window or (not period and len(pattern) < count) or (arch == "exaone4" and count != 64):
        return [None] * count
    if len(pattern) >= count:
        return [window if slides else None for slides in pattern[:count]]
    period = pattern[0] if len(pattern) == 1 and pattern[0] > 0 else period
    full = 0 if first_full else period - 1
    return [None if i % period == full else window for i in range(count)]


def _compute(header: Header, ubatch: int, cells: int) -> int:
    """Working memory with flash attention: activations in F32, attention masks in F16.

    Fitted on two dense models, Qwen2.5 1.5B and Gemma 3 270M: 0.1% off with an F16 cache, 4% with a quantized one.
    """
    embedding = header.number("{arch}.embedding_length") or 0
    heads = max(header.numbers("{arch}.attention.head_count"), default=0)
    query = heads * (header.number("{arch}.attention.key_length") or embedding // max(1, heads))
    dense = max(header.numbers("{arch}.feed_forward_length"), default=0)
    expert = max(header.numbers("{arch}.expert_feed_forward_length"), default=0)
    used = max(header.numbers("{arch}.expert_used_count"), default=0)
    widest = max(dense, expert * used)
    return ubatch * 4 * (3 * widest + 3 * embedding + max(embedding, query)) + 2 * ubatch * cells


def _state_bytes(header: Header) -> int:
    """State of one recurrent layer and one sequence, in F32 (`n_embd_r`, `n_embd_s` in llama-hparams.cpp)."""
    inner = header.number("{arch}.ssm.inner_size") or 0
    state = header.number("{arch}.ssm.state_size") or 0
    groups = header.number("{arch}.ssm.group_count") or 0
    kernel = header.number("{arch}.ssm.conv_kernel") or 0
    short = header.number("{arch}.shortconv.l_cache") or 0
    embedding = header.number("{arch}.embedding_length") or 0
    conv = embedding * (short - 1) if short else max(0, kernel - 1) * (inner + 2 * groups * state)
    return 4 * (conv + state * inner)


def _row(elements: int, kv_type: str) -> int:
    block, size = KV_TYPES[kv_type]
    return -(-elements // block) * size


def _pad(ctx: int) -> int:
    return -(-ctx // CTX_STEP) * CTX_STEP
