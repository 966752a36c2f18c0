"""The command `run`: once for a script, and a chat in a real terminal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from miyabi_llm import chat
from miyabi_llm.cli import repl_input
from miyabi_llm.cli.answer import summary, visible
from miyabi_llm.client import Stats
from tests.openaid import Openaid, serving

RUN = [sys.executable, "-m", "miyabi_llm", "run"]
DIFF = "-    return 1\n+    return 2\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Openaid]:
    with serving() as s:
        yield s


def run(server: Openaid, *args: str, stdin: str | bytes | None = None) -> subprocess.CompletedProcess[str]:
    """`run ARGS --url ...` in a process of its own; without `stdin` it reads /dev/null."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        [*RUN, "--url", server.url, *args],
        stdin=subprocess.DEVNULL if data is None else None,
        input=data,
        capture_output=True,
        timeout=60,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


# --- once


def test_the_answer_is_all_there_is_on_stdout(server: Openaid) -> None:
    done = run(
        server, "normal", "hello", "there", "--temp", "0", "--seed", "7", "--system", "be brief", "--stop", "END"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello, 世界 🎌.\n", "")
    sent = server.asked[-1]
    assert sent["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello there"}]
    assert (sent["temperature"], sent["seed"], sent["stop"], sent["model"]) == (0, 7, ["END"], "normal")


def test_piped_text_is_what_the_prompt_is_about(server: Openaid) -> None:
    assert run(server, "normal", "review this", stdin=DIFF).returncode == 0
    assert server.asked[-1]["messages"][-1]["content"] == f"review this\n\n```\n{DIFF}```"


def test_a_pipe_alone_is_the_prompt_and_the_first_model_answers(server: Openaid) -> None:
    assert run(server, stdin="hello").stdout == "Hello, 世界 🎌.\n"
    assert server.asked[-1]["messages"] == [{"role": "user", "content": "hello"}]
    assert server.asked[-1]["model"] == "normal"


def test_an_empty_pipe_is_said_to_be_empty(server: Openaid) -> None:
    done = run(server, "normal", "review this", stdin="")
    assert done.returncode == 0
    assert done.stderr == "warning: standard input is empty; the prompt is asked alone\n"


def test_bytes_that_are_not_text_are_replaced_aloud(server: Openaid) -> None:
    done = run(server, "normal", stdin=b"caf\xe9")
    assert "not UTF-8" in done.stderr
    assert server.asked[-1]["messages"][-1]["content"] == "caf\N{REPLACEMENT CHARACTER}"


def test_nothing_to_ask(server: Openaid) -> None:
    done = run(server, "normal")
    assert done.returncode == 2
    assert "nothing to ask" in done.stderr


def test_one_json_document(server: Openaid) -> None:
    done = run(server, "counted", "hi", "--json", "--stats")
    body = json.loads(done.stdout)
    assert (body["text"], body["reasoning"], body["finish_reason"]) == ("42", "hm", "stop")
    assert (body["model"], body["endpoint"]) == ("counted", server.url)
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "cached_tokens": 2}
    assert body["stats"]["tokens_per_second"] == 12.5
    assert body["stats"]["ttft_s"] > 0
    assert "TTFT" in done.stderr


def test_a_cut_answer_fails_and_its_part_is_kept(server: Openaid) -> None:
    done = run(server, "error", "hi", "--json")
    body = json.loads(done.stdout)["error"]
    assert (done.returncode, body["code"], body["details"]["text"]) == (1, "answer-cut", "Hel")
    done = run(server, "error", "hi")
    assert (done.returncode, done.stdout) == (1, "Hel\n")
    assert "out of memory" in done.stderr


def test_an_unfinished_answer_is_said_to_be(server: Openaid) -> None:
    done = run(server, "length", "hi", "--max-tokens", "2")
    assert done.returncode == 0
    assert "stopped at the limit of --max-tokens" in done.stderr


def test_an_answer_that_follows_a_schema(server: Openaid, tmp_path: Path) -> None:
    schema = tmp_path / "s.json"
    schema.write_text('{"type": "object"}')
    done = run(server, "json", "hi", "--schema", str(schema), "--json")
    assert json.loads(done.stdout)["value"] == {"answer": 42}
    assert server.asked[-1]["response_format"]["json_schema"]["schema"] == {"type": "object"}
    done = run(server, "normal", "hi", "--schema", str(schema))
    assert done.returncode == 1
    assert "does not follow the schema: not JSON" in done.stderr
    schema.write_text('{"properties": {"answer": {"type": "string"}}}')
    done = run(server, "json", "hi", "--schema", str(schema), "--json")
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["message"] == "the answer does not follow the schema: $.answer: 42 is not of type 'string'"
    assert error["details"]["text"] == '{"answer": 42}'


def test_a_schema_that_is_none_is_not_sent(server: Openaid, tmp_path: Path) -> None:
    schema, asked = tmp_path / "s.json", len(server.asked)
    schema.write_text('{"properties": {"answer": {"type": "strng"}}}')
    done = run(server, "json", "hi", "--schema", str(schema))
    assert done.returncode == 2
    assert "$.properties.answer.type: 'strng'" in done.stderr
    assert len(server.asked) == asked


def test_what_is_typed_wrong(server: Openaid, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[1]")
    for args, words in (
        (["normal", "hi", "--temp", "9"], "between 0 and 5"),
        (["normal", "hi", "--schema", str(tmp_path / "none.json")], "No such file"),
        (["normal", "hi", "--schema", str(tmp_path / "bad.json")], "is an object"),
        (["normal", "hi", "--key-env", "NOT_SET"], "NOT_SET is not set"),
        (["normal", "hi", "--ctx", "4096"], "--url starts none"),
        (["normal", "--chat", "--json"], "no one answer"),
    ):
        done = run(server, *args)
        assert (done.returncode, words in done.stderr) == (2, True), (args, done.stderr)


def test_a_key_is_named_not_given(server: Openaid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESAME", "open")
    assert run(server, "normal", "hi", "--key-env", "SESAME").returncode == 0
    assert server.headers[-1]["authorization"] == "Bearer open"


def test_a_prompt_that_does_not_fit_is_not_sent() -> None:
    with serving(context=10) as small:
        done = run(small, "normal", "word " * 20)
        assert done.returncode == 4
        assert "has 20 tokens; the context is 10" in done.stderr
        assert "--ctx" in done.stderr
        assert small.asked == []


def test_a_model_that_is_not_here_says_how_to_get_it() -> None:
    done = subprocess.run([*RUN, "hf:org/repo:Q4_K_M", "hi"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 3
    assert "miyabi-llm pull hf:org/repo:Q4_K_M" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX sends them")
def test_ctrl_c_stops_the_server_too(server: Openaid) -> None:
    server.gone.clear()
    with subprocess.Popen([*RUN, "--url", server.url, "slow", "hi"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read(3) == "w0 "
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert server.gone.wait(3)


def test_asking_once_imports_no_terminal_library(server: Openaid) -> None:
    code = (
        # httpx brings rich in for its own command line where click happens to be installed; we need neither
        "import sys; sys.modules['click'] = None; from miyabi_llm.cli import execute; rc = execute(sys.argv[1:]); "
        "bad = [m for m in ('rich', 'prompt_toolkit', 'pydantic', 'huggingface_hub') if m in sys.modules]; "
        "sys.exit(rc or ' '.join(bad) or 0)"
    )
    args = ["run", "--url", server.url, "normal", "hi"]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_model_cannot_command_the_terminal() -> None:
    assert visible("a\x1b[31mb\x9bc\x07\td\r\ne") == "a�[31mb�c�\td\ne"


def test_the_line_of_figures() -> None:
    line = summary(Stats(100, 60, 50, 0.5, 2.5, 200.0, 25.0, "server"), 4096)
    assert line == (
        "prompt 100 tokens (60 cached) at 200.0 tokens/s | TTFT 0.50 s | answer 50 tokens at 25.0 tokens/s "
        "| total 2.50 s | context 150 of 4,096 (4%)"
    )


# --- the chat, without a terminal


@pytest.mark.parametrize(
    ("typed", "more", "meant"),
    [
        ("hello", False, "hello"),
        ("hello\\", True, None),
        ("hello\\\nthere", False, "hello\nthere"),
        ('"""', True, None),
        ('"""one\ntwo', True, None),
        ('"""one\ntwo"""', False, "one\ntwo"),
        ('"""\none\n"""', False, "one"),
        ("  ", False, ""),
    ],
)
def test_several_lines(typed: str, more: bool, meant: str | None) -> None:
    assert repl_input.unfinished(typed) is more
    if meant is not None:
        assert repl_input.message(typed) == meant


def test_a_scripted_chat(server: Openaid, tmp_path: Path) -> None:
    extra, saved = tmp_path / "extra.txt", tmp_path / "saved.json"
    extra.write_text("some text")
    script = [
        "/system be brief",
        "/set temperature 0.2",
        "/set temperatur 1",
        f"/file {extra}",
        "what is\\",
        "this?",
        "/retry",
        "/show",
        "/shwo",
        f"/save {saved}",
        "/undo",
        "/undo",
        f"/load {saved}",
        "/load /nowhere",
        "/stats on",
        "again",
        "/bye",
        "never sent",
    ]
    before = len(server.asked)
    done = run(server, "normal", "--chat", stdin="\n".join(script) + "\n")
    assert done.returncode == 0
    assert done.stdout == "Hello, 世界 🎌.\n" * 3
    first, retried, last = server.asked[before:]
    question = "what is\nthis?\n\nFile extra.txt:\n\n```\nsome text\n```"
    assert first["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": question}]
    assert first["temperature"] == 0.2
    assert retried == first
    assert [m["content"] for m in last["messages"]] == ["be brief", question, "Hello, 世界 🎌.", "again"]
    assert [m.content for m in chat.load(saved).turns] == [question, "Hello, 世界 🎌."]
    for words in ("did you mean temperature?", "Did you mean /show?", "turns: 2", "nothing to ask again", "/nowhere"):
        assert words in done.stderr
    assert done.stderr.count("TTFT") == 1


def test_a_failed_answer_does_not_end_the_chat(server: Openaid) -> None:
    done = run(server, "error", "--chat", stdin="one\n/retry\ntwo\n")
    assert done.returncode == 0
    assert done.stderr.count("out of memory") == 3
    assert [m["content"] for m in server.asked[-1]["messages"]] == ["two"]  # what was never answered is not sent again


# --- the chat, in a terminal


class Screen:
    """A terminal of tmux: type keys, wait for text."""

    def __init__(self, socket: Path, command: list[str], env: dict[str, str]) -> None:
        self._tmux = ["tmux", "-f", "/dev/null", "-S", str(socket)]
        size = ["-x", "100", "-y", "50"]
        pairs = [f"{k}={v}" for k, v in env.items()]
        self._call("new-session", "-d", *size, "env", "-u", "NO_COLOR", *pairs, *command)

    def type(self, *keys: str) -> None:
        self._call("send-keys", *keys)

    def text(self) -> str:
        return self._call("capture-pane", "-p", "-S", "-200")

    def wait(self, seen: str | Callable[[str], bool], seconds: float = 20) -> str:
        test = seen if callable(seen) else lambda text: seen in text
        end = time.monotonic() + seconds
        while not test(text := self.text()):
            assert time.monotonic() < end, f"waited for {seen!r}; the screen shows:\n{text}"
            time.sleep(0.05)
        return text

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True)

    def _call(self, *args: str) -> str:
        return subprocess.run([*self._tmux, *args], check=True, capture_output=True, text=True, timeout=20).stdout


@pytest.fixture
def screen(server: Openaid, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Screen]]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed: a chat in a terminal cannot be driven")
    folder, opened = tmp_path_factory.mktemp("tmux"), []

    def open_(model: str) -> Screen:
        env = {k: os.environ[k] for k in ("MIYABI_HOME", "MIYABI_CONFIG", "PATH", "HOME") if k in os.environ}
        command = [*RUN, model, "--url", server.url]
        ended = ["sh", "-c", f"trap : INT; {' '.join(command)}; echo left with $?; sleep 60"]
        opened.append(Screen(folder / "s", ended, env | {"TERM": "screen", "LC_ALL": "C.UTF-8"}))
        return opened[-1]

    yield open_
    for s in opened:
        s.close()


def test_ctrl_c_stops_the_answer_and_not_the_chat(server: Openaid, screen: Callable[..., Screen]) -> None:
    server.gone.clear()
    s = screen("slow")
    s.wait("/help lists commands.")
    s.wait(">>>")
    s.type("count for me", "Enter")
    s.wait("w3 ")
    s.type("C-c")
    assert server.gone.wait(5)
    s.wait("(stopped)")
    s.wait(lambda text: text.rstrip().endswith(">>>"))
    s.type("/show", "Enter")
    s.wait("turns: 2")  # the part that came is part of the talk
    s.type("C-c")
    s.wait("Type /bye")
    s.type("C-d")
    s.wait("left with 0")


def test_lines_history_and_help_in_a_terminal(server: Openaid, screen: Callable[..., Screen]) -> None:
    s = screen("normal")
    s.wait(">>>")
    s.type('"""one', "Enter", 'two"""', "Enter")
    s.wait("Hello, 世界 🎌.")
    assert server.asked[-1]["messages"][-1]["content"] == "one\ntwo"
    s.type("three", "M-Enter", "four", "Enter")
    s.wait(lambda text: text.count("Hello, ") == 2)
    assert server.asked[-1]["messages"][-1]["content"] == "three\nfour"
    s.type("/hepl", "Enter")
    s.wait("Did you mean /help?")
    s.type("/retry", "Enter")
    s.wait(lambda text: text.count("Hello, ") == 3)
    s.type("Up", "Up", "Enter")  # /retry, /hepl
    s.wait(lambda text: text.count("Did you mean /help?") == 2)
    s.type("/bye", "Enter")
    s.wait("left with 0")
    history = Path(os.environ["MIYABI_HOME"]) / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_an_answer_cannot_command_the_terminal(screen: Callable[..., Screen]) -> None:
    s = screen("escape")
    s.wait(">>>")
    s.type("hi", "Enter")
    s.wait("red �[31mtext�]52;c;AAAA�")
