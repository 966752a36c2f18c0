"""Whether a model fits a machine, how, and which of its files does."""

from miyabi_llm.calibration import server_uses_amx
from miyabi_llm.fit.find import find, find_header, read_header
from miyabi_llm.fit.judge import facts, judge
from miyabi_llm.fit.plan import expected, how_here
from miyabi_llm.fit.report import backend_for, elsewhere, machine_of, report
from miyabi_llm.fit.values import Choice, Facts, Fit, Found, GpuLayers, How, Quant

__all__ = [
    "Choice",
    "Facts",
    "Fit",
    "Found",
    "GpuLayers",
    "How",
    "Quant",
    "backend_for",
    "elsewhere",
    "expected",
    "facts",
    "find",
    "find_header",
    "how_here",
    "judge",
    "machine_of",
    "read_header",
    "report",
    "server_uses_amx",
]
