# ruff: noqa: E501  # tables of patterns and words
"""Numbers of people and firms: runs of digits, told apart by check digits, grouping and the words before them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from miyabi_llm.detect.values import Hit

# Seven digits or more, at most three separators between two; not inside a longer word.
_RUN = re.compile(r"(?<![0-9A-Za-z_])T?[+(]?[0-9](?:[- .()]{0,3}[0-9]){5,}+")
_SEPARATED = re.compile(r"[- .()]+[0-9]+\Z")
_LOOK = 28  # characters before a run in which a label counts
_LABELS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("my-number", r"マイ・?ナンバー|個人番号|my[ _-]?number"),
        ("corporate-number", r"法人番号|登録番号|corporate[ _-]?number"),
        ("licence-jp", r"免許|licen[cs]e"),
        ("insurance-jp", r"保険"),
        ("pension-jp", r"年金"),
        ("bank-account", r"口座|(?:普通|当座|貯蓄)(?:預金)?[ :]{0,3}\Z|account[ _-]?(?:no|number|#)"),
        ("ssn", r"ssn|social|taxpayer|tax[ _-]?id"),
        ("credit-card", r"カード|クレジット|card|(?<![a-z])cc|visa|master|amex|jcb|決済"),
        ("postal-code", r"〒|郵便"),
        ("passport", r"passport|旅券|パスポート"),
        ("", r"isbn|(?<![a-z])(?:ean|jan|order)|version|注文|品番|型番"),
        (
            "phone",
            r"電話|携帯|ファックス|連絡先|phone|(?<![a-z])(?:tel|fax|mobile|cell|call|text|reach|whatsapp|sms)(?:ing|ed|s)?(?![a-z])",
        ),
    )
)
_PREFECTURE = re.compile(r"\s{0,3}(?:東京都|北海道|(?:大阪|京都)府|[一-龥]{2,3}県)")
_FIRM = re.compile(r"会社|法人|\(株\)|\(有\)|銀行|組合|財団|社団")


def my_number(digits: str) -> bool:
    """The check digit of 12 digits (ministerial ordinance no. 85 of 2014, article 5). Pure."""
    rest = sum(int(d) * w for d, w in zip(digits, (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2), strict=False)) % 11
    return int(digits[11]) == (0 if rest <= 1 else 11 - rest)


def corporate_number(digits: str) -> bool:
    """The check digit of 13 digits, the first (ordinance of the Ministry of Finance no. 70 of 2014, article 2). Pure."""
    total = sum(int(d) * (1 if i % 2 == 0 else 2) for i, d in enumerate(reversed(digits[1:])))
    return int(digits[0]) == 9 - total % 9


def luhn(digits: str) -> bool:
    """The check digit of card numbers (ISO/IEC 7812-1, annex B). Pure."""
    total = 0
    for i, d in enumerate(reversed(digits)):
        n = int(d) * (2 if i % 2 else 1)
        total += n - 9 if n > 9 else n
    return total % 10 == 0


def find(text: str) -> Iterator[Hit]:
    """Every such number in a text (already in one width)."""
    for run in _RUN.finditer(text):
        end = run.end()
        after = text[end : end + 1]
        if after == "_" or (after.isascii() and after.isalpha()):  # the last group belongs to a word
            last = _SEPARATED.search(run[0], max(0, len(run[0]) - 64))
            if last is None:
                continue
            end = run.start() + last.start()
        yield from _judge(text, run.start(), end)


def _judge(text: str, start: int, end: int) -> Iterator[Hit]:
    """The whole run, or the parts of it between spaces that are something by themselves."""
    label = _label(text[max(0, start - _LOOK) : start])
    left, right = _alone(text, start, end)
    hit = _what(text, start, end, label, alone=left and right)
    if hit:
        yield hit
        return
    pieces = [(m.start() + start, m.end() + start) for m in re.finditer(r"[^ ]+", text[start:end])]
    i = 0
    if all(b - a == 1 for a, b in pieces):
        return
    while len(pieces) > 1 and i < len(pieces):
        for j in range(min(len(pieces), i + 6), i, -1):
            if (i, j) == (0, len(pieces)):
                continue
            alone = (left or i > 0) and (right or j < len(pieces))
            hit = _what(text, pieces[i][0], pieces[j - 1][1], label if i == 0 else "", alone=alone)
            if hit:
                yield hit
                i = j - 1
                break
        i += 1


def _label(before: str) -> str:
    """The kind that the nearest label before a number names, on the same line or the one above."""
    if not before.strip():
        return ""
    best, at = "", -1
    for kind, pattern in _LABELS:
        for m in pattern.finditer(before):
            if m.end() > at:
                best, at = kind, m.end()
    return best


def _alone(text: str, start: int, end: int) -> tuple[bool, bool]:
    """False on the side where it is a part of something longer: a UUID, a path, a decimal."""
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    left = len(before) == 2 and before[1] in "-./:" and before[0].isascii() and before[0].isalnum()
    right = len(after) == 2 and after[0] in "-.:/" and after[1].isascii() and after[1].isalnum()
    return not left and not before.endswith(("#", "0x")), not right


def _what(text: str, start: int, end: int, label: str, *, alone: bool) -> Hit | None:
    part = text[start:end]
    groups = re.findall(r"[0-9]+", part)
    digits = "".join(groups)
    sizes = tuple(len(g) for g in groups)
    if all(n == 1 for n in sizes):  # written one by one
        sizes = (len(digits),)
    if part[0] == "T" and len(digits) == 13 and corporate_number(digits):
        return Hit("corporate-number", start, end, 1.0)
    if part[0] == "T":
        return None
    kind, sure = _labelled(label, digits, part)
    if not kind and alone and len(set(digits)) > 2 and "123456789" not in digits:
        kind, sure = _bare(text, start, end, digits, sizes)
    return Hit(kind, start, end, sure) if kind else None


def _labelled(label: str, digits: str, part: str) -> tuple[str, float]:
    n = len(digits)
    if label == "my-number" and n == 12:
        return label, 1.0 if my_number(digits) else 0.7
    if label == "corporate-number" and n == 13:
        return label, 1.0 if corporate_number(digits) else 0.6
    if label == "credit-card" and 13 <= n <= 19 and luhn(digits):
        return label, 1.0
    if label == "phone" and 9 <= n <= 15 and len(set(digits)) > 2 and "123456789" not in digits:
        return "phone-jp" if digits[0] == "0" or part.startswith("+81") else "phone-us", 0.8
    wants = {"licence-jp": (12,), "insurance-jp": (6, 7, 8, 10), "pension-jp": (10,), "bank-account": (6, 7, 8, 10, 12),
             "ssn": (9,), "postal-code": (7,), "passport": (9,)}  # fmt: skip
    return (label, 0.8) if n in wants.get(label, ()) else ("", 0.0)


def _bare(text: str, start: int, end: int, digits: str, sizes: Sequence[int]) -> tuple[str, float]:
    """A number without a label, by its grammar alone."""
    part, n = text[start:end], len(digits)
    if part[0] == "+" and 9 <= n <= 15 and (len(sizes) == 1 or min(sizes[1:]) >= 2):
        return "phone-jp" if digits.startswith("81") else "phone-us", 0.9
    if digits[0] == "0" and (kind := _japanese(part, digits, sizes)):
        return kind
    if n == 12 and sizes in ((12,), (4, 4, 4), (3, 3, 3, 3)) and "." not in part and my_number(digits):
        return "my-number", 1.0 if len(sizes) > 1 else 0.7
    if 14 <= n <= 19 and _card(digits, sizes) and "." not in part:
        return "credit-card", 1.0
    if n == 13 and len(sizes) == 1 and corporate_number(digits) and _FIRM.search(text[max(0, start - 40) : end + 40]):
        return "corporate-number", 0.8
    if sizes == (3, 2, 4) and re.fullmatch(r"[0-9]+([- ])[0-9]+\1[0-9]+", part) and _ssn(digits):
        return "ssn", 0.8
    if sizes in ((3, 3, 4), (1, 3, 3, 4)) and re.fullmatch(r"1?[2-9][0-9]{2}[2-9][0-9]{6}", digits):
        return "phone-us", 0.8
    if sizes == (3, 4) and part[3:4] == "-" and (_PREFECTURE.match(text, end) or text[:start].rstrip().endswith("〒")):
        return "postal-code", 0.9
    return "", 0.0


def _japanese(part: str, digits: str, sizes: Sequence[int]) -> tuple[str, float] | None:
    """Phone numbers that begin with 0, by the numbering plan of the Ministry of Internal Affairs."""
    mobile = re.fullmatch(r"0[5-9]0[0-9]{8}", digits) or re.fullmatch(r"0800[0-9]{7}", digits)
    if "." in part:
        return None
    if mobile and (len(sizes) == 1 or min(sizes) >= 2):
        return "phone-jp", 0.95
    if len(digits) == 10 and digits[1] in "123456789" and digits[2:] != "0" * 8:
        grouped = len(sizes) == 3 and sizes[2] == 4 and 2 <= sizes[0] <= 5
        if grouped or part.startswith("(0"):
            return "phone-jp", 0.95
        if len(sizes) == 1:
            return "phone-jp", 0.6
    return None


def _card(digits: str, sizes: Sequence[int]) -> bool:
    """Luhn, a prefix of a scheme, and a grouping that people write."""
    usual = len(sizes) == 1 or set(sizes[:-1]) in ({4}, {3}) or tuple(sizes) in ((4, 6, 5), (4, 6, 4))
    scheme = re.match(r"4|5[1-5]|2[2-7]|3[4-9]|30|6(?:011|4|5|0|2|7)|50|5[6-9]|18|21", digits)
    return usual and scheme is not None and luhn(digits)


def _ssn(digits: str) -> bool:
    """Areas 000, 666 and 9xx, group 00 and serial 0000 are never given out (SSA, POMS RM 10201.035)."""
    return digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"
