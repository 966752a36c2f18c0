"""The command line starts light: what nobody asked for is not imported."""

import subprocess
import sys

import pytest

HEAVY = ["httpx", "pydantic", "rich", "numpy", "torch", "huggingface_hub", "psutil", "prompt_toolkit", "asyncio"]


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["list", "--json"]])
def test_light_commands_import_nothing_heavy(args: list[str], tmp_path) -> None:
    code = (
        "import sys; from miyabi_llm.cli import execute; rc = execute(sys.argv[1:]); "
        f"bad = [m for m in {HEAVY!r} if m in sys.modules]; "
        "print('heavy:', bad, file=sys.stderr); sys.exit(rc or bool(bad))"
    )
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "MIYABI_HOME": str(tmp_path / "m")}
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_table_of_commands_says_what_the_docstrings_say() -> None:
    import importlib

    import typer

    from miyabi_llm.cli.app import COMMANDS, app

    group = typer.main.get_command(app)
    for name, (module, text) in COMMANDS.items():
        command = group.get_command(None, name)  # type: ignore[attr-defined, arg-type]
        assert command is not None, name
        assert importlib.import_module(f"miyabi_llm.cli.{module}")
        assert (command.help or "").strip().splitlines()[0] == text, name
