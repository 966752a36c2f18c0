"""Judge this machine: every finding that is not fine comes with the command that mends it."""

from miyabi_llm.doctor.examine import BUDGET, examine
from miyabi_llm.doctor.judge import worst

__all__ = ["BUDGET", "examine", "worst"]
