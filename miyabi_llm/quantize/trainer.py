"""An adapter as the library that trained it has it (peft): what it says after a prompt, and merged into its base.

The library runs in a child, in the environment of the training engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm import engines
from miyabi_llm.config import Settings
from miyabi_llm.engines.base import Job
from miyabi_llm.types import OnEvent, silent

ENGINE = "trl"
POSITIONS = 48  # tokens of ROWS whose probabilities are compared after a merge
MOST = 1e-3  # nats: mean divergence that rounding the merged weights to 16 bits may cost
ROWS = (  # texts of several kinds on which a merged model is held against base and adapter
    ("The capital of Japan is", " Tokyo, and the largest city of the country."),
    ("def add(a, b):\n    return", " a + b\n\n\ndef sub(a, b):\n    return a - b\n"),
    ("Q: What is 2 + 2?\nA:", " 4. It is an even number."),
    ("日本の首都は", "東京です。人口が多い都市です。"),
)


@dataclass(frozen=True, slots=True)
class Trainer:
    """The engine with what it runs in: `work` is a folder of ours for its orders and its log."""

    settings: Settings
    work: Path
    on_event: OnEvent = silent

    @property
    def here(self) -> bool:
        """Whether its environment is installed."""
        return engines.get(ENGINE).find(self.settings) is not None

    def install(self) -> None:
        """Bring the environment, some 2 GB, if it is not here. Raises Missing, NetworkError."""
        engines.get(ENGINE).install(self.settings, self.on_event)

    def chances(
        self, base: Path, adapter: Path | None, asked: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[dict[int, float]]:
        """Log-probabilities of the wanted tokens after each prompt (ids), in 32 bits, the adapter not merged."""
        order = {"model": _model(base, adapter), "asked": [[list(ids), list(tokens)] for ids, tokens in asked]}
        told = self._run("chances", order)["chances"]
        return [dict(zip(tokens, row, strict=True)) for (_, tokens), row in zip(asked, told, strict=True)]

    def merge(self, base: Path, adapter: Path, target: Path) -> Mapping[str, Any]:
        """Write the merged model to the new folder `target`; how far it is from base and adapter (`kld`, `same_top`).

        Raises GateFailed when it is another model, MachineLimit, MiyabiError.
        """
        rows = self.work / "rows.jsonl"
        lines = (json.dumps({"prompt": p, "completion": c}, ensure_ascii=False) for p, c in ROWS)
        rows.write_text("\n".join(lines), encoding="utf-8")
        order = {
            "model": _model(base, adapter), "rows": str(rows), "positions": POSITIONS, "base": "trained",
            "target": str(target), "template": {}, "most": MOST,
        }  # fmt: skip
        return self._run("merge", order)

    def _run(self, kind: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        return engines.get(ENGINE).run(Job(kind, order), self.work, self.settings, self.on_event)


def _model(base: Path, adapter: Path | None) -> dict[str, Any]:
    named = str(adapter.absolute()) if adapter is not None else None
    return {"base": str(base.absolute()), "adapter": named, "nf4": False, "precision": "fp32"}
