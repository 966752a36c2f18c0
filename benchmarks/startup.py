"""CPU time of starting the command line, against a bare six-command Typer app and other tools; prints ratios."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RUNS = 15
BARE = """
import typer
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
{commands}
app()
"""
COMMAND = '''
@app.command()
def {name}(ref: str, port: int = typer.Option(8080, help="Port."), json: bool = typer.Option(False)) -> None:
    """Do {name}."""
'''


def cpu(argv: list[str], env: dict[str, str]) -> float:
    """User and system CPU seconds of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def main() -> None:
    """Interleave the commands, so that a slow moment of the machine hits all of them."""
    with tempfile.TemporaryDirectory() as tmp:
        bare = Path(tmp) / "bare.py"
        names = ["pull", "serve", "run", "quantize", "finetune", "bench"]
        bare.write_text(BARE.format(commands="".join(COMMAND.format(name=n) for n in names)))
        ours = str(Path(sys.executable).with_name("miyabi-llm"))
        commands = {
            "bare Typer app --help": [sys.executable, str(bare), "--help"],
            "miyabi-llm --help": [ours, "--help"],
            "miyabi-llm list --json": [ours, "list", "--json"],
        }
        if pipx := shutil.which("pipx", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])):
            commands["pipx --help"] = [pipx, "--help"]
        env = os.environ | {"MIYABI_HOME": f"{tmp}/home"}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(RUNS + 1):
            for name, argv in commands.items():
                times[name].append(cpu(argv, env))
    medians = {name: statistics.median(seen[1:]) for name, seen in times.items()}
    base = medians["bare Typer app --help"]
    print(f"{'command':26} {'CPU ms':>8} {'ratio to bare':>14}   (median of {RUNS}, interleaved)")
    for name, seconds in medians.items():
        print(f"{name:26} {1000 * seconds:8.1f} {seconds / base:14.2f}")
    if "pipx --help" not in medians:
        print("pipx: not installed, left out (python -m pip install pipx)")


if __name__ == "__main__":
    main()
