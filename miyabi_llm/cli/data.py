"""The group `data`: look at rows before they are trained on, and make rows of what one owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

app = typer.Typer(name="data", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
                  pretty_exceptions_enable=False)  # fmt: skip
FAULTS = 5  # exit code when rows must not be trained on


@app.callback()
def _group() -> None:
    """Look at rows before they are trained on, and make rows of a git history."""


@app.command("lint")
def lint(
    source: str = typer.Argument(..., metavar="FILE|RECIPE", help="Rows (.jsonl, .json, .csv, ...), or a recipe."),
    model: str | None = typer.Option(
        None, "--model", "-m", metavar="REF", help="Model whose tokenizer counts; without one, no tokens."
    ),
    set_: list[str] = typer.Option([], "--set", "-s", metavar="KEY=VALUE", help="A key: data.roles.human=user."),
    strict: bool = typer.Option(False, "--strict", help="Warnings fail too."),
    json_: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Say what is wrong with rows, by their numbers: text, tokens, copies, secrets; exit code 5 for faults."""
    from miyabi_llm import config
    from miyabi_llm.cli import finetune_run, progress, show
    from miyabi_llm.finetune import data, load, preview

    settings = config.load()
    path = Path(source)
    if path.suffix.lower() in (".yaml", ".yml"):
        over = (*set_, f"base.model={model}", "base.tiny=") if model else tuple(set_)
        loaded, tokens = load.load(path, over), True
    else:
        loaded, tokens = preview.of_file(path, model, tuple(set_)), model is not None
    with progress.shown(as_json=json_) as on_event:
        found = preview.look(loaded, finetune_run.world(settings), on_event, tokens=tokens)
    show.emit({"report": found.report, "figures": data.figures(found)}, as_json=json_, render=_shown)
    worst = {f.level for f in found.report.findings}
    if "error" in worst or (strict and "warning" in worst):
        raise typer.Exit(FAULTS)


make = typer.Typer(name="make", no_args_is_help=True, add_completion=False, rich_markup_mode=None)
app.add_typer(make)


@make.callback()
def _make() -> None:
    """Make rows of what one owns."""


@make.command("code-review")
def code_review(
    repository: Path = typer.Option(..., "--from", metavar="REPO", help="A git repository on this machine, your own."),
    output: Path = typer.Option(..., "--output", "-o", metavar="FILE", help="Rows to learn from: .jsonl."),
    commits: int = typer.Option(2000, "--commits", min=1, max=100_000, help="Newest commits looked at, at most."),
    since: str | None = typer.Option(None, "--since", metavar="DATE", help="Only commits after this day."),
    split: str = typer.Option("time", "--split", metavar="time|file", help="What held-out rows are parted by."),
    held_out: float = typer.Option(0.15, "--held-out", min=0, max=0.9, help="Part of the rows that is held out."),
    sound: float = typer.Option(1.0, "--sound", min=0, max=10, help="Rows without a defect for each with one."),
    seed: int = typer.Option(17, "--seed", help="Which sound changes are taken."),
    json_: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Make rows to learn code review from: what was mended later in a git history, and where it had come from."""
    from miyabi_llm import config, detect
    from miyabi_llm.cli import progress, show
    from miyabi_llm.dataset import files, git, history
    from miyabi_llm.errors import BadUsage

    if output.suffix != ".jsonl":
        raise BadUsage(f"{output}: rows are written as .jsonl", hint=f"-o {output.with_suffix('.jsonl')}")
    if split not in ("time", "file"):
        raise BadUsage(f"--split {split}: time or file")
    wish = history.Wish(commits, since, "time" if split == "time" else "file", held_out, sound, seed)
    source = git.Repository(repository, config.load().env)
    with progress.shown(as_json=json_) as on_event:
        found = history.make(source, wish, lambda text: (h.kind for h in detect.scan(text)), on_event)
    if not found.learn:
        raise BadUsage(
            f"{repository}: no rows: of {found.commits:,} commits none mends lines of another one that is looked at",
            hint="Look further back with --commits, or write rows by hand: see docs/how-to/finetune-data.md.",
            left_out=found.left_out,
        )
    held = output.with_name(f"{output.stem}-eval.jsonl")
    files.write(output, iter(found.learn))
    if found.held:
        files.write(held, iter(found.held))
    told = {
        "train": str(output), "eval": str(held) if found.held else None, "learn": len(found.learn),
        "held": len(found.held), "commits": found.commits, "left_out": found.left_out,
    }  # fmt: skip
    show.emit(told, as_json=json_, render=_made)


def _made(told: Any) -> None:
    from miyabi_llm.cli import show

    rows = [(f"{told['learn']:,}", "to learn from", told["train"])]
    rows += [(f"{told['held']:,}", "held out", told["eval"])] if told["eval"] else []
    rows += [(f"{n:,}", f"left out: {why}", "") for why, n in sorted(told["left_out"].items(), key=lambda x: -x[1])]
    show.table(("ROWS", "", "FILE"), rows)
    show.note("Read them before you train: what a commit mends, and what it only changes, is guessed from its words.")


def _shown(told: Any) -> None:
    report = told["report"]
    print(f"{report.total:,} rows: {report.rows:,} read ({report.format or 'no form'}), {report.bad:,} not")
    tokens(report.tokens)
    findings(report.findings)


def findings(found: Sequence[Any]) -> None:
    """The findings as a table, the worst first."""
    from miyabi_llm.cli import show
    from miyabi_llm.finetune import data

    rows = [(f.level, f.check, data.shown(f) + (f" ({f.fix})" if f.fix else "")) for f in found]
    show.table(("LEVEL", "CHECK", "WHAT"), rows or [("fine", "-", "nothing was found")])


def tokens(found: Mapping[str, Any]) -> None:
    """What the rows are like as tokens: how many, how many of them trained, how long rows are."""
    if not found:
        return
    print(
        f"{found['total']:,} tokens, {found['trained']:,} trained ({found['trained_ratio']:.0%}); a row has "
        f"{found['shortest']:,} to {found['longest']:,}, half of them {found['median']:,} or less"
    )
    most = max(count for _, count in found["histogram"])
    for longest, count in found["histogram"]:
        print(f"  to {longest:>6,} tokens {'▇' * max(1, round(40 * count / most))} {count:,}")
