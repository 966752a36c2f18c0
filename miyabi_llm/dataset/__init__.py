"""Data to learn from: reading it in any of its forms, judging it, splitting it. Nothing here imports torch."""

from miyabi_llm.dataset.files import read
from miyabi_llm.dataset.split import split
from miyabi_llm.dataset.values import KINDS, NEEDED, Problem, Read, Reading, Row

__all__ = ["KINDS", "NEEDED", "Problem", "Read", "Reading", "Row", "read", "split"]
