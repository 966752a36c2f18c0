"""Write the pages of PAGES under reference/ from the code; `--check` fails when one is out of date."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from miyabi_llm.cli.app import COMMANDS, app
from miyabi_llm.route.schema import SCHEMA

REFERENCE = Path(__file__).parent / "reference"
TARGET = REFERENCE / "cli.md"
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

RECIPE_HEAD = """# Recipe reference

Written from the schema itself by `docs/generate.py`; a test keeps it true. `miyabi-llm finetune schema -o recipe.json`
writes the same as a JSON Schema; with `# yaml-language-server: $schema=recipe.json` in its first line an editor
completes the keys of a recipe and marks what is wrong.

A recipe is YAML with plain values: tags, anchors, aliases, merge keys and a key given twice are refused. Numbers are
those of YAML 1.2, so `1e-4` is a number and `no` is a word. Paths begin where the recipe lies. `--set key.path=value`
puts another value in the place of a key; the value is YAML too: `--set lora.targets=[q_proj,v_proj]`, or
`--set gates.min_gain=` for none. An unknown key is an error with its line and the key that was meant, also when it is
another tool's.
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


POLICY_HEAD = """# The policy file

Written from the schema itself by `docs/generate.py`; a test keeps it true. `miyabi-llm route schema` prints the same as
JSON Schema. The file is TOML or, when its name ends in `.yaml` or `.yml`, YAML. It is closed: an unknown key is an
error that names the line and the key that was meant. What cannot be read whole denies every cloud target.

The last line of a policy with a cloud target is `# end of policy`: a file that was cut while it was written is seen to
be cut even where the rest is valid.
"""


def policy_page() -> str:
    """The page of the policy file."""
    return POLICY_HEAD + "".join(policy_tables(SCHEMA, "The file", 2))


def policy_tables(schema: dict[str, Any], title: str, level: int) -> Iterator[str]:
    """The keys of a table, then the tables in it."""
    yield f"\n{'#' * level} {title}\n\n{schema['description']}\n\n| key | | |\n|---|---|---|\n"
    inner: list[tuple[str, dict[str, Any]]] = []
    for key, body in schema["properties"].items():
        needed = " (needed)" if key in schema.get("required", ()) else ""
        yield f"| `{key}` | {_kind(body)}{needed} | {_cell(body['description'])} |\n"
        table = body.get("items", body)
        more = table.get("additionalProperties")
        if "properties" in table:
            inner.append((f"[[{key}]]" if body["type"] == "array" else f"[{key}]", table))
        elif isinstance(more, dict) and "properties" in more:
            inner.append((f"[{key}.NAME]", more))
    for name, table in inner:
        parent = "" if level == 2 else f"{title.strip('`[]')}."
        yield from policy_tables(table, f"`{name.replace('[', '[' + parent, 1) if parent else name}`", level + 1)


def _kind(body: dict[str, Any]) -> str:
    kind = {"object": "table", "array": "list", "string": "text", "integer": "whole number"}.get(
        body["type"], body["type"]
    )
    words = body.get("enum") or body.get("items", {}).get("enum")
    return f"{kind}: " + ", ".join(f"`{w}`" for w in words) if words else kind


def recipe_page() -> str:
    """The page of a recipe's keys."""
    from miyabi_llm.finetune import schema

    parts = [RECIPE_HEAD]
    section = ""
    for name, takes, default, text in schema.rows():
        if name.partition(".")[0] != section:
            section = name.partition(".")[0]
            parts.append(f"\n## `{section}`\n\n| key | value | default | |\n|---|---|---|---|\n")
        shown = f"`{default}`" if default else "needed"
        parts.append(f"| `{name}` | {_cell(takes)} | {shown} | {_cell(text)} |\n")
    return "".join(parts)


PAGES: dict[Path, Callable[[], str]] = {
    TARGET: page,
    REFERENCE / "policy.md": policy_page,
    REFERENCE / "recipe.md": recipe_page,
}


def main() -> int:
    """Write or check the pages."""
    old = 0
    for path, make in PAGES.items():
        text = make()
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"docs/reference/{path.name} is out of date: run python docs/generate.py", file=sys.stderr)
            old = 1
    return old


if __name__ == "__main__":
    sys.exit(main())
