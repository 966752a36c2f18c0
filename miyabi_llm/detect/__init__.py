"""Secrets and personal data in text, English and Japanese: patterns with check digits, standard library only."""

from miyabi_llm.detect.scanner import cached, examine, mask, scan
from miyabi_llm.detect.values import Cache, Hit, Options, Result

__all__ = ["Cache", "Hit", "Options", "Result", "cached", "examine", "mask", "scan"]
