# ruff: noqa: E501, SIM905  # tables of patterns and words
"""Names of people where something says that they are names: a title, a label, or (on wish) a list of names."""

from __future__ import annotations

import re
from collections.abc import Iterator

from miyabi_llm.detect.values import Hit, Names

_KANJI = r"[一-龥々ヶ]"
_TITLED = re.compile(
    rf"(?P<name>{_KANJI}{{1,4}}(?: ?{_KANJI}{{1,3}}| [ァ-ヶーぁ-ん一-龥々]{{2,6}})?|[ァ-ヶー]{{2,8}}(?:[・ ][ァ-ヶー]{{2,8}})?)"
    r"(?P<title>さん|様|殿|氏|先生|くん|ちゃん|さま)(?![々一-龥])"
)
_LABELLED = re.compile(
    rf"(?:氏名|お?名前|姓名|患者名|顧客名|担当者名?|申込者|契約者|本人|宛名|受取人|口座名義人?|名義|代表者名?|フルネーム)(?:氏名|名)?"
    rf"(?:\s{{0,3}}[:=は】」>]+\s{{0,3}}[「『\"']?| \| |\s{{1,3}}[「『\"']?)"
    rf"(?P<name>{_KANJI}{{1,4}} ?(?:{_KANJI}{{1,4}}|[ぁ-ん]{{2,5}}(?![ぁ-ん])|[ァ-ヶー]{{2,6}})|[ァ-ヶー]{{2,8}}[ ・][ァ-ヶー]{{2,8}})"
)
_NOT_NAMES = re.compile(
    r"(?:氏名|名前|患者|顧客|担当|申込|契約|未定|不明|空欄|必須|任意|省略|匿名|同上|変数|下記|以下|上記|記入|入力|変更|登録|確認|自動|共通|表示|日本|会社|法人|株式|重複|"
    r"何|別途|半角|全角|漢字|英数|数字|文字|文字列|固定|関数|引数|一意|英語|個人|本名|仮名|略称)"
)
# Words that are no name before a title: alone, and at the end of a word.
_ALONE = frozenset("皆客神王奥同仕模多異各貴殿何有様逆文一両先娘母父兄姉嫁妹弟坊隣赤摂華彼諸塾猫犬熊象兎馬牛") | {
    "如何",
    "各位",
}
_NOT_TITLED = re.compile(
    r"(?:各位|叔父|叔母|店員|業者|患者|社員|職員|会員|役員|委員|議員|店長|社長|部長|課長|係長|主任|院長|校長|会長|隊長|船長|駅長|学生|生徒|看護師|"
    r"医師|弁護士|税理士|会計士|本屋|花屋|魚屋|八百屋|酒屋|肉屋|大工|職人|親方|双子|子供|息子|旦那|主婦|利用者|担当者|開発者|管理者|読者|"
    r"視聴者|参加者|関係者|担当|相手|新人|先輩|後輩|友人|家族|親戚|客先|取引先|学校|中学|高校|大学|病院|担任|顧問|保育園|幼稚園|教室|英語|数学|"
    r"国語|理科|音楽|体育|住人|外人|芸人|役者|記者|作者|著者|筆者|医者|皆々|お客)\Z"
)

_FIRST = r"[A-Z][a-z]{1,14}"
_FULL = rf"{_FIRST}(?: [A-Z]\.)?(?: {_FIRST}(?:[-'][A-Z][a-z]+)?){{1,2}}"
_TITLED_EN = re.compile(rf"(?<![A-Za-z])(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof)\.? (?P<name>{_FIRST}(?: {_FIRST})?)")
_LABELLED_EN = re.compile(
    rf"(?:[Nn]ame(?: is)?|NAME|[Pp]atient|[Ee]mployee)[\"']?\s{{0,3}}[:=]?\s{{0,3}}[\"']?(?P<name>{_FULL})(?![A-Za-z])"
)
# `name` alone is the name of anything; after one of these, or with a capital, or in "my name is", that of somebody.
_BEFORE_NAME = re.compile(
    r"(?:full|patient|customer|client|employee|contact|legal|account|cardholder|first|last|guest|user)[ _-]?\Z",
    re.IGNORECASE,
)
_TITLES = ("Mr", "Ms", "Miss", "Mx", "Dr", "Prof")
_NOBODY = frozenset(
    "Who Chairman Chairwoman President Speaker Robot Bean Chips Right Wrong World Internet Pac Watson Strange Evil "
    "Pepper Martens Hyde Jekyll Monopoly".split()
)


def find(text: str, names: Names | None = None) -> Iterator[Hit]:
    """Names with a title or a label; with lists of names also bare full ones in kanji."""
    if any(title in text for title in _TITLES):
        for m in _TITLED_EN.finditer(text):
            if m["name"].split(" ")[0] not in _NOBODY:
                yield Hit("name", m.start("name"), m.end("name"), 0.7)
    for m in _LABELLED_EN.finditer(text):
        if _somebody(text, m):
            yield Hit("name", m.start("name"), m.end("name"), 0.7)
    if text.isascii():
        return
    for m in _TITLED.finditer(text):
        if _titled(m["name"], m["title"]):
            yield Hit("name", m.start("name"), m.end(), 0.7)
    for m in _LABELLED.finditer(text):
        if not _NOT_NAMES.match(m["name"]):
            yield Hit("name", m.start("name"), m.end("name"), 0.7)
    if names:
        yield from _listed(text, names)


def _somebody(text: str, m: re.Match[str]) -> bool:
    before = text[max(0, m.start() - 12) : m.start()]
    if m[0].startswith("ame", 1):
        alone = not before[-1:].isascii() or not (before[-1:].isalpha() or before[-1:] in ("-", "_"))
        return bool(_BEFORE_NAME.search(before)) or (alone and (m[0][0] == "N" or m[0].startswith("name is")))
    return not (before[-1:].isascii() and before[-1:].isalpha())


def _titled(name: str, title: str) -> bool:
    if name in _ALONE or _NOT_TITLED.search(name):
        return False
    kana = not re.search(_KANJI, name)
    if kana:  # katakana words with a title are shops and nicknames more often than people
        return title in ("さん", "様", "氏", "先生") and len(name) >= 3 and ("・" in name or " " in name)
    return len(name) >= 2


_BARE = re.compile(rf"{_KANJI}{{2,4}} {_KANJI}{{1,3}}|{_KANJI}{{3,}}")


def _listed(text: str, names: Names) -> Iterator[Hit]:
    """A family name and a given name of the lists, side by side or with a space between."""
    for m in _BARE.finditer(text):
        run = m[0]
        at = 0
        while at < len(run) - 2:
            size = next((n for n in _sizes(run, at, names)), 0)
            if size:
                yield Hit("name", m.start() + at, m.start() + at + size, 0.5)
            at += size or 1


def _sizes(run: str, at: int, names: Names) -> Iterator[int]:
    for family in (3, 2):
        if run[at : at + family] in names.family:
            rest = at + family + (run[at + family : at + family + 1] == " ")
            for given in (3, 2, 1):
                ends = given > 1 or rest + given == len(run)  # one character alone begins many words
                if ends and len(run) >= rest + given and run[rest : rest + given] in names.given:
                    yield rest + given - at
