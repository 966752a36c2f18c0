"""`finetune new`: a recipe for one's own rows, by questions on a terminal or by options."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
LORA = ("qlora", "lora", "rslora", "dora", "full")


@app.command("new")
def new(
    data: Path | None = typer.Option(None, "--data", "-d", metavar="FILE", help="Your rows."),
    base: str | None = typer.Option(None, "--base", "-b", metavar="REF", help="The model to start from."),
    name: str | None = typer.Option(None, "--name", help="What the tuned model is called."),
    lora: str | None = typer.Option(None, "--lora", metavar="METHOD", help="qlora, lora, rslora, dora or full."),
    system: str | None = typer.Option(None, "--system", metavar="TEXT", help="System prompt for rows without one."),
    output: Path | None = typer.Option(None, "--output", "-o", metavar="FILE", help="The recipe; NAME.yaml."),
    force: bool = typer.Option(False, "--force", help="Write over a file that is there."),
    json_: bool = typer.Option(False, "--json", help="Print one JSON document; asks nothing."),
) -> None:
    """Write a recipe for your own rows: it looks at them, and asks what it cannot see."""
    from miyabi_llm import config
    from miyabi_llm.cli import show
    from miyabi_llm.errors import BadUsage
    from miyabi_llm.finetune import new as verb

    asks = sys.stdin.isatty() and sys.stderr.isatty() and not json_
    if data is None:
        if not asks:
            raise BadUsage("which rows?", hint="Give them with --data FILE.")
        data = Path(_ask("Your rows (.jsonl, .json, .csv)", ""))
    seen = verb.look(data)
    told = f"{seen.rows:,} rows ({seen.form or 'no form'})" + (f", {seen.bad:,} cannot be read" if seen.bad else "")
    show.note(f"{data}: {told}")
    if seen.bad:
        show.note(f"  {seen.first_problem}")
    if seen.roles:
        show.note(f"  roles taken as: {verb.roles_told(seen)}; they stand in data.roles")
    default = config.load().default_model
    chosen = base or (_ask("Model to start from", default) if asks else default)
    called = name or (_ask("Name of the tuned model", data.stem) if asks else data.stem)
    how = lora or (_ask(f"Training ({', '.join(LORA)})", LORA[0]) if asks else LORA[0])
    target = output or Path(f"{called}.yaml")
    if target.exists() and not force:
        raise BadUsage(f"{target} is there already", hint="Choose another with -o, or write over it with --force.")
    text = verb.compose(verb.Answers(data, chosen, called, how, system), seen, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    show.emit({"recipe": str(target), "rows": seen}, as_json=json_, render=lambda _: print(target))
    show.note(f"Next: miyabi-llm finetune preview {target}, then miyabi-llm finetune {target}")


def _ask(question: str, default: str) -> str:
    """A question on stderr: stdout is for what the command gives."""
    answer: str = typer.prompt(question, default=default or None, err=True)
    return answer
