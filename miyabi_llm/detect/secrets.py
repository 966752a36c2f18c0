# ruff: noqa: E501  # tables of patterns and words
"""Keys, tokens and passwords: shapes with a prefix of their own, and values that a word like `password` names."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

from miyabi_llm.detect.values import Hit

# `\b` is Unicode-aware: between kana and `AKIA` it sees no boundary. These are ASCII boundaries.
_L = r"(?<![A-Za-z0-9])"
_R = r"(?![A-Za-z0-9])"

BASIC = "basic-auth"
# kind, texts one of which must occur (a plain search is faster than any pattern), pattern. Formats: the issuers' pages.
_SHAPES: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (kind, words, re.compile(pattern))
    for kind, words, pattern in (
        ("aws-access-key", ("AKIA", "ASIA", "ABIA", "ACCA"), rf"{_L}(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{{16}}{_R}"),
        ("github-token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), rf"{_L}gh[pousr]_[A-Za-z0-9]{{30,255}}"),
        ("github-token", ("github_pat_",), rf"{_L}github_pat_[A-Za-z0-9_]{{22,255}}"),
        ("gitlab-token", ("gl",), rf"{_L}gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|oas|soat)-[A-Za-z0-9_.-]{{20,300}}"),
        ("slack-token", ("xox", "xapp-"), rf"{_L}(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{{10,250}}"),
        ("slack-token", ("hooks.slack.com",), r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]{20,200}"),
        ("anthropic-key", ("sk-ant-",), rf"{_L}sk-ant-[A-Za-z0-9_-]{{20,250}}"),
        ("openai-key", ("sk-",), rf"{_L}sk-(?!ant-)(?:(?:proj|svcacct|admin|or-v1|lf)-[A-Za-z0-9_-]{{20,250}}"
                                 r"|(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_]{32,250})"),
        ("google-key", ("AIza",), rf"{_L}AIza[A-Za-z0-9_-]{{35}}"),
        ("google-key", ("GOCSPX-", "ya29."), rf"{_L}(?:GOCSPX-[A-Za-z0-9_-]{{20,60}}|ya29\.[A-Za-z0-9_-]{{20,400}})"),
        ("stripe-key", ("_live_", "_test_", "whsec_"), rf"{_L}(?:[rsp]k_(?:live|test)_[A-Za-z0-9]{{16,250}}"
                                                       r"|whsec_[A-Za-z0-9+/=]{20,100})"),
        ("huggingface-token", ("hf_",), rf"{_L}hf_[A-Za-z0-9]{{30,60}}{_R}"),
        ("npm-token", ("npm_",), rf"{_L}npm_[A-Za-z0-9]{{36}}{_R}"),
        ("pypi-token", ("pypi-",), rf"{_L}pypi-[A-Za-z0-9_-]{{40,400}}"),
        ("sendgrid-key", ("SG.",), rf"{_L}SG\.[A-Za-z0-9_-]{{16,32}}\.[A-Za-z0-9_-]{{32,64}}"),
        ("twilio-key", ("SK", "AC"), rf"{_L}(?:SK|AC)[0-9a-f]{{32}}{_R}"),
        ("telegram-token", (":AA",), rf"{_L}\d{{8,10}}:AA[A-Za-z0-9_-]{{32,34}}{_R}"),
        ("discord-token", ("discord",), r"discord(?:app)?\.com/api/webhooks/\d{15,21}/[A-Za-z0-9_-]{50,90}"),
        ("digitalocean-token", ("_v1_",), rf"{_L}do[opr]_v1_[0-9a-f]{{64}}{_R}"),
        ("databricks-token", ("dapi",), rf"{_L}dapi[0-9a-f]{{32}}{_R}"),
        ("shopify-token", ("shp",), rf"{_L}shp(?:at|ca|pa|ss)_[0-9a-fA-F]{{32}}{_R}"),
        ("vault-token", ("hvs.", "hvb."), rf"{_L}hv[sb]\.[A-Za-z0-9_-]{{24,300}}"),
        ("groq-key", ("gsk_", "xai-"), rf"{_L}(?:gsk_[A-Za-z0-9]{{40,60}}|xai-[A-Za-z0-9]{{60,90}}){_R}"),
        ("jwt", ("eyJ",), rf"{_L}eyJ[A-Za-z0-9_-]{{8,2000}}\.eyJ[A-Za-z0-9_-]{{8,4000}}\.[A-Za-z0-9_-]{{10,1000}}"),
        ("private-key", ("-----BEGIN",), r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"),
        ("private-key", ("AGE-SECRET-KEY-", "PuTTY-User-Key-File"), r"AGE-SECRET-KEY-1[A-Z0-9]{58}|PuTTY-User-Key-File-\d"),
        ("azure-key", ("AccountKey", "SharedAccessKey"), r"(?:AccountKey|SharedAccessKey)\s?=\s?[A-Za-z0-9+/]{40,90}={0,2}"),
        ("bearer-token", ("earer ", "EARER "), rf"{_L}[Bb](?:earer|EARER) +(?=[A-Za-z._~+/=-]*[0-9])[A-Za-z0-9._~+/=-]{{16,4000}}"),
        (BASIC, ("asic ",), rf"{_L}[Bb]asic +[A-Za-z0-9+/]{{8,400}}={{0,2}}{_R}"),
    )
)  # fmt: skip

_URL = re.compile(r"://([^\s/:@\"'<>`]{0,100}):([^\s/@\"'<>`]{2,200})@[A-Za-z0-9\[_]")

# The end of a setting's name, what assigns, and the value: in quotes, or up to a space.
_ASSIGNED = re.compile(
    r"(?P<stem>pass(?:word|wd|phrase|code)?|pwd|pswd|pw|secret|token|key|credentials?|authorization|cookie|sessionid)"
    r"\\{0,7}[\"'\]]{0,2}\s{0,4}(?P<sign>=>|:=|==?|:|[ \t](?=[\"'])|が|は)[ \t]{0,4}"
    r"(?:\\{0,7}(?P<quote>[\"'`])(?P<quoted>[^\"'`\n\\]{4,512})\\{0,7}(?P=quote)|(?P<bare>[^\s\"'`,;<>()\[\]{}]{4,512}))",
    re.IGNORECASE,
)
_STEM = re.compile(r"(?:pass|pwd|pswd|pw|secret|token|key|credential|authoriz|cookie|sessionid)")
_BEFORE = re.compile(r"[A-Za-z0-9_.-]{0,40}\Z")
# `key` alone is a key of a map; with one of these before it, it opens something.
_KEYS = re.compile(r"(?:api|access|account|private|secret|signing|encryption|master|service|auth|app|shared|license)[_-]?\Z",
                   re.IGNORECASE)  # fmt: skip
_SAID = re.compile(
    r"(?P<name>--?pass(?:word|wd|phrase)?|\bpass(?:word|phrase|code)(?: is| was|:)|パスワード|パスフレーズ|暗証番号|合言葉|(?<![A-Za-z])PW|(?<![A-Za-z])PIN)"
    r"(?:\s{0,3}(?:[:=]|は|が|を|→)\s{0,3}|\s{1,3})[「『\"'`]?(?P<bare>[!-~]{4,128})",
)  # fmt: skip

# What stands where a secret would: placeholders, references to settings, format fields.
_HOLDER = re.compile(
    r"(?:your|my|the|some|any|enter|insert|put|replace|change)[-_ ]?(?:me|here|own|api|key|pass|token|secret|password|db|value|it)"
    r"|(?:foo|bar|baz|test|mock|dummy|fake|sample|example|placeholder|todo|secret|password|passwd|token|xxx)(?:[-_]?(?:key|token|"
    r"password|secret|value|here|\d{1,3}))?\Z|(?:none|null|nil|true|false|undefined|redacted|removed|hidden|required|optional)\Z|[<$@]"
    r"|\*{3}|\.{3}|[{#%\\][{(]|%s\Z|\{[a-z_.]{1,40}\}|(?:os|process|self|this|args|params|request|req|secrets|config|settings|options|env|Deno)"
    r"(?:\.|\[)|getenv|env\(|vault:|ref:|ENV\[",
    re.IGNORECASE,
)  # fmt: skip
_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")  # the name of one, not what it holds
_TYPES = frozenset(
    ("str", "string", "bytes", "int", "bool", "boolean", "number", "any", "object", "optional", "secretstr", "text", "char",
     "varchar", "required", "hidden", "field", "default", "value", "input", "type", "self", "none", "null", "pass", "fail",
     "password")
)  # fmt: skip


def find(text: str) -> Iterator[Hit]:
    """Every secret in a text (already in one width)."""
    for kind, words, pattern in _SHAPES:
        if any(word in text for word in words):
            for m in pattern.finditer(text):
                if kind != BASIC or _user_and_password(m[0]):
                    yield Hit(kind, m.start(), m.end(), 1.0)
    if "://" in text:
        for m in _URL.finditer(text):
            if not _holder(m[2]):
                yield Hit("connection-string", m.start(1), m.end(2), 0.9)
    low = text.lower()
    if len(low) != len(text):  # a few letters grow when they are made small
        low = "".join(c.lower() if c < "\x80" else c for c in text)
    yield from _assigned(text, low)
    for m in (
        _SAID.finditer(text) if any(word in low for word in ("pass", "pw", "pin", "パス", "暗証", "合言葉")) else ()
    ):
        value = m["bare"].rstrip(".,;:!?)」』\"'`")
        if m["name"] == "PIN" and not value.isdigit():
            continue
        digits = value.isdigit() and m["name"] not in ("PIN", "暗証番号")
        mixed = len(value) >= 8 and not value[1:].islower() and not value.islower() and not value.isupper()
        if _strong(value, least=4, word=mixed and "." not in value) and not (digits and len(value) < 6):
            yield Hit("password", m.start("bare"), m.start("bare") + len(value), 0.8)


def _user_and_password(words: str) -> bool:
    packed = words.split()[-1]
    try:
        return b":" in base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except ValueError:
        return False


def _assigned(text: str, low: str) -> Iterator[Hit]:
    for stem in _STEM.finditer(low):
        m = _ASSIGNED.match(text, stem.start())
        if m is None:
            continue
        before = _BEFORE.search(text, max(0, m.start() - 40), m.start())
        name = (before[0] if before else "") + m["stem"]
        quoted = m["quoted"] is not None
        value = m["quoted"] if quoted else m["bare"].rstrip(".、。」)")
        at = m.start("quoted" if quoted else "bare")
        if m["sign"].isspace() and not name.startswith("-"):  # `--password "x"`, and not: pass 'strict'
            continue
        secret = _opens(name, m["stem"].lower())
        if secret and _worth(value, m, name, secret):
            yield Hit(secret, at, at + len(value), 0.8)


def _opens(name: str, stem: str) -> str:
    """The kind of what a setting of this name holds; empty for a setting that opens nothing."""
    before = name[: len(name) - len(stem)]
    flat = name.lower().replace("_", "").replace("-", "")
    if flat.endswith("secretaccesskey") or "awssecret" in flat:
        return "aws-secret-key"
    if stem == "key":
        return "secret" if _KEYS.search(before) else ""
    if stem in ("pass", "pw", "pwd"):  # the end of many words
        return (
            "" if before[-1:].isalpha() and not before.isupper() and before.lower() not in ("pg", "my") else "password"
        )
    return "password" if stem.startswith(("pass", "psw")) else "secret"


def _worth(value: str, m: re.Match[str], name: str, kind: str) -> bool:
    """Whether an assigned value can be a secret, and not a variable, a type, a placeholder or a count."""
    password = kind == "password"
    if value.isdigit() and not password:
        return False
    if m["quoted"] is not None:
        if password and m["sign"] != "==":
            return " " not in value and not _holder(value) and value.lower() not in _TYPES
        return _strong(value, least=8)
    if not value.isascii() or m.string[m.end("bare") : m.end("bare") + 1] in tuple("([{<"):  # a call, an index, a type
        return False
    env = name.isupper() and m["sign"] == "=" and m.string[m.end("stem") : m.end("stem") + 1] == "="
    return _strong(value, least=4 if password else 12, word=env and password)


def _strong(value: str, *, least: int, word: bool = False) -> bool:
    """Long enough, no placeholder, and not only a word (unless a word will do)."""
    if len(value) < least or _holder(value) or value.lower() in _TYPES:
        return False
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)+", value) and not word:  # a.b.c
        return False
    if re.fullmatch(r"[A-Za-z_.:/-]+", value):  # letters only: a word or a name of a program, unless it looks drawn
        return word or _drawn(value)
    return len(set(value)) > 2


def _drawn(value: str) -> bool:
    """Letters whose capitals do not begin words of three letters and more, as those of names in programs do."""
    short = len(re.findall(r"[A-Z][a-z]?(?=[A-Z])|[A-Z][a-z]?\Z", value))
    return short >= 2 or (short == 1 and len(value) >= 10)


def _holder(value: str) -> bool:
    if _VARIABLE.fullmatch(value):
        return True
    return _HOLDER.match(value) is not None or "example" in value.lower() or set(value) <= set("xX*.-_#")
