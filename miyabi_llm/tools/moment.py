"""A llama-server for a moment: to hear how a model's own template renders, or what the model takes in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miyabi_llm import proc
from miyabi_llm.errors import MachineLimit, MiyabiError, ServerFailed
from miyabi_llm.proc import Child, ports
from miyabi_llm.proc.resident import resident
from miyabi_llm.tools.program import Program
from miyabi_llm.types import Adapter

if TYPE_CHECKING:
    import httpx

START_S = 300.0  # seconds to load a model
ANSWER_S = 900.0  # a prompt of some hundred tokens on a processor that others use too
_IF_THERE = ("--offline", "--jinja", "--no-prefill-assistant")


@dataclass(frozen=True, slots=True)
class Moment:
    """The server while it runs."""

    url: str
    child: Child
    http: httpx.Client

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: object = None, *, begin: bool = False,
        words: Mapping[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """The messages as the model's template writes them; with `begin` an answer is begun. Raises ServerFailed.

        `words` are further ones for the template.
        """
        body: dict[str, Any] = {"messages": list(messages), "add_generation_prompt": begin}
        body |= {"chat_template_kwargs": dict(words)} if words else {}
        said = self.ask("/apply-template", body | ({"tools": tools} if tools else {})).get("prompt")
        if not isinstance(said, str):
            raise ServerFailed("the server rendered no text")
        return said

    def tokens(self, text: str) -> tuple[int, ...]:
        """The ids of `text`, control tokens in it recognised, with those that begin every text."""
        found = self.ask("/tokenize", {"content": text, "add_special": True, "parse_special": True}).get("tokens")
        if not isinstance(found, list) or not all(isinstance(i, int) for i in found):
            raise ServerFailed("the server gave no token ids")
        return tuple(found)

    def begin(self) -> str:
        """The text of the token that begins every text, empty where there is none or the server does not say."""
        import httpx

        try:
            said = self.http.get("/props").json()
        except (httpx.HTTPError, ValueError):
            return ""
        text = said.get("bos_token") if isinstance(said, dict) else None
        return text if isinstance(text, str) else ""

    def memory(self, prompt: Sequence[int]) -> int:
        """Bytes that are resident after the server read `prompt` and wrote one token; 0 where the system tells not."""
        self.ask("/completion", {"prompt": list(prompt), "n_predict": 1, "temperature": 0.0})
        return resident(self.child.pids()).total

    def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST, and the answer's object. Raises ServerFailed with the server's words."""
        import httpx

        try:
            answer = self.http.post(path, json=body)
            said = answer.json()
        except (httpx.HTTPError, ValueError) as e:
            raise ServerFailed(f"{path}: {e or type(e).__name__}", hint=self.child.tail()[-600:]) from e
        if answer.status_code != 200 or not isinstance(said, dict):
            error = said.get("error") if isinstance(said, dict) else None
            words = error.get("message") if isinstance(error, dict) else error
            raise ServerFailed(f"{path} answers {answer.status_code}: {str(words)[:300]}", status=answer.status_code)
        return said


@dataclass(frozen=True, slots=True)
class Kitchen:
    """With what and where: the program, the environment, a folder of ours, threads (None: the program's choice)."""

    program: Program
    env: Mapping[str, str]
    folder: Path
    threads: int | None = None


@contextmanager
def moment(model: Path, kitchen: Kitchen, ctx: int, adapters: Sequence[Adapter] = ()) -> Iterator[Moment]:
    """A server of `model` with `ctx` tokens for one caller; gone when the block ends, or when we are.

    Raises MachineLimit where it is killed for memory, ServerFailed with its last words.
    """
    import httpx

    port, program, log = ports.chosen(), kitchen.program, kitchen.folder / "llama-server.log"
    argv = [*program.argv, "--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--ctx-size", str(ctx)]
    argv += ["--lora", ",".join(str(a.path) for a in adapters)] if adapters else []
    argv += ["--threads", str(kitchen.threads)] if kitchen.threads else []  # as many slots as `serve` has: the default
    argv += [flag for flag in _IF_THERE if program.has(flag)]
    argv += ["--cache-ram", "0"] if program.has("--cache-ram") else []
    env = {k: v for k, v in kitchen.env.items() if not k.startswith("LLAMA_ARG_")}
    child = proc.launch(argv, env, {}, log)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(child, url)
        # one connection for all questions: opening one costs more than a short answer
        with httpx.Client(base_url=url, timeout=ANSWER_S, trust_env=False) as http:
            yield Moment(url, child, http)
    finally:
        child.stop(2.0)


def _wait(child: Child, url: str) -> None:
    import httpx

    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if (ended := child.wait(0.05)) is not None:
            if ended.out_of_memory:
                raise MachineLimit("llama-server was killed, most likely for lack of memory")
            raise ServerFailed("llama-server ended at its start", hint=child.tail()[-800:])
        try:
            if httpx.get(f"{url}/health", timeout=2.0, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            continue
    raise MiyabiError(f"llama-server was not up after {START_S:.0f} s", hint=child.tail()[-800:])
