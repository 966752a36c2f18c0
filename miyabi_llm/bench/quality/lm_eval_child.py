"""Runs in the environment of lm-evaluation-harness: says what kind its tasks are, or runs it."""

import json
import sys
from typing import Any

SAID = "miyabi-said "  # before the one line that is meant for the parent


def kinds(include: str, names: list[str]) -> dict[str, str | None]:
    """What each task asks of a server: its `output_type`; "group" where it is several, None where there is none."""
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found, unused-ignore]

    index: Any = TaskManager(include_path=include or None).task_index
    return {name: _kind(index.get(name)) for name in names}


def _kind(entry: Any) -> str | None:
    if entry is None:
        return None
    config = getattr(entry, "cfg", None) or {}
    return str(config.get("output_type") or "group")


def main() -> None:
    """`kinds INCLUDE TASK...` or `run ARGUMENTS...`."""
    if sys.argv[1] == "kinds":
        from importlib.metadata import version

        found = {"tasks": kinds(sys.argv[2], sys.argv[3:]), "version": version("lm_eval")}
        sys.stdout.write(f"{SAID}{json.dumps(found)}\n")
        return
    from lm_eval.__main__ import cli_evaluate  # type: ignore[import-not-found, unused-ignore]

    sys.argv[:] = ["lm_eval", "run", *sys.argv[2:]]
    cli_evaluate()


if __name__ == "__main__":
    main()
