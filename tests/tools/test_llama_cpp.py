"""Which llama.cpp is found, which is passed over, and why."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm.errors import BackendMissing
from miyabi_llm.tools import llama_cpp
from miyabi_llm.tools.llama_cpp import FLOOR, SERVER, find, inspect, judge, parse_version, search
from miyabi_llm.tools.program import Program, Unusable
from tests.tools.stubs import GOOD, HELP, script, server, settings


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("version: 10488 (abc1234)\nbuilt with cc", ("b10488", 10488, "abc1234")),
        ("warning: x\nversion: 0.5.0 (build 11312, commit 0c1e57098)\n", ("0.5.0 (b11312)", 11312, "0c1e57098")),
        ("version: 0.5.0-dev (build 1, commit 0c1e570)", ("0.5.0-dev", None, "0c1e570")),
        ("version: 0 (unknown)", ("b0", None, None)),
        ("", ("", None, None)),
        ("llama 3 stack version 2", ("", None, None)),
    ],
)
def test_versions(text: str, parsed: tuple[str, int | None, str | None]) -> None:
    assert parse_version(text) == parsed


def test_a_good_one_is_found(tmp_path: Path) -> None:
    place = server(tmp_path / "bin" / SERVER)
    program = find(SERVER, settings(tmp_path, tmp_path / "bin"))
    assert (program.path, program.argv, program.how, program.build) == (place, (str(place),), "path", 11312)
    assert {"--model", "--no-webui", "-c"} <= program.flags
    assert program.environment == {"LLAMA_API_KEY"}


BROKEN = {
    "crashes": ("kill -SEGV $$", "died of signal 11"),
    "garbage": ("head -c 300 /dev/urandom", "is no llama.cpp program"),
    "silent": ("exit 0", "is no llama.cpp program"),
    "hangs": ("sleep 30", "did not end within"),
    "help crashes": (f"case $1 in --version) echo '{GOOD}';; *) kill -ABRT $$;; esac", "--help died of signal 6"),
    "old": ("echo 'version: 4500 (abc1234)'", f"before b{FLOOR}"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_one_is_named_and_the_next_is_taken(tmp_path: Path, kind: str) -> None:
    text, reason = BROKEN[kind]
    bad = script(tmp_path / "bad" / SERVER, text + ("" if kind != "old" else f"\ncat <<'E'\n{HELP}\nE"))
    good = server(tmp_path / "good" / SERVER)
    found = search(SERVER, settings(tmp_path, tmp_path / "bad", tmp_path / "good"), timeout=0.5)
    assert found.program is not None
    assert found.program.path == good
    assert [r.path for r in found.rejected] == [bad]
    assert reason in found.rejected[0].reason


def test_nothing_usable_is_an_error_that_names_everything_seen(tmp_path: Path) -> None:
    with pytest.raises(BackendMissing, match="llama-server is not installed") as e:
        find(SERVER, settings(tmp_path))
    assert "backend install" in str(e.value.hint)
    script(tmp_path / "bad" / SERVER, "exit 1")
    with pytest.raises(BackendMissing, match=r"bad/llama-server is no llama\.cpp program") as e:
        find(SERVER, settings(tmp_path, tmp_path / "bad"))
    assert e.value.exit_code == 3


def test_the_unified_program_is_called_by_its_word(tmp_path: Path) -> None:
    place = server(tmp_path / "bin" / "llama")
    program = find(SERVER, settings(tmp_path, tmp_path / "bin"))
    assert program.argv == (str(place), "serve")
    assert find("llama-quantize", settings(tmp_path, tmp_path / "bin")).argv == (str(place), "quantize")
    assert search("llama-imatrix", settings(tmp_path, tmp_path / "bin")).program is None


def test_another_program_called_llama_is_not_ours(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "llama", "echo 'llama-stack 0.2.1'")
    found = search(SERVER, settings(tmp_path, tmp_path / "bin"))
    assert found.program is None
    assert "llama-stack 0.2.1" in found.rejected[0].reason


def test_a_tool_that_says_no_version_is_judged_by_its_help(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "llama-quantize", "echo 'usage: llama-quantize'; echo '  --dry-run'; exit 1")
    program = find("llama-quantize", settings(tmp_path, tmp_path / "bin"))
    assert (program.version, program.flags) == ("", {"--dry-run"})


def test_nothing_is_run_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server(tmp_path / "here" / SERVER)
    monkeypatch.chdir(tmp_path / "here")
    s = settings(tmp_path)
    s = replace(s, env={**s.env, "PATH": f".::{tmp_path}/none"})
    assert search(SERVER, s).rejected == ()
    assert search(SERVER, s).program is None


def test_judging() -> None:
    good = Program(SERVER, Path("/x"), ("/x",), "b", "path", FLOOR, None, llama_cpp.REQUIRED)
    assert judge(good) is None
    assert "known memory errors" in str(judge(replace(good, build=FLOOR - 1)))
    assert judge(replace(good, build=None)) is None
    assert "--cache-ram" in str(judge(replace(good, build=None, flags=llama_cpp.REQUIRED - {"--cache-ram"})))
    assert "no flags" in str(judge(replace(good, name="llama-bench", flags=frozenset())))


def test_many_hanging_ones_do_not_add_up_without_bound(tmp_path: Path) -> None:
    place = script(tmp_path / "p", "sleep 30")
    start = time.monotonic()
    assert isinstance(inspect(place, timeout=0.2), Unusable)
    assert time.monotonic() - start < 1.5
