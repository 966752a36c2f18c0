"""Planted faults of the programs: killed at work, a disk that is full. One clear line, and nothing is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm import quantize
from miyabi_llm.errors import DiskFull, MiyabiError
from miyabi_llm.quantize import Order, Source
from miyabi_llm.quantize.run import Shop
from miyabi_llm.tools import quantizing
from miyabi_llm.tools.program import Program
from miyabi_llm.tools.quantizing import Window

ORDER = Order(types=("Q4_0",), window=Window(chunks=2))
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason=f"no {FULL} on this system")


def failing(shop: Shop, name: str, script: str, folder: Path) -> Shop:
    """A shop whose program `name` runs `script` before it becomes the real one, except for --help and --dry-run."""
    real, fake = shop.programs[name], folder / name
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in *--help*|*--dry-run*) exec {real.path} "$@";; esac\n{script}\nexec {real.path} "$@"\n'
    )
    fake.chmod(0o755)
    other = Program(real.name, fake, (str(fake),), real.version, real.how, real.build, real.commit, real.flags)
    return replace(shop, programs={**shop.programs, name: other})


def test_a_quantizer_that_is_killed(source: Source, shop: Shop, tmp_path: Path) -> None:
    """It leaves the half of a file; nothing of it stays, and the signal is named."""
    half = 'for a; do case "$a" in *.part) head -c 4096 /dev/zero > "$a"; kill -9 $$;; esac; done'
    with pytest.raises(MiyabiError, match="llama-quantize died of signal 9"):
        quantize.quantize(source, ORDER, failing(shop, quantizing.QUANTIZE, half, tmp_path))
    assert shop.store.list() == []


@needs_full
def test_a_disk_that_is_full_while_a_file_is_written(source: Source, shop: Shop, tmp_path: Path) -> None:
    """The real program writes to a device without room."""
    link = f'for a; do case "$a" in *.part) ln -sf {FULL} "$a";; esac; done'
    with pytest.raises(DiskFull, match="llama-quantize could not write all of its file") as e:
        quantize.quantize(source, ORDER, failing(shop, quantizing.QUANTIZE, link, tmp_path))
    assert e.value.exit_code == 4
    assert shop.store.list() == []


@needs_full
def test_a_disk_that_is_full_while_the_base_is_recorded(source: Source, shop: Shop, tmp_path: Path) -> None:
    """The real program does not look whether its bytes arrive, and ends with code 0."""
    link = f'for a; do case "$a" in *.kld) ln -sf {FULL} "$a";; esac; done'
    with pytest.raises(DiskFull, match="llama-perplexity did not write all of its file"):
        quantize.quantize(source, ORDER, failing(shop, quantizing.PERPLEXITY, link, tmp_path))
    assert shop.store.list() == []
    assert list((shop.settings.cache / "quantize" / "bases").glob("*.kld")) == []
