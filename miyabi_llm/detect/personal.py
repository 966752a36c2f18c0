# ruff: noqa: E501, SIM905  # tables of patterns and words
"""Personal data that is more than a number: mail and network addresses, postal addresses, accounts, documents, names."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from miyabi_llm.detect.values import Hit

_LOCAL = re.compile(r"[A-Za-z0-9._%+'-]{1,64}\Z")
_DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,6}([A-Za-z]{2,24})(?![A-Za-z0-9])")
_FILES = frozenset("png jpg jpeg gif svg webp js ts tsx jsx css scss py rb go rs java json md txt html map".split())
_RESERVED = ("example.com", "example.org", "example.net", "example.jp", "example.co.jp", "localhost.localdomain")
_NOBODY = frozenset("noreply no-reply donotreply do-not-reply git postmaster mailer-daemon".split())

_IP = re.compile(r"(?<![0-9A-Za-z.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9A-Za-z]|\.[0-9])")
_KNOWN_IPS = frozenset("8.8.8.8 8.8.4.4 1.1.1.1 1.0.0.1 9.9.9.9".split())
_VERSION = re.compile(r"(?:v|ver|version|==|>=|~=|バージョン|release|chrome/|/)[ :]?\Z", re.IGNORECASE)

_HOST = re.compile(
    r"ip|host|addr|from|server|ssh|ping|connect|dns|peer|client|node|@|//|サーバ|接続|アドレス", re.IGNORECASE
)

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_BANK = re.compile(r"(?:普通|当座|貯蓄)[^0-9\n]{0,10}[0-9](?:[ -]?[0-9]){5,7}(?![0-9])")
_BANKS = re.compile(r"銀行|信用金庫|信金|信用組合|農協|労金")
_PASSPORT = re.compile(
    r"(?:passport|旅券|パスポート)[^\n]{0,20}?(?<![A-Za-z0-9])((?:[A-Z]{1,2} ?[0-9](?: ?[0-9]){5,7}|[0-9]{9})(?![A-Za-z0-9]))",
    re.IGNORECASE,
)
_RESIDENCE = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2} ?[0-9](?: ?[0-9]){7} ?[A-Z]{2}(?![A-Za-z0-9])")

_DATE = (
    r"(?:(?:19|20)[0-9]{2}\s?[-/.年]\s?[0-9]{1,2}\s?[-/.月]\s?[0-9]{1,2}日?|(?:明治|大正|昭和|平成|令和|[MTSHR])\s?(?:[0-9]{1,2}|元)\s?[年.]"
    r"\s?[0-9]{1,2}\s?[月.]\s?[0-9]{1,2}日?|[0-9]{1,2}[/.-][0-9]{1,2}[/.-](?:19|20)[0-9]{2}|"
    r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}\.? [0-9]{1,2},? (?:19|20)[0-9]{2})"
)
_BORN_WORDS = ("生年月日", "誕生日", "出生日", "DOB", "dob", "D.O.B", "irth", "IRTH", "orn ")
_BORN = re.compile(
    rf"(?:生年月日|誕生日|出生日|(?<![A-Za-z])(?:DOB|dob|D\.O\.B\.?)|of[ _-][Bb]irth|[Bb]irth[ _-]?(?:date|day)|"
    rf"BIRTH[ _-]?DA(?:TE|Y)|[Bb]orn(?: on)?)[^\n0-9]{{0,14}}?{_DATE}"
)
_BORN_AFTER = re.compile(rf"{_DATE}\s?\Z")
_AFTER = re.compile(r"生まれ|生(?=[^一-龥]|\Z)")

_PREFECTURES = (
    "北海道|青森県|岩手県|宮城県|秋田県|山形県|福島県|茨城県|栃木県|群馬県|埼玉県|千葉県|東京都|神奈川県|新潟県|富山県|石川県|福井県|山梨県|長野県|"
    "岐阜県|静岡県|愛知県|三重県|滋賀県|京都府|大阪府|兵庫県|奈良県|和歌山県|鳥取県|島根県|岡山県|広島県|山口県|徳島県|香川県|愛媛県|高知県|福岡県|"
    "佐賀県|長崎県|熊本県|大分県|宮崎県|鹿児島県|沖縄県"
)
_PLACE = r"[一-龥々ぁ-んァ-ヶー0-9A-Za-z ]"
_HOUSE = r"[0-9〇一二三四五六七八九十]{1,4}(?:丁目|番地?|号|条|-[0-9]{1,4})"
_ADDRESS_JA = re.compile(rf"(?:{_PREFECTURES})\s?[一-龥々ぁ-んァ-ヶー ]{{1,14}}?[市区郡町村]{_PLACE}{{0,24}}?{_HOUSE}")
_ADDRESS_JA_SHORT = re.compile(
    r"[一-龥々]{1,6}[市区][一-龥々ァ-ヶ]{1,10}[0-9]{1,3}(?:丁目|-[0-9]{1,3}-[0-9]{1,3}|番地)"
)

_STATES = frozenset(
    "AL AK AS AZ AR CA CO CT DE DC FL FM GA GU HI ID IL IN IA KS KY LA ME MH MD MA MI MN MS MO MP MT NE NV NH NJ NM NY NC ND "
    "OH OK OR PA PR PW RI SC SD TN TX UT VT VA VI WA WV WI WY AA AE AP".split()
)
_ZIP = re.compile(r"(?<![A-Za-z])[A-Z]{2} [0-9]{5}(?:-[0-9]{4})?(?![0-9A-Za-z])")
_STREET = re.compile(
    r"(?<![0-9A-Za-z])(?:[0-9]{1,6} [A-Z][A-Za-z'. -]{2,60}|(?:PSC|Unit|Box|USNS|USS|USCGC|USNV) [0-9A-Z])"
)


def find(text: str) -> Iterator[Hit]:
    """Everything of these kinds in a text (already in one width)."""
    if "@" in text:
        yield from _mail(text)
    yield from _network(text)
    for m in _IBAN.finditer(text):
        if _mod97(m[0].replace(" ", "")):
            yield Hit("iban", m.start(), m.end(), 1.0)
    for m in _RESIDENCE.finditer(text):
        yield Hit("residence-card-jp", m.start(), m.end(), 0.8)
    if "assport" in text or "ASSPORT" in text or "旅券" in text or "パスポート" in text:
        for m in _PASSPORT.finditer(text):
            yield Hit("passport", m.start(1), m.end(1), 0.8)
    if any(word in text for word in _BORN_WORDS):
        for m in _BORN.finditer(text):
            yield Hit("birth-date", m.start(), m.end(), 0.8)
    for m in _ZIP.finditer(text):
        before = text[max(0, m.start() - 110) : m.start()]
        if m[0][:2] in _STATES and (street := _STREET.search(before)):
            yield Hit("address-us", max(0, m.start() - 110) + street.start(), m.end(), 0.8)
    if not text.isascii():
        yield from _japanese(text)


def _japanese(text: str) -> Iterator[Hit]:
    if "生" in text:
        for m in _AFTER.finditer(text):
            if date := _BORN_AFTER.search(text, max(0, m.start() - 20), m.start()):
                yield Hit("birth-date", date.start(), m.end(), 0.8)
    for m in _ADDRESS_JA.finditer(text):
        yield Hit("address-jp", m.start(), m.end(), 0.9)
    for m in _ADDRESS_JA_SHORT.finditer(text):
        yield Hit("address-jp", m.start(), m.end(), 0.7)
    for m in _BANK.finditer(text):
        if bank := _BANKS.search(text, max(0, m.start() - 40), m.start()):
            yield Hit("bank-account", bank.start(), m.end(), 0.9)


def _mail(text: str) -> Iterator[Hit]:
    at = text.find("@")
    while at >= 0:
        local = _LOCAL.search(text, max(0, at - 64), at)
        domain = _DOMAIN.match(text, at + 1)
        if local and domain and _somebody(local[0], domain[0].lower(), domain[1].lower()):
            yield Hit("email", local.start(), domain.end(), 0.95)
        at = text.find("@", at + 1)


def _somebody(local: str, domain: str, last: str) -> bool:
    if last in _FILES or last in ("test", "example", "invalid", "local", "localhost") or domain.endswith(_RESERVED):
        return False
    return local.lower().strip(".'") not in _NOBODY and bool(local.strip("._-'"))


def _network(text: str) -> Iterator[Hit]:
    for m in _IP.finditer(text):
        try:
            address = ipaddress.IPv4Address(m[0])
        except ValueError:
            continue
        if address.is_loopback or address.is_unspecified or address.is_multicast or m[0] in _KNOWN_IPS:
            continue
        if m[0].startswith(("255.", "192.0.2.", "198.51.100.", "203.0.113.")) or address.is_link_local:
            continue
        if address.is_reserved or m[0].startswith("0.") or text.startswith(".in-addr", m.end()):
            continue
        small = max(int(part) for part in m[0].split(".")) < 32  # more often a version or a section of a paper
        if small and not _HOST.search(text, max(0, m.start() - 24), m.start()):
            continue
        if _VERSION.search(text, max(0, m.start() - 10), m.start()) and not text[: m.start()].endswith("://"):
            continue
        yield Hit("ip-address" if address.is_global else "ip-private", m.start(), m.end(), 0.6)


def _mod97(text: str) -> bool:
    """The check digits of an IBAN (ISO 13616-1). Pure."""
    return 15 <= len(text) <= 34 and int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1
