"""Programs that hang, flood, crash or belong elsewhere are outlived."""

import os
import time
from pathlib import Path

import pytest

from miyabi_llm.tools.program import parse_environment, parse_flags, run_briefly
from tests.tools.stubs import alive_in_group, script


def test_a_good_program_is_heard_on_both_streams(tmp_path: Path) -> None:
    ran = run_briefly([str(script(tmp_path / "p", "echo out; echo err >&2; exit 3"))])
    assert (ran.code, sorted(ran.text.split()), ran.trouble) == (3, ["err", "out"], None)


@pytest.mark.parametrize("text", ["sleep 60", "sleep 60 & sleep 60", "trap '' TERM; while :; do sleep 1; done"])
def test_a_hanging_program_is_killed_with_its_children(tmp_path: Path, text: str) -> None:
    start = time.monotonic()
    ran = run_briefly([str(script(tmp_path / "p", f"echo $$; {text}"))], timeout=0.3)
    assert ran.code is None
    assert ran.trouble == "did not end within 0.3 s"
    assert time.monotonic() - start < 2
    group = int(ran.text.split()[0])
    deadline = time.monotonic() + 5
    while alive_in_group(group) and time.monotonic() < deadline:
        time.sleep(0.01)  # the signal was sent; dying takes a moment
    assert alive_in_group(group) == []


def test_a_child_that_keeps_the_pipe_does_not_keep_us(tmp_path: Path) -> None:
    start = time.monotonic()
    ran = run_briefly([str(script(tmp_path / "p", "sleep 5 & echo done"))], timeout=0.5)
    assert "done" in ran.text
    assert time.monotonic() - start < 2


def test_a_flooding_program_is_cut(tmp_path: Path) -> None:
    ran = run_briefly([str(script(tmp_path / "p", "while :; do echo flood flood flood; done"))], timeout=2, limit=4096)
    assert ran.trouble is not None
    assert len(ran.text) <= 4096


def test_a_crash_is_told(tmp_path: Path) -> None:
    assert run_briefly([str(script(tmp_path / "p", "kill -SEGV $$"))]).trouble == "died of signal 11"


def test_programs_that_cannot_be_started(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xff\xfe" + bytes(200))
    garbage.chmod(0o755)
    orphan = tmp_path / "orphan"
    orphan.write_text("#!/no/such/interpreter\n")
    orphan.chmod(0o755)
    assert "not a program of this machine" in str(run_briefly([str(garbage)]).trouble)
    assert "missing" in str(run_briefly([str(orphan)]).trouble)
    assert "missing" in str(run_briefly([str(tmp_path / "nothing")]).trouble)
    assert "cannot be started" in str(run_briefly([str(tmp_path)]).trouble)


def test_no_file_descriptor_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for text in ("echo x", "sleep 9", "exit 1"):
        run_briefly([str(script(tmp_path / "p", text))], timeout=0.2)
    run_briefly([str(tmp_path / "nothing")])
    time.sleep(0.05)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_flags_of_the_server_and_of_the_tools() -> None:
    text = """----- common params -----
-fa,   --flash-attn [on|off|auto]       set Flash Attention use, see --other
--ui,  --webui, --no-ui, --no-webui     whether to enable the Web UI
--fim-qwen-1.5b-default                 use a default
                                        --not-a-flag in a description
                                        (env: LLAMA_ARG_UI)
  -m, --model <filename>                (default: x)
  --dry-run
"""
    assert parse_flags(text) == {
        *("-fa", "--flash-attn", "--ui", "--webui", "--no-ui", "--no-webui"),
        *("--fim-qwen-1.5b-default", "-m", "--model", "--dry-run"),
    }
    assert parse_environment(text) == {"LLAMA_ARG_UI"}
