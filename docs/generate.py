"""Write docs/reference/cli.md from the commands themselves; `--check` fails when the file is out of date."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from miyabi_llm.cli.app import COMMANDS, app

TARGET = Path(__file__).parent / "reference" / "cli.md"
HEAD = """# Command reference

Written from the commands themselves by `docs/generate.py`; a test keeps it true.

Every command takes `--json` and then prints the value it returns, or `{"error": …}`, as one JSON document on
stdout. People's text, progress and warnings go to stderr. Exit codes:

| code | meaning |
|---|---|
| 0 | fine |
| 1 | failed |
| 2 | wrong usage |
| 3 | a needed program or model is missing |
| 4 | the machine cannot do it (memory, disk, GPU, context) |
| 5 | a gate failed |
| 6 | a measurement was inconclusive |
| 7 | a measurement was invalid |
| 130 | interrupted |
"""


def sections(name: str, command: Any, context: Any, level: int = 2) -> Iterator[str]:
    """The Markdown of one command, and of its subcommands."""
    inner = type(context)(command, info_name=name, parent=context)
    yield f"\n{'#' * level} `miyabi-llm {_path(inner)}`\n"
    yield f"\n{_text(command.help)}\n"
    rows = [r for p in command.get_params(inner) if (r := p.get_help_record(inner)) and "--help" not in r[0]]
    usage = " ".join(command.collect_usage_pieces(inner))
    yield f"\n```text\nmiyabi-llm {_path(inner)} {usage}\n```\n"
    if rows:
        yield "\n| | |\n|---|---|\n"
        yield from (f"| `{_cell(option)}` | {_cell(text)} |\n" for option, text in rows)
    for sub in sorted(getattr(command, "commands", {})):
        yield from sections(sub, command.commands[sub], inner, level + 1)


def _path(context: Any) -> str:
    names = []
    while context.parent is not None:
        names.append(context.info_name)
        context = context.parent
    return " ".join(reversed(names))


def _text(text: str | None) -> str:
    import inspect

    return inspect.cleandoc(text or "").replace("\f", "").replace("\b", "").strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;") if text else ""


def page() -> str:
    """The whole page."""
    group: Any = typer.main.get_command(app)
    root = group.make_context("miyabi-llm", [], resilient_parsing=True)
    parts = [HEAD]
    for name in COMMANDS:
        parts += sections(name, group.get_command(root, name), root)
    return "".join(parts)


def main() -> int:
    """Write or check the page."""
    text = page()
    if "--check" in sys.argv:
        if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
            print("docs/reference/cli.md is out of date: run python docs/generate.py", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
