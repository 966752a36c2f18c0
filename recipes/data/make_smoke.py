"""Write smoke.jsonl: words from messages to a help desk, and the one word that says who answers. Closed, and ours."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

TARGET = Path(__file__).parent / "smoke.jsonl"
SYSTEM = "Name the team."
TEAMS = {
    "billing": ["invoice", "refund", "receipt", "payment", "price list", "credit note", "tax form", "discount"],
    "access": ["password", "login", "badge", "two-factor code", "account", "permission", "key card", "user name"],
    "delivery": ["parcel", "courier", "pallet", "shipment", "tracking number", "address label", "container", "crate"],
    "printing": ["printer", "toner", "paper tray", "scanner", "label maker", "copier", "ink cartridge", "plotter"],
    "network": ["wifi", "router", "VPN", "firewall", "cable", "switch", "DNS entry", "access point"],
    "people": ["holiday", "sick note", "payslip", "parental leave", "contract", "time sheet", "interview", "trainee"],
}
FRAMES = ["{}: who can help?", "{}: wrong since Monday.", "Question about {}."]
ROWS = 32  # a team; of the 70 ways to take four of its eight words
WORDS = 4  # in a message


def rows() -> list[dict[str, object]]:
    """No two messages hold the same four words: what is held out was never seen, though each of its words was."""
    rng = random.Random(5)
    made = []
    for team, words in TEAMS.items():
        chosen = list(itertools.combinations(words, WORDS))
        rng.shuffle(chosen)
        for i, some in enumerate(chosen[:ROWS]):
            asked = FRAMES[i % len(FRAMES)].format(", ".join(rng.sample(some, WORDS)))
            turns = [("system", SYSTEM), ("user", asked), ("assistant", team)]
            made.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    rng.shuffle(made)
    return made


def text() -> str:
    """The file as it should be."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
