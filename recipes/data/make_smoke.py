"""Write smoke.jsonl: messages to a help desk, and the one word that says who answers. Small, closed, and ours."""

from __future__ import annotations

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
}  # fmt: skip
FRAMES = [
    "There is a problem with the {} since this morning.",
    "Who can help me with a {}?",
    "I have a question about the {} of our branch.",
    "The {} from last week is wrong, please look into it.",
    "Could somebody explain to me how the {} works here?",
    "Nobody answers when I ask for the {}.",
    "We need another {} before Friday.",
    "My colleague says that the {} is missing again.",
]


def rows() -> list[dict[str, object]]:
    """Each word in four of the eight sentences; every sentence and every word is learned, no pair is learned twice."""
    made = []
    for number, (team, words) in enumerate(TEAMS.items()):
        for i, word in enumerate(words):
            for j in range(4):
                asked = FRAMES[(i + number + 2 * j + j // 2) % len(FRAMES)].format(word)
                made.append([
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": asked},
                    {"role": "assistant", "content": team},
                ])  # fmt: skip
    random.Random(5).shuffle(made)
    return [{"messages": turns} for turns in made]


def text() -> str:
    """The file as it should be."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
