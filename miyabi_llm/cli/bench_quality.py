"""The command `bench quality`: how well a model answers, by exact checks, and whether it got worse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from miyabi_llm.cli import stored

if TYPE_CHECKING:
    from miyabi_llm.bench.quality import Comparison, Report, TaskSet
    from miyabi_llm.bench.quality.compare import Compared
    from miyabi_llm.bench.quality.values import Score
    from miyabi_llm.bench.values import Target
    from miyabi_llm.cli.bench_targets import How as Reach
    from miyabi_llm.cli.bench_targets import Wish
    from miyabi_llm.config import Settings
    from miyabi_llm.types import OnEvent

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

TARGETS = typer.Argument(
    None, metavar="[[NAME=]REF|URL]...", help="The model, or two: A, then B.", autocompletion=stored.complete
)
URL = typer.Option([], "--url", metavar="[NAME=]URL[#MODEL]", help="Measure this server; may be given again.")
ENDPOINT = typer.Option([], "--endpoint", metavar="[NAME=]SERVER", help="Measure a server that `ps` lists.")
TASKS = typer.Option("code-review,json,japanese", "--tasks", metavar="NAME,...", help="Task sets, or .jsonl files.")
BASELINE = typer.Option(None, "--baseline", metavar="FILE", help="Compare with this stored report, item by item.")
TOLERANCE = typer.Option(10.0, "--tolerance", metavar="POINTS", min=0.1, max=100, help="How much worse is endured.")
LIMIT = typer.Option(None, "--limit", metavar="N", min=1, help="Items of each task, spread evenly; else all.")
TWICE = typer.Option(20, "--twice", metavar="N", min=0, help="Items to ask a second time, for the drift.")
LM_EVAL = typer.Option(None, "--lm-eval", metavar="TASK,...", help="Instead run tasks of lm-evaluation-harness.")
LM_INCLUDE = typer.Option(None, "--lm-eval-include", metavar="DIR", help="Where your own harness tasks lie.")
SPEECH = typer.Option(None, "--speech", metavar="DIALECT", help="openai-chat, openai-completions, ollama, anthropic.")
MODEL = typer.Option(None, "--model", metavar="NAME", help="The model to ask servers for; else their first.")
KEY_ENV = typer.Option(None, "--key-env", metavar="NAME", help="The environment variable that holds the server's key.")
BACKEND = typer.Option([], "--backend", metavar="NAME", help="What serves the models: once, or once for each.")
CTX = typer.Option(4096, "--ctx", metavar="N", min=256, help="Context to serve with, in tokens.")
THREADS = typer.Option(None, "--threads", metavar="N", min=1, help="Threads to serve with.")
PULL = typer.Option(False, "--pull", help="Pull models first that are not here.")
MAX_TOKENS = typer.Option(None, "--max-tokens", metavar="N", min=1, help="Longest answer; else as each item says.")
CONCURRENCY = typer.Option(1, "--concurrency", "-c", metavar="N", min=1, help="Items at once; 1 is repeatable.")
TIMEOUT = typer.Option(300.0, "--timeout", metavar="S", min=0.1, help="Seconds for one answer.")
JSON_FILE = typer.Option(None, "--json-file", "-o", metavar="FILE", help="Write the report there: a later baseline.")
JSON = typer.Option(False, "--json", help="Print one JSON document.")

EXITS = {"pass": 0, "fail": 5, "inconclusive": 6}


@app.command("quality")
def quality(
    targets: list[str] | None = TARGETS,
    url: list[str] = URL,
    endpoint: list[str] = ENDPOINT,
    tasks: str = TASKS,
    baseline: Path | None = BASELINE,
    tolerance: float = TOLERANCE,
    limit: int | None = LIMIT,
    twice: int = TWICE,
    lm_eval: str | None = LM_EVAL,
    lm_eval_include: Path | None = LM_INCLUDE,
    speech: str | None = SPEECH,
    model: str | None = MODEL,
    key_env: str | None = KEY_ENV,
    backend: list[str] = BACKEND,
    ctx: int = CTX,
    threads: int | None = THREADS,
    pull: bool = PULL,
    max_tokens: int | None = MAX_TOKENS,
    concurrency: int = CONCURRENCY,
    timeout: float = TIMEOUT,
    json_file: Path | None = JSON_FILE,
    json_: bool = JSON,
) -> None:
    """Check a model's answers exactly, and compare them with another's or with earlier ones.

    Exits with 0 when the second is not worse, 5 when it is, 6 when the items cannot tell, 7 when items did not run.
    """
    from miyabi_llm import config
    from miyabi_llm.bench.quality import How, compare, load_tasks, read_report, write_report
    from miyabi_llm.cli import bench_targets as aims
    from miyabi_llm.cli import show, target
    from miyabi_llm.errors import BadUsage

    settings = config.load()
    wanted = aims.wishes(targets or (), url, endpoint, backend)
    reach = aims.How(speech, model, key_env, ctx, threads, pull)
    if len(wanted) > (1 if baseline or lm_eval else 2):
        raise BadUsage("one model and a --baseline, or two models: not more", hint="See `bench quality --help`.")
    if lm_eval is not None:
        _harness(wanted[0], reach, (lm_eval, lm_eval_include, limit), settings, as_json=json_)
        return
    sets = load_tasks(tasks.split(","))
    before = None if baseline is None else read_report(baseline)
    how = How(limit, twice, max_tokens, concurrency, timeout_s=timeout)
    with target.events(as_json=json_) as on_event:
        reports = [_measured(wish, reach, (sets, how), settings, on_event) for wish in wanted]
    if json_file is not None:
        write_report(reports[-1], json_file)
    a = before or (reports[0] if len(reports) > 1 else None)
    comparison = None if a is None else compare(a, reports[-1], tolerance / 100)
    value = {"reports" if len(reports) > 1 else "report": reports if len(reports) > 1 else reports[0]}
    shown = (reports, comparison)
    show.emit(value | {"comparison": comparison} if json_ else shown, as_json=json_, render=lambda v: _show(*v))
    if comparison is not None and EXITS[comparison.outcome]:
        raise typer.Exit(EXITS[comparison.outcome])


def _measured(
    wish: Wish, reach: Reach, asked: tuple[tuple[TaskSet, ...], object], settings: Settings, on_event: OnEvent
) -> Report:
    """Measure one; a server that was started for it stops before the next. Raises InvalidMeasurement."""
    from miyabi_llm.bench.quality import How, Subject, measure
    from miyabi_llm.cli import bench_targets as aims
    from miyabi_llm.errors import InvalidMeasurement

    sets, how = asked
    assert isinstance(how, How)
    with aims.opened_one(wish, reach, settings, on_event) as found:
        report = measure(Subject(found, _sha256(wish, found, settings)), sets, how, on_event)
    if report.invalid:
        hint = "No score is shown for what did not run. Mend the server, or allow more time with --timeout."
        raise InvalidMeasurement(f"{report.name}: {report.invalid[0]}", hint=hint, invalid=list(report.invalid))
    return report


def _sha256(wish: Wish, found: Target, settings: Settings) -> str | None:
    """The hash of the model's first file, for a model of the store."""
    from miyabi_llm.errors import MiyabiError
    from miyabi_llm.store import Store

    if wish.ref is None:
        return None
    try:
        artifact = stored.find(wish.ref or settings.default_model, Store(settings.store), settings)
    except MiyabiError:
        return None  # removed meanwhile: it was measured all the same
    return artifact.files[0].sha256


def _harness(
    wish: Wish, reach: Reach, asked: tuple[str, Path | None, int | None], settings: Settings, *, as_json: bool
) -> None:
    import miyabi_llm.bench.quality.harness as harness
    from miyabi_llm.cli import bench_targets as aims
    from miyabi_llm.cli import show, target

    names, include, limit = asked
    order = harness.Order(tuple(n.strip() for n in names.split(",")), include, limit)
    program = harness.find(settings.env)
    with target.events(as_json=as_json) as on_event, aims.opened_one(wish, reach, settings, on_event) as found:
        result = harness.run(program, order, found, settings, on_event)
    show.emit(result, as_json=as_json, render=lambda r: show.table(("TASK", "METRIC", "VALUE", "± SE"), r.rows()))


def _show(reports: list[Report], comparison: Comparison | None) -> None:
    from miyabi_llm.cli import show

    for report in reports:
        print(f"{report.name}  ({report.speech}, {report.seconds:.0f} s)")
        rows = [_row(s) for s in (*report.scores, report.total)]
        show.table(("TASK", "ITEMS", "RIGHT", "SHARE", "95% INTERVAL", ""), rows)
        if report.drift is not None:
            print(f"asked twice: {report.drift.same} of {report.drift.asked} answers the same")
        print()
    if comparison is None:
        return
    rows = [_compared(c) for c in (*comparison.tasks, comparison.total)]
    show.table(("TASK", "ITEMS", "ONLY A", "ONLY B", "B - A", "95% INTERVAL", "McNEMAR p", "SAME TEXT", ""), rows)
    print(f"\n{comparison.outcome.upper()}  {comparison.b} against {comparison.a}: {comparison.reason}")
    for text in comparison.notes:
        show.note(f"note: {text}")
    if comparison.left_out:
        show.note(f"note: {comparison.left_out} items that only one of them has were left out")


def _row(s: Score) -> tuple[str, ...]:
    cut = f"{s.cut} cut at the token limit" if s.cut else ""
    return (s.task, str(s.n), str(s.right), f"{s.share:.1%}", f"{s.low:.1%} to {s.high:.1%}", cut)


def _compared(c: Compared) -> tuple[str, ...]:
    p = c.pairs
    between = f"{100 * c.low:+.1f} to {100 * c.high:+.1f}"
    return (
        *(c.task, str(p.n), str(p.only_a), str(p.only_b), f"{100 * c.difference:+.1f}", between),
        *(f"{c.p:.4f}", f"{p.same_text} of {p.n}", c.outcome),
    )
