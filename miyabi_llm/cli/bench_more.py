"""The commands beside `bench run`: ab, calibrate, history, self-test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from miyabi_llm.cli import stored
from miyabi_llm.cli.dashes import EXTRA, BeforeDashes

if TYPE_CHECKING:
    from miyabi_llm.bench.gate.calibrate import Calibration
    from miyabi_llm.bench.gate.history import Entry
    from miyabi_llm.bench.selftest import SelfTest
    from miyabi_llm.cli.bench_ab import Ask
    from miyabi_llm.config import Settings

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

PAIR = typer.Argument(metavar="[NAME=]A [NAME=]B", help="Two models to start, or two servers by address.")
ONE = typer.Argument(None, metavar="[[NAME=]REF|URL]", autocompletion=stored.complete, help="A model, or a server.")
ENDPOINT = typer.Option([], "--endpoint", metavar="[NAME=]SERVER", help="A server that `ps` lists.")
BACKEND = typer.Option([], "--backend", metavar="NAME", help="What serves the models: once, or once for each.")
SPEECH = typer.Option(None, "--speech", metavar="DIALECT", help="openai-chat, openai-completions, ollama, anthropic.")
MODEL = typer.Option(None, "--model", metavar="NAME", help="The model to ask servers for; else their first.")
KEY_ENV = typer.Option(None, "--key-env", metavar="NAME", help="The environment variable that holds the servers' key.")
CTX = typer.Option(None, "--ctx", metavar="N", min=1, help="Context to serve with, in tokens.")
THREADS = typer.Option(None, "--threads", metavar="N", min=1, help="Threads to serve with.")
WORKLOAD = typer.Option("chat", "--workload", "-w", metavar="NAME", help="chat, code-review, rag, batch; or JSONL.")
CONCURRENCY = typer.Option(1, "--concurrency", "-c", metavar="N", min=1, help="Requests at once; above 1 in blocks.")
PAIRS = typer.Option(8, "--pairs", metavar="N", min=1, help="Questions per round, each to both servers.")
BLOCK = typer.Option(2.0, "--block", metavar="S", min=0.1, help="Seconds of each server's turn, above one at once.")
ROUNDS = typer.Option(100, "--rounds", metavar="N", min=5, help="Rounds at most.")
BUDGET = typer.Option(600.0, "--budget", metavar="S", min=1, help="Seconds at most, while it cannot be told.")
TIMEOUT = typer.Option(120.0, "--timeout", metavar="S", min=0.1, help="Seconds for one answer.")
MAX_TOKENS = typer.Option(None, "--max-tokens", metavar="N", min=1, help="Longest answer; else as the workload says.")
SEED = typer.Option(0, "--seed", metavar="N", help="Fixes every order.")
NONCE = typer.Option(True, "--nonce/--no-nonce", help="Make each prompt new to the server's cache.")
IN_TURN = typer.Option(False, "--in-turn", help="Start one at a time, anew for each round: for want of memory.")
FAIL_ON = typer.Option([], "--fail-on", metavar="RULE", help="As 'ttft_p50 > +10%'; 5% for the usual figures else.")
JUNIT = typer.Option(None, "--junit", metavar="FILE", help="Write the judgement for a CI system's test view.")
MARKDOWN = typer.Option(None, "--markdown", metavar="FILE", help="Write the judgement for a pull request.")
HISTORY = typer.Option(None, "--history", metavar="FILE", help="Add the judgement to a history, as a line of JSON.")
LABEL = typer.Option("", "--label", metavar="TEXT", help="What the history calls it: a version, a commit.")
NAME = typer.Option("Benchmark gate", "--name", metavar="TEXT", help="What the reports call it.")
JSON_FILE = typer.Option(None, "--json-file", metavar="FILE", hidden=True)
JSON = typer.Option(False, "--json", help="Print one JSON document; `--json FILE.json` writes it there.")


@app.command("ab", cls=BeforeDashes)
def ab(
    context: typer.Context,
    targets: list[str] | None = PAIR,
    endpoint: list[str] = ENDPOINT,
    backend: list[str] = BACKEND,
    speech: str | None = SPEECH,
    model: str | None = MODEL,
    key_env: str | None = KEY_ENV,
    ctx: int | None = CTX,
    threads: int | None = THREADS,
    workload: str = WORKLOAD,
    concurrency: int = CONCURRENCY,
    pairs: int = PAIRS,
    block: float = BLOCK,
    rounds: int = ROUNDS,
    budget: float = BUDGET,
    timeout: float = TIMEOUT,
    max_tokens: int | None = MAX_TOKENS,
    seed: int = SEED,
    nonce: bool = NONCE,
    in_turn: bool = IN_TURN,
    fail_on: list[str] = FAIL_ON,
    junit: Path | None = JUNIT,
    markdown: Path | None = MARKDOWN,
    history: Path | None = HISTORY,
    label: str = LABEL,
    name: str = NAME,
    json_file: Path | None = JSON_FILE,
    json_: bool = JSON,
) -> None:
    """Judge whether B is worse than A, in interleaved rounds.

    It goes on until that can be told, or the budget is used up. Exits with 0 when B passes, 5 when it fails, 6 when it
    cannot be told, 7 when the measurement must not be used.
    """
    from miyabi_llm import config
    from miyabi_llm.bench.gate.expr import parse_all
    from miyabi_llm.bench.gate.outcome import as_dict, as_json
    from miyabi_llm.bench.gate.values import Plan
    from miyabi_llm.bench.report import write_text
    from miyabi_llm.cli import bench_ab, bench_files, bench_gate, show
    from miyabi_llm.cli import bench_targets as aims
    from miyabi_llm.cli.bench_run import INTERRUPTED

    settings = config.load()
    rules = parse_all(fail_on)
    how = aims.How(speech, model, key_env, ctx, threads, extra=context.meta[EXTRA])
    aim = aims.Aim(aims.wishes(targets or (), (), endpoint, backend), how)
    plan = Plan(concurrency, pairs, block, rounds=rounds, budget_s=budget, timeout_s=timeout, seed=seed)
    ask = _ask(workload, max_tokens, settings, nonce=nonce, in_turn=in_turn)
    found = bench_ab.compare(aim, rules, plan, ask, settings, as_json=json_)
    if json_file is not None:
        write_text(json_file, as_json(found))
    if json_:
        show.emit(as_dict(found), as_json=True, render=print)
    else:
        bench_gate.render(found)
    bench_gate.tell(found, bench_gate.Told(junit, markdown, history, label), ask.machine, name)
    if INTERRUPTED in found.reasons:
        raise typer.Exit(130)
    bench_files.end_with(found)


def _ask(workload: str, max_tokens: int | None, settings: Settings, *, nonce: bool, in_turn: bool = False) -> Ask:
    from miyabi_llm import hardware
    from miyabi_llm.bench import report
    from miyabi_llm.bench.workload import load_workload
    from miyabi_llm.cli.bench_ab import Ask

    machine = report.machine(hardware.look(settings.env))
    return Ask(load_workload(workload, max_tokens=max_tokens), machine, nonce, in_turn)


@app.command("calibrate", cls=BeforeDashes)
def calibrate(
    context: typer.Context,
    target: str | None = ONE,
    endpoint: list[str] = ENDPOINT,
    backend: list[str] = BACKEND,
    speech: str | None = SPEECH,
    model: str | None = MODEL,
    key_env: str | None = KEY_ENV,
    ctx: int | None = CTX,
    threads: int | None = THREADS,
    workload: str = WORKLOAD,
    concurrency: int = CONCURRENCY,
    pairs: int = PAIRS,
    block: float = BLOCK,
    rounds: int = typer.Option(20, "--rounds", metavar="N", min=10, help="Rounds."),
    timeout: float = TIMEOUT,
    max_tokens: int | None = MAX_TOKENS,
    seed: int = SEED,
    json_: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Measure a server against itself, and remember this machine's noise."""
    from miyabi_llm import config
    from miyabi_llm.bench.gate.expr import parse_all
    from miyabi_llm.bench.gate.values import Plan
    from miyabi_llm.cli import bench_ab, show
    from miyabi_llm.cli import bench_targets as aims

    settings = config.load()
    how = aims.How(speech, model, key_env, ctx, threads, extra=context.meta[EXTRA])
    words = () if target is None else (target,)
    aim = aims.Aim(aims.wishes(words, (), endpoint, backend), how)
    plan = Plan(concurrency, pairs, block, rounds=rounds, timeout_s=timeout, seed=seed)
    ask = _ask(workload, max_tokens, settings, nonce=True)
    found = bench_ab.calibrate(aim, parse_all(()), plan, ask, settings, as_json=json_)
    show.emit(found, as_json=json_, render=_show_calibration)


def _show_calibration(found: Calibration) -> None:
    from miyabi_llm.cli.bench_show import print_table

    rows = [(name, f"{f.paired:.1%}", f"{f.round:.1%}", f"{f.drift:.1%}") for name, f in found.floors.items()]
    print_table(("figure", "of a comparison", "of one round", "between runs"), rows)
    print(f"noise of {found.rounds} rounds, at 99%; `bench ab` and `--save-baseline` take it into account from now on")


@app.command("history")
def history(
    file: Path = typer.Argument(metavar="FILE", help="What `--history FILE` wrote."),
    plot: Path | None = typer.Option(None, "--plot", metavar="FILE.svg", help="Draw the trend."),
    json_: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Show the judgements of a history, and their trend."""
    from miyabi_llm.bench.gate import history as verb
    from miyabi_llm.bench.report import write_text
    from miyabi_llm.cli import show

    entries, wrong = verb.read(file)
    show.emit(entries, as_json=json_, render=_show_history)
    for problem in wrong:
        show.note(f"warning: {file}: {problem}")
    if plot is not None:
        from miyabi_llm.bench import charts

        write_text(plot, charts.paper(verb.trend(entries, title=file.name)))
        show.note(f"wrote {plot}")


def _show_history(entries: tuple[Entry, ...]) -> None:
    from miyabi_llm.bench.gate.history import table
    from miyabi_llm.cli.bench_show import print_table

    found = table(entries)
    print_table(found.head, found.rows)


@app.command("self-test")
def self_test(
    streams: int = typer.Option(256, "--streams", metavar="N", min=1, max=4096, help="Answers at once."),
    seconds: float = typer.Option(8.0, "--duration", metavar="S", min=1, help="Seconds of them."),
    memory_requests: int = typer.Option(100_000, "--requests", metavar="N", min=1000, help="Of the memory test."),
    json_: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Measure the load generator itself, against a server of known timing."""
    from miyabi_llm import config
    from miyabi_llm.bench import selftest
    from miyabi_llm.cli import bench_live, show
    from miyabi_llm.errors import GateFailed

    settings = config.load()
    plan = selftest.Plan(streams=streams, stream_s=seconds, memory_requests=memory_requests)
    with bench_live.shown(as_json=json_) as on_event:
        found = selftest.self_test(settings.env, plan, on_event)
    show.emit(found, as_json=json_, render=_show_self_test)
    if not found.ok:
        show.note("miyabi-llm: the load generator is not within its limits on this machine, as it is now")
        raise typer.Exit(GateFailed.exit_code)


def _show_self_test(found: SelfTest) -> None:
    from miyabi_llm.cli.bench_show import print_table

    said = {True: "yes", False: "NO", None: "cannot tell"}
    rows = [
        (c.name, f"{c.value:,.4g} {c.unit}".strip(), f"{c.relation} {c.limit:,.4g}", said[c.ok], c.note)
        for c in found.checks
    ]
    print_table(("check", "found", "limit", "within", "note"), rows)
    print_table(("beside it", "found"), [(name, f"{value:,.4g}") for name, value in found.facts.items()])
    if any(c.ok is None for c in found.checks):
        print("cannot tell: the server itself was late, so the figure is not the client's alone")
