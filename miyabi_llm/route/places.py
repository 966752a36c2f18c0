"""Where routing keeps its files: one folder in the user's data, shared by the gateway and `miyabi-llm route`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.config import Settings


@dataclass(frozen=True, slots=True)
class Places:
    """`policy` and `prices` are the user's own files; the others are the gateway's."""

    policy: Path
    prices: Path
    audit: Path
    ledger: Path
    taint: Path
    secret: Path


def places(settings: Settings) -> Places:
    """The places of these settings. policy.yaml stands in where there is no policy.toml. Pure but for that look."""
    folder = settings.home / "gateway"
    policy = settings.config / "policy.toml"
    other = settings.config / "policy.yaml"
    return Places(
        other if other.is_file() and not policy.exists() else policy,
        settings.config / "prices.toml",
        folder / "audit.jsonl",
        folder / "ledger.sqlite",
        folder / "taints.sqlite",
        folder / "key",
    )
