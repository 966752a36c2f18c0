"""The environment a child gets: an allow-list of the user's, plus what the plan adds."""

from __future__ import annotations

from collections.abc import Mapping

from miyabi_llm.types import Secret

NONCE = "MIYABI_LAUNCH"  # one random word per launch: the mark by which a later start recognises leftovers

_NAMES = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "TERM"),
        *("LD_LIBRARY_PATH", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"),
    )
)
# Graphics and compute runtimes, thread pools, and the servers' own switches.
_PREFIXES = (
    *(
        "CUDA_",
        "NVIDIA_",
        "NCCL_",
        "HIP_",
        "HSA_",
        "ROCR_",
        "ROCM_",
        "AMD_",
        "GPU_",
        "MIOPEN_",
        "ZE_",
        "SYCL_",
        "ONEAPI_",
    ),
    *("VK_", "MTL_", "METAL_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "GGML_", "LLAMA_", "LC_"),
)
# The address and the key are the plan's to say: a forgotten variable must neither open nor lock a server.
_NEVER = frozenset(("LLAMA_API_KEY", "LLAMA_ARG_API_KEY_FILE", "LLAMA_ARG_HOST", "LLAMA_ARG_PORT", "LLAMA_ARG_ALIAS"))

# How often a thread of GNU OpenMP looks for its fellows before it sleeps. By default it looks for very long: on a
# machine that has anything else to do, llama.cpp then loses up to nine tenths of its speed. Measured with the 1.5B
# model on two busy cores: 1.2 tokens/s by default, 5.0 with this on even busier ones; idle no difference (14 and 14).
_PATIENCE = {"GOMP_SPINCOUNT": "10000"}
_PATIENCE_SET = frozenset(("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))


def allowed(env: Mapping[str, str]) -> dict[str, str]:
    """The part of `env` a server may see: no keys, no LD_PRELOAD, no PYTHONPATH, no proxies."""
    return {k: v for k, v in env.items() if k not in _NEVER and (k in _NAMES or k.startswith(_PREFIXES))}


def child_environment(env: Mapping[str, str], extra: Mapping[str, str | Secret], nonce: str) -> dict[str, str]:
    """The whole environment of a child. The only place where a plan's secrets are revealed.

    Waiting threads are told to sleep early, unless the user says otherwise.
    """
    own = {} if _PATIENCE_SET & env.keys() else _PATIENCE
    added = {k: v.reveal() if isinstance(v, Secret) else v for k, v in extra.items()}
    return own | allowed(env) | added | {NONCE: nonce}
