"""Checkpoints: whole or not at all, and what is damaged is passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm.engines import checkpoints


def made(root: Path, step: int) -> Path:
    """A published checkpoint."""
    staged = root / ".staging" / f"checkpoint-{step}"
    (staged / "deep").mkdir(parents=True)
    (staged / "weights.bin").write_bytes(bytes(range(200)) * step)
    (staged / "deep" / "state.json").write_text(f'{{"step": {step}}}')
    target = root / f"step-{step}"
    checkpoints.publish(staged, target, step=step, identity="abc")
    return target


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    made(tmp_path, 9)
    newest = made(tmp_path, 10)
    assert checkpoints.newest(tmp_path) == (newest, ())
    assert checkpoints.manifest(newest)["identity"] == "abc"


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest", "no manifest", "extra", "list"])
def test_a_damaged_one_is_passed_over_with_its_reason(tmp_path: Path, damage: str) -> None:
    good, bad = made(tmp_path, 1), made(tmp_path, 2)
    weights, told = bad / "weights.bin", bad / "manifest.json"
    data = weights.read_bytes()
    match damage:
        case "truncate":
            weights.write_bytes(data[:-1])
        case "flip":
            weights.write_bytes(bytes((data[0] ^ 1,)) + data[1:])
        case "remove":
            weights.unlink()
        case "manifest":
            told.write_text(told.read_text()[:20])
        case "no manifest":
            told.unlink()
        case "list":
            told.write_text('{"files": []}')
        case "extra":
            (bad / "other").write_text("x")
    found, skipped = checkpoints.newest(tmp_path)
    assert found == good
    assert [s.folder for s in skipped] == [bad]
    assert skipped[0].why


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 10, 9, 1):
        made(tmp_path, step)
    (tmp_path / ".step-3.gone").mkdir()
    checkpoints.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".staging", "step-10", "step-9"]


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_no_manifest_makes_it_fail(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("m")
    (folder / "manifest.json").write_bytes(data)
    assert checkpoints.wrong(folder) or b"{" in data
