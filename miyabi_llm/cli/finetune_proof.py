"""`finetune verify`, `compare` and `reproduce`: what a finished run is worth, asked again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.finetune.compare import Compared
    from miyabi_llm.finetune.reproduce import Reproduced
    from miyabi_llm.finetune.verify import Verified

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
_RUN = typer.Argument(..., metavar="RUN", help="The run (see `finetune status`).")
_JSON = typer.Option(False, "--json", help="Events as JSON lines on stderr, the outcome on stdout.")


@app.command("verify")
def verify(
    name: str = _RUN,
    self_test: bool = typer.Option(False, "--self-test", help="Plant faults in copies and see each of them found."),
    json_: bool = _JSON,
) -> None:
    """Hold a run against its card: every hash, and the served files against the trainer."""
    from miyabi_llm import config
    from miyabi_llm.cli import show
    from miyabi_llm.cli.finetune_live import live
    from miyabi_llm.cli.finetune_run import world
    from miyabi_llm.errors import GateFailed
    from miyabi_llm.finetune import run, verify

    with live(as_json=json_) as on_event, run.opened(name, world(config.load()), on_event) as ctx:
        found = verify.verify(ctx, self_test=self_test)
    show.emit(found, as_json=json_, render=_verified)
    if not found.passed:
        wrong = [f.message for f in found.findings if f.level == "fail"]
        wrong += [f"a planted fault was not found: {p.words}" for p in found.planted if p.found == ""]
        raise GateFailed(f"{name}: {wrong[0]}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))


@app.command("compare")
def compare(
    a: str = typer.Argument(..., metavar="A", help="A run, or RUN:STAGE (base, adapter, merged, F16, Q8_0, ...)."),
    b: str = typer.Argument(..., metavar="B", help="A run, RUN:STAGE, a stage of A's run, or a stored model."),
    json_: bool = _JSON,
) -> None:
    """Compare two runs, stages or models on the same rows."""
    from contextlib import ExitStack

    from miyabi_llm import config
    from miyabi_llm.cli import show
    from miyabi_llm.cli.finetune_live import live
    from miyabi_llm.cli.finetune_run import world
    from miyabi_llm.finetune import compare, run

    settings = config.load()
    with live(as_json=json_) as on_event, ExitStack() as held:
        name, stage = _split(a, settings)
        ctx = held.enter_context(run.opened(name, world(settings), on_event))
        other, theirs = None, b
        if _is_run(b.partition(":")[0], settings):
            second, theirs = _split(b, settings)
            other = ctx if second == name else held.enter_context(run.opened(second, world(settings), on_event))
        found = compare.compare(
            ctx, stage or compare.last(ctx), theirs or compare.last(other or ctx), other if other is not ctx else None
        )
    show.emit(found, as_json=json_, render=_compared)


@app.command("reproduce")
def reproduce(name: str = _RUN, json_: bool = _JSON) -> None:
    """Train a run again from its beginning and compare the bytes of the adapter."""
    from miyabi_llm import config
    from miyabi_llm.cli import show
    from miyabi_llm.cli.finetune_live import live
    from miyabi_llm.cli.finetune_run import world
    from miyabi_llm.finetune import reproduce, run

    around = world(config.load())
    with live(as_json=json_) as on_event, run.opened(name, around, on_event) as ctx:
        found = reproduce.reproduce(ctx, around, on_event)
    show.emit(found, as_json=json_, render=_reproduced)


def _is_run(name: str, settings: Settings) -> bool:
    return (Path(settings.home) / "runs" / name / "resolved.json").is_file() if name and "/" not in name else False


def _split(text: str, settings: Settings) -> tuple[str, str]:
    """RUN and STAGE of `RUN:STAGE`."""
    name, _, stage = text.partition(":")
    return name, stage


def _verified(found: Verified) -> None:
    from miyabi_llm.cli import show

    for f in found.findings:
        print(f"{f.level:5} {f.name}: {f.message}")
    if found.planted:
        show.table(
            ("PLANTED FAULT", "FOUND BY"),
            [(p.words, "not possible here" if p.found is None else p.found or "NOTHING") for p in found.planted],
        )


def _compared(found: Compared) -> None:
    from miyabi_llm.cli import show
    from miyabi_llm.finetune.measures import said

    rows: list[tuple[Any, ...]] = [(found.a, said(found.of_a)), (found.b, said(found.of_b))]
    show.table((f"{found.metric.upper()} ({found.unit})", "VALUE (95% INTERVAL)"), rows)
    print(f"{found.b} is {found.verdict}: gain {said(found.gain)} over {found.gain.rows} rows")
    if found.forgot is not None:
        print(f"on the forgetting set it loses {said(found.forgot)} nats per token more")


def _reproduced(found: Reproduced) -> None:
    from miyabi_llm.cli.show import note

    how = "the same bytes" if found.same else "other bytes"
    print(f"{found.name}: {how}; loss {found.loss[0]:.6f} and {found.loss[1]:.6f}, {found.seconds:.0f} s")
    for path, sha256 in found.second.items():
        print(f"  {path}  {sha256}")
    if found.others:
        note(f"other files differ: {', '.join(found.others)}")
