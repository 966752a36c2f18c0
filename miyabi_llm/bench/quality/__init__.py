"""Quality: small task sets with exact checks, asked deterministically and compared item by item."""

from miyabi_llm.bench.quality.compare import Comparison, compare
from miyabi_llm.bench.quality.run import Subject, measure
from miyabi_llm.bench.quality.stored import read_report, write_report
from miyabi_llm.bench.quality.tasks import BUILT_IN, load_tasks
from miyabi_llm.bench.quality.values import How, Report, TaskSet

__all__ = [
    "BUILT_IN",
    "Comparison",
    "How",
    "Report",
    "Subject",
    "TaskSet",
    "compare",
    "load_tasks",
    "measure",
    "read_report",
    "write_report",
]
