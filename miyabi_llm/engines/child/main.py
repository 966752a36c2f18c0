"""Do the job in ORDER.json with child/<job>.py and write its answer; run as a script by `engines.worker`.

Every job is `run(order, say) -> dict`. This environment has no miyabi-llm installed: the package is read from where
this file lies, and nothing else that lies there.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main() -> int:
    """0 when the answer is written; 1 when the job failed: its error is the last event."""
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    _package(Path(__file__).resolve().parents[2])
    from miyabi_llm.engines.child import common

    say = common.Say(order["events"])
    name = str(order["job"])
    if not name.isidentifier():
        say.failed("usage", f"no job is called {name!r}")
        return 1
    try:
        job = importlib.import_module(f"miyabi_llm.engines.child.{name}")
        told: dict[str, Any] = job.run(order, say)
    except common.Failed as e:
        say.failed(e.code, e.message, e.hint, **e.data)
        return 1
    except Exception as e:  # whatever a library raises is told in one line; the trace is in the log
        traceback.print_exc()
        say.failed(*common.named(name, e))
        return 1
    if common.main_process():
        _write(Path(order["answer"]), told)
    return 0


def _package(folder: Path) -> None:
    """Make `miyabi_llm` importable from `folder`, and not its neighbours, which belong to another environment."""
    spec = importlib.util.spec_from_file_location(
        "miyabi_llm", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["miyabi_llm"] = module
    spec.loader.exec_module(module)


def _write(path: Path, told: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as f:
        json.dump(told, f, ensure_ascii=False)
        f.flush()
        os.fsync(f.fileno())
    part.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
