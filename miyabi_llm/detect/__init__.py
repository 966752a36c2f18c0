"""Secrets and personal data in text, English and Japanese: patterns with check digits, standard library only."""

from miyabi_llm.detect.scanner import SHORT, LateError, cached, examine, mask, scan
from miyabi_llm.detect.values import CLEAN, Cache, Hit, Names, Options, Result

__all__ = [
    "CLEAN",
    "SHORT",
    "Cache",
    "Hit",
    "LateError",
    "Names",
    "Options",
    "Result",
    "cached",
    "examine",
    "mask",
    "scan",
]
