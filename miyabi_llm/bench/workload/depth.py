"""Questions at a context depth: text before each, so that the model answers with so many tokens behind it. Pure."""

from __future__ import annotations

import random
from dataclasses import replace

from miyabi_llm.bench.workload.load import Workload
from miyabi_llm.bench.workload.prompts import begin_with

# Each is one token, with the space before it, in the vocabularies of the usual models; so is the full stop.
_COMMON = (
    "the of and to in is was for on that with he be at by had it not are but from or have an they which one you were"
    " all her she there would their we him been has when who will no more if out so up said what its about than into"
    " them can only other time new some could these two may first then do any like my now over such our man me even"
    " most made after also did many off before must well back through years much where your way down should because"
    " long each just state those people too mr how little good world make very year still see own work men day get here"
    " old life both between being under three never know same last another while us might great go come since against"
)
WORDS = tuple(_COMMON.split())
SENTENCE = 12  # words


def deepened(workload: Workload, tokens: int, seed: int = 0) -> Workload:
    """The workload with about `tokens` tokens of common words before each question, other ones before each.

    How many they really are depends on the model's vocabulary: the server's own count is the metric `prompt_tokens`.
    """
    if tokens <= 0:
        return workload
    items = (begin_with(item, filler(tokens, f"{seed}:{i}")) for i, item in enumerate(workload.items))
    return replace(workload, items=tuple(items))


def filler(tokens: int, seed: str) -> str:
    """About `tokens` tokens of words without meaning, and a blank line."""
    chosen = random.Random(seed)
    sentences = []
    while tokens > 0:
        count = min(SENTENCE, max(1, tokens - 1))
        sentences.append(" ".join(chosen.choices(WORDS, k=count)) + ".")
        tokens -= count + 1
    return " ".join(sentences) + "\n\n"
