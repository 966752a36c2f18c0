"""The job `read`: rows of Parquet files, of saved data sets and of the hub, written as JSONL."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EVERY = 1000  # rows between two words about progress


def run(order: dict[str, Any], say: Any) -> dict[str, Any]:
    """Read `order["source"]` (a path, or a `name` of the hub with `split`) and write `order["target"]`."""
    from miyabi_llm.engines.child.common import Failed

    try:
        data = _load(order)
    except (OSError, ValueError, ConnectionError) as e:
        raise Failed("usage", f"{order['shown']}: {str(e).splitlines()[0][:300]}", _advice(order)) from e
    if isinstance(data, Mapping):
        raise Failed("usage", f"{order['shown']} has several splits: {', '.join(data)}", "Name one: hf:ORG/NAME:SPLIT.")
    with open(order["target"], "w", encoding="utf-8") as target:
        for i, row in enumerate(data, 1):
            target.write(json.dumps(_plain(row), ensure_ascii=False, default=str) + "\n")
            if i % EVERY == 0:
                say("progress", "read", done=i, total=len(data), unit="rows")
    return {"rows": len(data), "columns": list(data.column_names), "fingerprint": data._fingerprint}


def _load(order: Mapping[str, Any]) -> Any:
    """The data set. Nothing of a data set is run: builder scripts are not loaded by datasets 5."""
    import datasets

    datasets.disable_progress_bars()
    if order.get("name"):
        return datasets.load_dataset(order["name"], split=order.get("split") or "train")
    path = Path(order["source"])
    if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        return datasets.load_from_disk(str(path))
    files = sorted(str(p) for p in path.glob("*.parquet")) if path.is_dir() else [str(path)]
    kind = "arrow" if path.suffix == ".arrow" else "parquet"
    return datasets.load_dataset(kind, data_files=files, split="train", cache_dir=order["cache"])


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the nulls that columns of mixed rows are filled up with."""
    return {k: v for k, v in row.items() if v is not None}


def _advice(order: Mapping[str, Any]) -> str:
    if order.get("name") and os.environ.get("HF_HUB_OFFLINE") == "1":
        return "Only data sets that are in the hub's cache can be read: download it once, or give a file."
    return "Give a .parquet file, a folder of them, or a folder that `save_to_disk` wrote."
