"""Whether a model fits a machine, how, and which of its files does."""

from miyabi_llm.calibration import server_uses_amx
from miyabi_llm.fit.find import find_header, read_header
from miyabi_llm.fit.judge import facts, judge
from miyabi_llm.fit.plan import expected, how_here
from miyabi_llm.fit.values import Choice, Facts, Fit, GpuLayers, How, Quant

__all__ = [
    "Choice",
    "Facts",
    "Fit",
    "GpuLayers",
    "How",
    "Quant",
    "expected",
    "facts",
    "find_header",
    "how_here",
    "judge",
    "read_header",
    "server_uses_amx",
]
