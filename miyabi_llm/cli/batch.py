"""The command `batch`: many requests from a file to a file."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import typer

from miyabi_llm.cli import stored

if TYPE_CHECKING:
    from miyabi_llm.batch import Judge, Kind, Prices, Stop, Summary
    from miyabi_llm.cli.target import Wish
    from miyabi_llm.config import Settings
    from miyabi_llm.types import Endpoint, OnEvent

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

SOURCE = typer.Argument(metavar="IN", help="Requests: JSONL, or a .txt file with one prompt a line.")
REF = typer.Argument(
    None, metavar="[REF]", help="The model; the default model when left out.", autocompletion=stored.complete
)
OUTPUT = typer.Option(..., "--output", "-o", metavar="OUT", help="Where the answers go, one a line.")
URL = typer.Option(None, "--url", metavar="URL", help="Ask this OpenAI-compatible server; start none.")
ENDPOINT = typer.Option(None, "--endpoint", metavar="NAME", help="Ask the server of that name, as `ps` lists it.")
KEY_ENV = typer.Option(None, "--key-env", metavar="NAME", help="The environment variable that holds the server's key.")
BACKEND = typer.Option(None, "--backend", metavar="NAME", help="The program that serves the model.")
CTX = typer.Option(None, "--ctx", metavar="N", min=1, help="Context to serve with, in tokens.")
PULL = typer.Option(False, "--pull", help="Pull the model first when it is not here.")
MANY = typer.Option(None, "--concurrency", "-c", metavar="N", min=1, max=4096, help="Requests at once; the server's.")
TO = typer.Option("chat", "--to", metavar="KIND", help="What plain rows become: chat, completions or embeddings.")
TEXT = typer.Option(False, "--text", help="Each line of IN is a prompt, whatever its name ends with.")
SYSTEM = typer.Option(None, "--system", metavar="TEXT", help="Instructions for the model, in plain rows.")
MAX_TOKENS = typer.Option(None, "--max-tokens", metavar="N", min=1, help="Longest answer, in plain rows.")
TEMP = typer.Option(None, "--temp", "--temperature", metavar="N", min=0, max=5, help="Temperature, in plain rows.")
SCHEMA = typer.Option(None, "--schema", metavar="FILE", help="A JSON schema that every answer must follow.")
SKIP = typer.Option(False, "--skip-bad", help="Leave out lines that are no request, instead of refusing the file.")
RESUME = typer.Option(True, "--resume/--restart", help="Go on where OUT ends, or drop what it holds.")
AGAIN = typer.Option(False, "--retry-failed", help="Ask again what failed in an earlier run.")
ORDERED = typer.Option(False, "--ordered", help="Put OUT in the order of IN when all is done.")
ALLOW = typer.Option(0, "--allow-errors", metavar="N", min=0, help="Exit with 0 when up to N rows failed.")
TRIES = typer.Option(5, "--tries", metavar="N", min=1, help="How often a request is sent that fails.")
TIMEOUT = typer.Option(3600, "--timeout", metavar="S", min=0.001, help="Seconds for one answer.")
PATIENCE = typer.Option(
    300, "--patience", metavar="S", min=0, help="Seconds to wait for a server that is busy or gone."
)
PRICE_IN = typer.Option(None, "--price-in", metavar="N", min=0, help="What a million prompt tokens cost.")
PRICE_OUT = typer.Option(None, "--price-out", metavar="N", min=0, help="What a million completion tokens cost.")
JSON = typer.Option(False, "--json", help="Print one JSON document.")


@app.command("batch")
def batch(
    source: Path = SOURCE,
    ref: str | None = REF,
    output: Path = OUTPUT,
    url: str | None = URL,
    endpoint: str | None = ENDPOINT,
    key_env: str | None = KEY_ENV,
    backend: str | None = BACKEND,
    ctx: int | None = CTX,
    pull: bool = PULL,
    concurrency: int | None = MANY,
    to: str = TO,
    text: bool = TEXT,
    system: str | None = SYSTEM,
    max_tokens: int | None = MAX_TOKENS,
    temp: float | None = TEMP,
    schema: str | None = SCHEMA,
    skip_bad: bool = SKIP,
    resume: bool = RESUME,
    retry_failed: bool = AGAIN,
    ordered: bool = ORDERED,
    allow_errors: int = ALLOW,
    tries: int = TRIES,
    timeout: float = TIMEOUT,
    patience: float = PATIENCE,
    price_in: float | None = PRICE_IN,
    price_out: float | None = PRICE_OUT,
    json_: bool = JSON,
) -> None:
    """Ask a file of requests, and write a file of answers."""
    from miyabi_llm import batch as verb
    from miyabi_llm import config
    from miyabi_llm.cli import show, target
    from miyabi_llm.types import counted

    settings = config.load()
    parsed, judge = _schema(schema) if schema else (None, None)
    lines = text or source.suffix.lower() == ".txt"
    shape = verb.Shape(cast("Kind", to), lines, system, max_tokens, temp, parsed)
    job = verb.Job(
        source, output.resolve(), shape, skip_bad=skip_bad, resume=resume, retry_failed=retry_failed, ordered=ordered,
        prices=_prices(price_in, price_out), judge=judge,
    )  # fmt: skip
    limits = verb.Limits(concurrency, tries, patience, timeout)
    wish = target.Wish(ref, (), None, url, key_env, backend, ctx, pull)
    heard: list[int] = []
    with target.events(as_json=json_) as on_event, verb.opened(job, on_event) as work:
        if work.left:  # nothing is started for a batch that is finished
            with _endpoint(wish, endpoint, settings, on_event) as found, _signals(heard) as stop:
                model = "" if url is not None and not ref else found.model
                summary = verb.run(work, found, limits, on_event, model=model, stop=stop)
        else:
            summary = verb.finish(work, on_event=on_event)
    show.emit(summary, as_json=json_, render=_show)
    if summary.interrupted:
        show.note(f"stopped with {summary.left:,} of {summary.total:,} rows left; the same command goes on from here")
        raise typer.Exit(128 + (heard[0] if heard else signal.SIGINT))
    if summary.failed > allow_errors:
        failed = counted(summary.failed, "row")
        show.note(f"{failed} failed: see `response` or `error` in {output}; --retry-failed asks again")
        raise typer.Exit(1)


@contextmanager
def _endpoint(wish: Wish, name: str | None, settings: Settings, on_event: OnEvent) -> Iterator[Endpoint]:
    """The server to ask: one that runs here by its name, or as `run` finds it."""
    from miyabi_llm.cli import target
    from miyabi_llm.errors import BadUsage, Missing

    if name is None:
        with target.endpoint(wish, settings, on_event) as found:
            yield found
        return
    if wish.ref or wish.url or wish.key_env or wish.backend or wish.ctx or wish.pull:
        raise BadUsage("--endpoint names a server that runs: leave out REF and the options that start or find one")
    from miyabi_llm import serve

    running = [s for s in serve.ps(settings) if s.name == name]
    if not running or running[0].state == "dead":
        raise Missing(f"no server {name!r} runs", hint="`miyabi-llm ps` lists those that do.")
    yield running[0].endpoint


@contextmanager
def _signals(heard: list[int]) -> Iterator[Stop]:
    """While the block runs, Ctrl-C or SIGTERM asks to stop; a third one ends the command. All go into `heard`."""
    from miyabi_llm.batch import Stop

    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        stop.ask()
        if stop.asked > 2:
            raise KeyboardInterrupt

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for n, old in before.items():
            signal.signal(n, old)


def _prices(prompt: float | None, completion: float | None) -> Prices | None:
    from miyabi_llm.batch import Prices
    from miyabi_llm.errors import BadUsage

    if prompt is None and completion is None:
        return None
    if prompt is None or completion is None:
        raise BadUsage("a cost needs both prices", hint="Give --price-in and --price-out; 0 is a price.")
    return Prices(prompt, completion)


def _schema(name: str) -> tuple[dict[str, Any], Judge]:
    """The schema in a file, and what judges answers by it."""
    import json

    from miyabi_llm.chat import check_schema, follow, read_text
    from miyabi_llm.errors import BadUsage

    try:
        schema = check_schema(json.loads(read_text(Path(name))), name)
    except (ValueError, RecursionError) as e:
        raise BadUsage(f"{name}: not JSON: {e}") from e
    return schema, lambda text: follow(text, schema)[1]


def _show(found: Summary) -> None:
    from miyabi_llm.types import counted

    parts = [f"{found.done:,} of {found.total:,} rows done"]
    parts += [f"{found.failed:,} failed"] if found.failed else []
    parts += [f"{found.skipped:,} skipped"] if found.skipped else []
    parts += [f"{found.left:,} left"] if found.left else []
    parts += [f"{found.resumed:,} from earlier runs"] if found.resumed else []
    print(f"{', '.join(parts)}: {found.output}")
    rate = f", {found.tokens_per_s:.1f} tokens/s" if found.tokens_per_s else ""
    tokens = f"{found.prompt_tokens:,} prompt tokens, {found.completion_tokens:,} completion tokens"
    print(f"{tokens}, {found.seconds:.1f} s{rate}")
    if found.cost is not None:
        print(f"cost: {found.cost:.6g}, by the prices you gave")
    if found.cut:
        print(f"{counted(found.cut, 'answer')} ended at the token limit")
    if found.uncounted:
        print(f"{counted(found.uncounted, 'answer')} without a count of tokens")
