"""The group's table of verbs against the modules behind it."""

import typer

from miyabi_llm.cli.finetune import VERBS, app


def test_the_table_of_verbs_says_what_the_docstrings_say() -> None:
    group = typer.main.get_command(app)
    for name, (_, text) in VERBS.items():
        command = group.get_command(None, name)  # type: ignore[attr-defined, arg-type]
        assert command is not None, name
        assert (command.help or "").strip().splitlines()[0] == text, name
