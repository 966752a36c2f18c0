"""What holds for every command: its output's fate, mistakes in its words, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from miyabi_llm.cli import execute
from miyabi_llm.cli.app import COMMANDS
from tests.openaid import Openaid, serving

MIYABI = [sys.executable, "-m", "miyabi_llm"]
posix = pytest.mark.skipif(os.name != "posix", reason="pipes and devices as POSIX has them")


@pytest.fixture(scope="module")
def server() -> Iterator[Openaid]:
    with serving() as s:
        yield s


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def env(request: pytest.FixtureRequest) -> dict[str, str]:
    return os.environ | {"PYTHONUNBUFFERED": request.param}


def piped(command: list[str], reader: str, env: dict[str, str]) -> tuple[int, str, str]:
    """`command | reader`: the command's exit code and stderr, what the reader printed."""
    with (
        subprocess.Popen(
            [*MIYABI, *command], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process,
        subprocess.Popen(["sh", "-c", reader], stdin=process.stdout, stdout=subprocess.PIPE) as head,
    ):
        assert process.stdout is not None
        process.stdout.close()
        seen = head.communicate(timeout=60)[0]
        err = process.communicate(timeout=60)[1]
    return process.returncode, err.decode(), seen.decode()


@posix
@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["--help"], ["doctor", "--json"]])
def test_a_reader_that_left_is_no_failure(command: list[str], env: dict[str, str]) -> None:
    """C1: `| head`."""
    code, err, _ = piped(command, "exec 0<&-; true", env)
    assert code in (0, 1, 141), err  # 1: doctor's own verdict
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
    assert "Exception ignored" not in err


@posix
def test_a_reader_that_has_enough_of_an_answer(server: Openaid, env: dict[str, str]) -> None:
    server.gone.clear()
    code, err, seen = piped(["run", "slow", "hi", "--url", server.url], "head -c 5", env)
    assert (code, err, seen) == (141, "", "w0 w1")
    assert server.gone.wait(5), "the server goes on for nobody"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", [["list", "--json"], ["--help"], ["--version"], ["resolve", "nosuch", "--json"]])
def test_a_full_disk_behind_stdout_is_one_line(command: list[str], env: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*MIYABI, *command], env=env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "miyabi-llm: standard output: No space left on device"
    assert "Traceback" not in done.stderr
    with open("/dev/full", "w") as full:
        done = subprocess.run([*MIYABI, "rm", "nosuch"], env=env, stderr=full, timeout=60)
    assert done.returncode == 3, "stderr that nobody can read changes nothing"


@posix
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams(closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *MIYABI, "list", "--json"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout in ("", "[]\n")


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_letters_the_terminal_does_not_have(server: Openaid, locale: dict[str, str]) -> None:
    environment = os.environ | locale
    command = [*MIYABI, "run", "normal", "日本語で", "--url", server.url]
    options = {"env": environment, "stdin": subprocess.DEVNULL, "capture_output": True, "timeout": 60}
    done = subprocess.run(command, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("ascii") == "Hello, \\u4e16\\u754c \\U0001f38c.\n"
    done = subprocess.run([*command, "--json"], **options)  # type: ignore[call-overload]
    assert json.loads(done.stdout.decode("ascii"))["text"] == "Hello, 世界 🎌."


def test_without_a_home_variable(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "HOME"}
    for command in (["list", "--json"], ["doctor", "--json"], ["ps"]):
        done = subprocess.run([*MIYABI, *command], env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert "Traceback" not in done.stderr, command
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["pul"], "Did you mean 'pull'?"),
        (["backend", "instal"], "Did you mean 'install'"),
        (["pull"], "Missing argument"),
        (["list", "--nonsense"], "--nonsense"),
        (["serve", "m", "--port", "many"], "--port"),
    ],
)
def test_mistakes_in_the_words(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(argv) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""
    assert execute([*argv, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["exit_code"]) == ("usage", 2)
    assert words in error["message"]


def test_json_after_two_dashes_is_not_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["serve", "nosuch", "--", "--json"]) == 3
    assert capsys.readouterr().out == ""


def complete(words: str) -> list[str]:
    """What bash would be offered after `words`."""
    environment = os.environ | {
        "_MIYABI_LLM_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", "from miyabi_llm.cli import main; main()"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


def test_completion() -> None:
    assert complete("miyabi-llm pu") == ["pull"]
    assert complete("miyabi-llm backend in") == ["install"]
    assert complete("miyabi-llm serve --det") == ["--detach"]
    assert complete("miyabi-llm backend install --to") == ["--tools"]


@pytest.mark.parametrize("command", COMMANDS)
def test_only_the_root_installs_completion(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([command, "--help"]) == 0
    assert "--install-completion" not in capsys.readouterr().out
    assert execute(["--help"]) == 0
    assert "--install-completion" in capsys.readouterr().out
