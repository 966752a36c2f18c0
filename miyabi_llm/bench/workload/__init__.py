"""What is asked: built-in and own workloads, and the sources that make calls of them."""

from miyabi_llm.bench.workload.load import BUILT_IN, Workload, load_workload
from miyabi_llm.bench.workload.paired import Pair, Paired
from miyabi_llm.bench.workload.questions import Questions

__all__ = ["BUILT_IN", "Pair", "Paired", "Questions", "Workload", "load_workload"]
