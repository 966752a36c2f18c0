"""Several jobs after one another in one process: importing the libraries takes longer than many a job.

The order: `jobs`, each the order of a job with its `kind`. The answer: `answers`, in their order.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

KINDS = ("score", "merge", "logprobs")


def run(order: Mapping[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    """See the module."""
    found = []
    for job in order["jobs"]:
        if job["kind"] not in KINDS:
            raise ValueError(f"{job['kind']} is no job for here")
        module = importlib.import_module(f"miyabi_llm.engines.child.{job['kind']}")
        found.append(module.run(job, say))
    return {"answers": found}
