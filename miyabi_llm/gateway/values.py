"""What a gateway is started with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BACKEND = "gateway"  # what `ps` and a state file call it
NAME = "gateway"  # of one that was given none
MODEL = "gateway"  # the name under which its supervisor knows it; no request is answered under it


@dataclass(frozen=True, slots=True)
class Order:
    """How a gateway runs. `policy` is the file, None: only the local targets in `servers`.

    `work` is a private folder for its socket; `audit` and `ledger` are files that outlive it, `prices` is the user's
    own price table. `hosts` and `origins` are let in beside the usual ones. `servers` are running servers of ours:
    (name, base URL, model, backend). `ui` serves the page.
    """

    host: str
    port: int
    work: Path
    audit: Path
    ledger: Path
    policy: Path | None = None
    prices: Path | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    servers: tuple[tuple[str, str, str, str], ...] = ()
    ui: bool = False

    @property
    def socket(self) -> Path:
        """Where the process that sends to clouds listens."""
        return self.work / "egress.sock"

    def to_json(self) -> str:
        """The order as the processes read it."""
        body = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        return json.dumps(body, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Order:
        """What `to_json` wrote."""
        body: dict[str, Any] = json.loads(text)
        body |= {k: Path(body[k]) for k in ("work", "audit", "ledger")}
        body |= {k: Path(body[k]) if body[k] else None for k in ("policy", "prices")}
        body |= {k: tuple(body[k]) for k in ("hosts", "origins")}
        body["servers"] = tuple((n, u, m, b) for n, u, m, b in body["servers"])
        return cls(**body)
