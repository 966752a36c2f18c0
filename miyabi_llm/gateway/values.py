"""What a gateway is started with."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

BACKEND = "gateway"  # what `ps` and a state file call it
NAME = "gateway"  # of one that was given none
SOCKET: Final = 100  # bytes of a socket's path; systems take 103 or 107
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
        """Where the process that sends to clouds listens: in `work`, or where the path is too long, a short one."""
        path = self.work / "egress.sock"
        if len(os.fsencode(path)) <= SOCKET:
            return path
        name = hashlib.sha256(os.fsencode(self.work)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"miyabi-llm-{os.getuid()}-{name}" / path.name

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
