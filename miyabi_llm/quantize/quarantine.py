"""A file that failed a gate: out of the way, kept for a look, with a report beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miyabi_llm.store import Fs, Store
from miyabi_llm.store.fs import explained, write_atomic


def keep(store: Store, target: Path, report: Mapping[str, Any]) -> tuple[Path, Path]:
    """Move `target` into the store's quarantine and write `report` beside it as JSON, with the file's name there.

    The paths of both. Raises MiyabiError.
    """
    place = store.blobs.quarantine(target)
    beside = place.with_name(f"{place.name}.json")
    with explained(beside):
        body = {"file": place.name, **report}
        write_atomic(Fs(), beside, json.dumps(body, ensure_ascii=False, indent=1).encode())
    return place, beside
