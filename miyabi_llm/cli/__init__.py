"""The command line: errors become one line, a hint and an exit code; a bug keeps its traceback."""

from __future__ import annotations

import sys
import textwrap
from typing import Any

from miyabi_llm.errors import BadUsage, MiyabiError


def main() -> None:
    """Run the command line and exit."""
    from miyabi_llm.cli import output

    output.install()
    sys.exit(execute(sys.argv[1:]))


def execute(argv: list[str]) -> int:
    """Run one command; returns its exit code."""
    from miyabi_llm.cli.output import OutputLost, explain

    try:
        code = _command(argv)
        sys.stdout.flush()
    except OutputLost as e:
        return explain(e)
    return code


def _command(argv: list[str]) -> int:
    import typer

    from miyabi_llm.cli.app import app

    usage_error: Any = typer.BadParameter.__base__  # of all mistakes in the words typer exports only this kind
    as_json = "--json" in argv[: argv.index("--") if "--" in argv else None]
    try:
        return int(app(argv, standalone_mode=False, prog_name="miyabi-llm") or 0)
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except MiyabiError as e:
        return _explain(e, as_json=as_json)
    except usage_error as e:
        return _explain_usage(e, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        print("\nmiyabi-llm: interrupted", file=sys.stderr)
        return 130


def _explain(e: MiyabiError, *, as_json: bool) -> int:
    _print_json(e, as_json=as_json)
    print(f"miyabi-llm: {e.message}", file=sys.stderr)
    if e.hint:
        print(textwrap.indent(e.hint, "  "), file=sys.stderr)
    return e.exit_code


def _explain_usage(e: Any, *, as_json: bool) -> int:
    """Show a mistake in the words of a command as the parser shows it: with the usage line."""
    if message := e.format_message():  # else it is the help that a bare group prints
        hint = f"Run `{e.ctx.command_path} --help`." if e.ctx is not None else None
        _print_json(BadUsage(message, hint=hint), as_json=as_json)
    e.show()
    return BadUsage.exit_code


def _print_json(e: MiyabiError, *, as_json: bool) -> None:
    if as_json:
        from miyabi_llm.cli import show

        print(show.document(e.as_dict()))
