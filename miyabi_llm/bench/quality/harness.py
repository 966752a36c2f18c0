"""Tasks of lm-evaluation-harness, through its own package, after asking whether the server can return what they need.

Tasks that choose the likelier of given texts need the log-probabilities of the prompt's own tokens. A server that
leaves these out lets the harness count at chance level without a word: so it is asked first.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm.bench.quality.lm_eval_child import SAID
from miyabi_llm.bench.values import Target
from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing, BadUsage, Missing, NetworkError, ServerFailed
from miyabi_llm.types import Event, OnEvent

CHILD = Path(__file__).with_name("lm_eval_child.py")
PROBE = "one two three four"
GENERATION = "generate_until"
LOOK_S = 60.0


@dataclass(frozen=True, slots=True)
class Order:
    """Tasks by the harness' own names, a folder with the user's own, and how many items of each."""

    tasks: tuple[str, ...]
    include: Path | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one task, as the harness gives it; `error` is its standard error."""

    task: str
    metric: str
    value: float
    error: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """What the harness found, and its version."""

    name: str
    version: str
    figures: tuple[Figure, ...]

    def rows(self) -> list[tuple[str, ...]]:
        """As a table shows it."""
        return [(f.task, f.metric, f"{f.value:.4f}", "" if f.error is None else f"{f.error:.4f}") for f in self.figures]


def find(env: Mapping[str, str]) -> Path:
    """The Python that has the harness: of the program `lm_eval` on PATH. Raises BackendMissing."""
    program = shutil.which("lm_eval", path=env.get("PATH"))
    beside = (Path(program).parent / name for name in ("python", "python3", "python.exe")) if program else ()
    for python in beside:
        if python.exists():
            return python
    raise BackendMissing(
        "lm-evaluation-harness is not installed",
        hint='In an environment of its own: `pip install "lm_eval[api]"`; then put its bin folder on PATH.',
    )


def can_score(target: Target) -> str:
    """Why the server cannot give the log-probabilities of a prompt; empty when it can. Raises NetworkError."""
    import httpx

    from miyabi_llm.client.http import is_local

    end = target.endpoint
    body = {"model": end.model, "prompt": PROBE, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    headers = {"authorization": f"Bearer {end.key.reveal()}"} if end.key else {}
    try:
        with httpx.Client(trust_env=not is_local(end.base_url), timeout=LOOK_S, headers=headers) as client:
            answer = client.post(f"{end.base_url}/v1/completions", json=body)
            said = answer.json() if answer.status_code == 200 else {}
    except httpx.HTTPError as e:
        raise NetworkError(f"no answer from {end.base_url}: {e}") from e
    except ValueError:
        return "/v1/completions did not answer in JSON"
    if answer.status_code != 200:
        return f"/v1/completions answered {answer.status_code} to `echo` with `logprobs`"
    return judge_probe(said)


def judge_probe(said: Any) -> str:
    """What is wrong with an answer to the probe; empty when the prompt came back with its log-probabilities. Pure."""
    choices = said.get("choices") if isinstance(said, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    text, logprobs = choice.get("text"), choice.get("logprobs")
    if not isinstance(text, str) or not text.startswith(PROBE):
        return "it leaves out the prompt although asked to `echo` it"
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(values, list) or len(values) < 3:
        return "it returns no log-probabilities of the prompt's tokens"
    numbers = [v for v in values[1:] if isinstance(v, int | float) and not isinstance(v, bool)]
    return "" if len(numbers) == len(values) - 1 else "some of the prompt's tokens have no log-probability"


def run(python: Path, order: Order, target: Target, settings: Settings, on_event: OnEvent) -> Result:
    """Run the tasks against the server. Raises BadUsage for tasks the server cannot serve, ServerFailed."""
    if target.speech not in ("openai-chat", "openai-completions"):
        raise BadUsage(f"the harness asks in OpenAI's dialect, not {target.speech}", hint="--speech openai-chat")
    with tempfile.TemporaryDirectory(prefix="miyabi-lm-eval-") as folder:
        work = Path(folder)
        kinds = _child(python, ["kinds", _include(order), *order.tasks], target, settings, on_event, work)
        _refuse(kinds["tasks"], target)
        words = ["run", *_arguments(order, target, work / "out")]
        _child(python, words, target, settings, on_event, work)
        return Result(target.name, str(kinds["version"]), _figures(work / "out"))


def _refuse(kinds: Mapping[str, Any], target: Target) -> None:
    missing = sorted(name for name, kind in kinds.items() if kind is None)
    if missing:
        raise Missing(f"the harness has no task {missing[0]!r}", hint="`lm_eval ls tasks` lists them.")
    scored = sorted(name for name, kind in kinds.items() if kind != GENERATION)
    if not scored:
        return
    why = "chat answers carry no log-probabilities of the prompt" if target.speech == "openai-chat" else ""
    if why := why or can_score(target):
        raise BadUsage(
            f"{', '.join(scored)} ({kinds[scored[0]]}) cannot be measured at {target.endpoint.base_url}: {why}",
            hint="Take tasks that generate text, or another server (vLLM, with --speech openai-completions).",
        )


def _include(order: Order) -> str:
    return "" if order.include is None else str(order.include.absolute())


def _arguments(order: Order, target: Target, out: Path) -> list[str]:
    """The harness' own command line; the key goes by its environment."""
    chat = target.speech == "openai-chat"
    end = target.endpoint
    path = "/v1/chat/completions" if chat else "/v1/completions"
    model = {"model": end.model, "base_url": end.base_url + path, "num_concurrent": 1, "max_retries": 2}
    if chat or end.backend != "vllm":
        model |= {"tokenizer_backend": "None", "tokenized_requests": False}
    words = ["--model", "local-chat-completions" if chat else "local-completions"]
    words += ["--model_args", json.dumps(model), "--tasks", ",".join(order.tasks), "--output_path", str(out)]
    words += ["--apply_chat_template"] if chat else []
    words += ["--include_path", _include(order)] if order.include is not None else []
    return words + (["--limit", str(order.limit)] if order.limit is not None else [])


def _child(
    python: Path, words: list[str], target: Target, settings: Settings, on_event: OnEvent, work: Path
) -> dict[str, Any]:
    from miyabi_llm.tools.running import Shell

    key = target.endpoint.key
    env = {**settings.env, "OPENAI_API_KEY": key.reveal() if key else "none", "PYTHONUNBUFFERED": "1"}
    said: dict[str, Any] = {}

    def on_line(line: str) -> None:
        if line.startswith(SAID):
            said.update(json.loads(line.removeprefix(SAID)))
        else:
            on_event(Event("log", "lm_eval", line))

    on_event(Event("phase", "lm_eval", words[0]))
    code, tail = Shell(work / "log", env, on_event).run([str(python), "-I", str(CHILD), *words], "lm_eval", on_line)
    if code != 0:
        raise ServerFailed(f"lm_eval ended with {code}: {tail[-1] if tail else 'no words'}", log=tail[-10:])
    return said


def _figures(out: Path) -> tuple[Figure, ...]:
    files = sorted(out.rglob("results_*.json"))
    if not files:
        raise ServerFailed("lm_eval wrote no results")
    results = json.loads(files[-1].read_text(encoding="utf-8"))["results"]
    return tuple(
        Figure(task, metric, float(value), _number(row.get(f"{name}_stderr{comma}{rest}")))
        for task, row in results.items()
        for metric, value in row.items()
        for name, comma, rest in [metric.partition(",")]
        if comma and not name.endswith("_stderr") and _number(value) is not None
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
