"""What a plan needs before its server can run: its files, links to our models, and its daemon awake."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path

from miyabi_llm.errors import ServerFailed
from miyabi_llm.serve.state import write_private
from miyabi_llm.tools.command import complete
from miyabi_llm.types import Event, LaunchPlan, OnEvent

WAKE_S = 120.0  # seconds a command that wakes a daemon may take


def lay_out(plan: LaunchPlan) -> None:
    """Write the plan's files and make its links; both replace what an earlier start left there.

    Raises ServerFailed when the disk does not let us.
    """
    try:
        for path, text in plan.files.items():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, text.encode())
        for target, source in plan.links.items():
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _link(source, target)
    except OSError as e:
        raise ServerFailed(f"{e.filename}: {e.strerror}", hint="`miyabi-llm doctor` judges this machine.") from e


def put_away(plan: LaunchPlan) -> None:
    """Remove what `lay_out` made: a link left behind would hold the bytes of a model that is removed."""
    for path in (*plan.links, *plan.files):
        with suppress(OSError):  # gone already, or a folder the server filled meanwhile
            path.unlink(missing_ok=True)
            path.parent.rmdir()


def wake(plan: LaunchPlan, on_event: OnEvent) -> None:
    """Run the plan's commands that wake a daemon, in order, as the user would: it is theirs, not ours.

    Raises ServerFailed with the words of the one that fails.
    """
    for argv in plan.wake:
        on_event(Event("phase", "wake", shlex.join(argv)))
        ran = complete(argv, timeout=WAKE_S)
        if ran.code != 0:
            why = ran.trouble or f"ended with {ran.code}"
            raise ServerFailed(f"`{shlex.join(argv)}` {why}: {ran.text.strip()[-500:]}", hint="Run it by hand.")


def _link(source: Path, target: Path) -> None:
    """Give `source` the second name `target`: a hard link, a symbolic one across file systems."""
    source = source.resolve(strict=True)  # a hard link to a symbolic link would not survive it
    if target.exists() and target.samefile(source):
        return
    with suppress(FileNotFoundError):
        target.unlink()
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # another file system, or one without hard links
        target.symlink_to(source)
