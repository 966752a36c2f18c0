"""Recall, precision and false alarms of the detectors, on made-up texts they were not written for.

    pip install faker
    python benchmarks/detect.py --tune            # pool a, seed 1: what may be looked at
    python benchmarks/detect.py --seed 20261129   # pool b: the figures of docs/explanation/detectors.md

A text counts as caught when anything in it is found (that is what keeps it here); `kind` counts those whose kind was
right as well. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from detect_texts import FREE, SECRETS, Text, negatives, positives

from miyabi_llm import detect

FAMILY = {
    "licence": "licence-jp", "passport": "passport", "insurance": "insurance-jp", "pension": "pension-jp",
    "residence-card": "residence-card-jp", "name-ja": "name", "name-en": "name", "address-us": "address-us",
    "bearer-token": "bearer-token", "azure-key": "azure-key",
}  # fmt: skip


def wilson(hit: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    if not n:
        return 0.0, 1.0
    z, p = 1.959964, hit / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def share(hit: int, n: int) -> str:
    """`0.97 (0.95-0.98)`."""
    low, high = wilson(hit, n)
    return f"{hit / n if n else 0:.3f} ({low:.3f}-{high:.3f})"


def kinds(text: Text) -> set[str]:
    """Kinds of what is found in a text."""
    return {h.kind for h in detect.scan(text.text)}


def measure(seed: int, pool: int, each: int, *, disguised: bool, show: bool) -> None:
    """One table."""
    found: dict[str, list[set[str]]] = defaultdict(list)
    by_disguise: dict[str, list[bool]] = defaultdict(list)
    alarms: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for text in positives(seed, pool, each, disguised=disguised):
        hits = kinds(text)
        found[text.kind].append(hits)
        by_disguise[text.disguise].append(bool(hits))
        alarms.update(hits)
        want = FAMILY.get(text.kind, text.kind)
        right[want] += want in hits
        if show and not hits:
            print(f"  missed {text.kind} ({text.disguise}): {text.text[:160]!r}")
    false: dict[str, list[bool]] = defaultdict(list)
    for text in negatives(seed + 7, pool, each * 10):
        hits = kinds(text)
        false[text.language].append(bool(hits))
        alarms.update(hits)
        if show and hits:
            print(f"  alarm {sorted(hits)} in {text.language}: {text.text[:300]!r}")
    print(f"\n{'disguised' if disguised else 'plain'}: {each} texts per kind and language\n")
    print("| kind | texts | caught (95 %) | right kind | precision |\n| --- | --- | --- | --- | --- |")
    groups: dict[str, list[bool]] = defaultdict(list)
    for kind, results in found.items():
        want = FAMILY.get(kind, kind)
        caught = sum(map(bool, results))
        precision = f"{right[want] / alarms[want]:.3f}" if alarms[want] else "-"
        print(f"| {kind} | {len(results)} | {share(caught, len(results))} | "
              f"{sum(want in r for r in results) / len(results):.3f} | {precision} |")  # fmt: skip
        groups["secrets" if kind in SECRETS else "words" if kind in FREE else "personal, structured"] += map(
            bool, results
        )
    for name, values in groups.items():
        print(f"| **{name}** | {len(values)} | {share(sum(values), len(values))} | | |")
    if disguised:
        print("\n| disguise | texts | caught |\n| --- | --- | --- |")
        for name, values in sorted(by_disguise.items()):
            print(f"| {name} | {len(values)} | {share(sum(values), len(values))} |")
    print("\n| clean texts | texts | false alarms (95 %) |\n| --- | --- | --- |")
    for language, values in false.items():
        print(f"| {language} | {len(values)} | {share(sum(values), len(values))} |")


def bare_names(seed: int, count: int = 1000) -> None:
    """Japanese names that nothing says to be names, by the lists of the extra `names`."""
    from detect_texts import Maker

    from miyabi_llm.route.names import names

    options = detect.Options(names=names())
    maker = Maker(seed)
    texts = [f"昨日{maker.ja.name().replace(' ', maker.r.choice(['', ' ']))}が来たと聞いた" for _ in range(count)]
    caught = sum(bool(detect.scan(text, options)) for text in texts)
    clean = [t.text for t in negatives(seed, 1, count) if t.language == "ja"]
    false = sum(bool(detect.scan(text, options)) for text in clean)
    print(f"\nbare names: {share(caught, count)} of {count}; false alarms {share(false, len(clean))} of {len(clean)}")


def speed() -> None:
    """Seconds for one megabyte of clean text of each language."""
    print("\n| text | MB/s |\n| --- | --- |")
    for language in ("en", "ja", "code"):
        parts = [t.text for t in negatives(3, 0, 3000) if t.language == language]
        text = "\n".join(parts)
        while len(text) < 1_000_000:
            text += text
        text = text[:1_000_000]
        begin = time.perf_counter()
        detect.examine(text)
        print(f"| {language} | {len(text.encode()) / 1e6 / (time.perf_counter() - begin):.1f} |")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="pool a, and show what was missed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--each", type=int, default=200, help="texts per kind and language")
    parser.add_argument("--c", action="store_true", help="pool c for passwords, b for the rest")
    parser.add_argument("--no-speed", action="store_true", help="leave the megabytes per second out")
    parser.add_argument("--names", action="store_true", help="only bare Japanese names, with the extra `names`")
    args = parser.parse_args()
    if args.names:
        bare_names(args.seed)
        return
    pool, each = (0, min(args.each, 60)) if args.tune else (1 + args.c, args.each)
    for disguised in (False, True):
        measure(args.seed + disguised, pool, each, disguised=disguised, show=args.tune)
    if not args.no_speed:
        speed()


if __name__ == "__main__":
    main()
