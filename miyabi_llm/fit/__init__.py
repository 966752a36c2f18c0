"""Whether a model fits a machine, how, and which of its files does."""

from miyabi_llm.fit.find import find_header, read_header, server_uses_amx
from miyabi_llm.fit.judge import facts, judge
from miyabi_llm.fit.values import Choice, Facts, Fit, GpuLayers, How, Quant

__all__ = [
    "Choice",
    "Facts",
    "Fit",
    "GpuLayers",
    "How",
    "Quant",
    "facts",
    "find_header",
    "judge",
    "read_header",
    "server_uses_amx",
]
