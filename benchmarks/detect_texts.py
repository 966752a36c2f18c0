# ruff: noqa: E501  # tables of texts
"""Made-up texts with and without private things in them: the set that the detectors are measured on.

Written from public descriptions of the formats, not from the detectors' rules. Names, addresses, companies and card
numbers are Faker's (`pip install faker`), every other value is made here. Two pools of templates: `a` to work with,
`b` for the figures that are published, `c` for passwords after what `b` taught about them. No text is of a real person.
"""

from __future__ import annotations

import base64
import json
import random
import string
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from faker import Faker

UP, LOW, NUM = string.ascii_uppercase, string.ascii_lowercase, string.digits
WORD = UP + LOW + NUM


@dataclass(frozen=True, slots=True)
class Text:
    """One made-up text; `kind` is empty when nothing in it is private, `disguise` says how it was hidden."""

    text: str
    kind: str
    language: str
    disguise: str = "plain"


class Maker:
    """Values of every kind, from one seed."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.ja = Faker("ja_JP")
        self.en = Faker("en_US")
        self.ja.seed_instance(seed)
        self.en.seed_instance(seed + 1)

    def s(self, letters: str, n: int) -> str:
        return "".join(self.r.choices(letters, k=n))

    # Personal, Japan
    def my_number(self) -> str:
        """12 digits; the last is a check digit (ministerial ordinance no. 85 of 2014, article 5)."""
        p = self.s(NUM, 11)
        rest = sum(int(d) * (n + 1 if n <= 6 else n - 5) for n, d in enumerate(reversed(p), 1)) % 11
        return p + str(0 if rest <= 1 else 11 - rest)

    def corporate(self) -> str:
        """13 digits; the first is a check digit (ordinance of the Ministry of Finance no. 70 of 2014, article 2)."""
        p = self.s(NUM, 12)
        return str(9 - sum(int(d) * (1 if n % 2 else 2) for n, d in enumerate(reversed(p), 1)) % 9) + p

    def mobile(self) -> str:
        return f"0{self.r.choice('789')}0-{self.r.randint(1000, 9999)}-{self.s(NUM, 4)}"

    def landline(self) -> str:
        area = self.r.choice(["03", "06", "011", "045", "052", "075", "092", "0422", "0467", "0798", "04992", "098"])
        middle = 10 - len(area) - 4
        return f"{area}-{self.r.randint(2, 9)}{self.s(NUM, middle - 1)}-{self.s(NUM, 4)}"

    def abroad(self) -> str:
        return "+81-" + self.mobile()[1:]

    def bank(self) -> str:
        bank = self.r.choice(
            ["みずほ銀行", "三菱UFJ銀行", "三井住友銀行", "りそな銀行", "横浜銀行", "千葉銀行", "京都信用金庫"]
        )
        branch = self.r.choice(["渋谷", "新宿", "梅田", "本店", "博多", "栄町"])
        return f"{bank}{branch}支店 {self.r.choice(['普通', '当座'])} {self.s(NUM, 7)}"

    def card(self) -> str:
        return self.en.credit_card_number(self.r.choice(["visa", "mastercard", "amex", "jcb16", "discover"]))

    def mail(self) -> str:
        user = self.en.user_name() + self.r.choice(["", ".", "_", "-", "+"]).join(["", self.s(LOW, 3)])
        host = self.r.choice(["gmail.com", "docomo.ne.jp", "yahoo.co.jp", "outlook.com", "icloud.com", "ezweb.ne.jp"])
        return f"{user}@{self.r.choice([host, f'{self.s(LOW, 7)}.co.jp', f'{self.s(LOW, 6)}.io'])}"

    def date(self) -> str:
        y, m, d = self.r.randint(1940, 2010), self.r.randint(1, 12), self.r.randint(1, 28)
        era = f"昭和{y - 1925}年" if y < 1989 else f"平成{y - 1988}年"
        return self.r.choice([f"{y}年{m}月{d}日", f"{y}/{m:02}/{d:02}", f"{y}-{m:02}-{d:02}", f"{era}{m}月{d}日"])

    def phone_us(self) -> str:
        a, b, c = self.r.randint(201, 989), self.r.randint(200, 999), self.s(NUM, 4)
        return self.r.choice([f"({a}) {b}-{c}", f"{a}-{b}-{c}", f"+1 {a} {b} {c}", f"+1-{a}-{b}-{c}", f"{a}.{b}.{c}"])

    def ssn(self) -> str:
        a = self.r.choice([n for n in range(1, 900) if n != 666])
        return f"{a:03}-{self.r.randint(1, 99):02}-{self.r.randint(1, 9999):04}"

    def iban(self) -> str:
        """Mod 97 (ISO 13616)."""
        code = self.r.choice(["DE", "GB", "NL", "FR", "CH", "ES"])
        body = {"DE": 18, "FR": 23, "CH": 17, "ES": 20}.get(code, 0)
        bban = self.s(NUM, body) if body else self.s(UP, 4) + self.s(NUM, 14 if code == "GB" else 10)
        value = int("".join(str(int(c, 36)) for c in bban + code + "00"))
        text = f"{code}{98 - value % 97:02}{bban}"
        return text if self.r.random() < 0.5 else " ".join(text[i : i + 4] for i in range(0, len(text), 4))

    def ip(self) -> str:
        return f"{self.r.choice([8, 52, 99, 133, 153, 203, 210])}.{self.r.randint(1, 254)}.{self.r.randint(0, 255)}.{self.r.randint(1, 254)}"

    # Secrets
    def b64(self, n: int) -> str:
        return self.s(WORD + "+/", n)

    def jwt(self) -> str:
        def part(value: object) -> str:
            return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

        head = part({"alg": "HS256", "typ": "JWT"})
        return f"{head}.{part({'sub': self.s(NUM, 10), 'iat': self.r.randint(10**9, 2 * 10**9)})}.{self.s(WORD + '-_', 43)}"

    def pem(self) -> str:
        kind = self.r.choice(["RSA ", "EC ", "", "OPENSSH ", "DSA "])
        body = "\n".join(self.b64(64) for _ in range(6))
        return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----"

    def password(self) -> str:
        return self.r.choice([
            self.s(WORD, 12), self.s(WORD + "!#%&*-_", 16), self.en.word().title() + self.s(NUM, 4) + self.r.choice("!@#$"),
            f"{self.en.word()}-{self.en.word()}-{self.s(NUM, 2)}",
        ])  # fmt: skip

    def url(self) -> str:
        scheme = self.r.choice(["postgres", "postgresql", "mysql", "mongodb+srv", "redis", "amqp", "https"])
        return f"{scheme}://{self.en.user_name()}:{self.s(WORD, 14)}@db.{self.s(LOW, 6)}.internal:5432/{self.s(LOW, 5)}"


Value = Callable[[Maker], str]

VALUES: dict[str, Value] = {
    "my-number": lambda m: _grouped(m, m.my_number(), 4),
    "corporate-number": lambda m: m.corporate(),
    "phone-jp": lambda m: m.r.choice([m.mobile, m.mobile, m.landline, m.abroad])(),
    "postal-code": lambda m: f"{m.s(NUM, 3)}-{m.s(NUM, 4)}",
    "address-jp": lambda m: m.ja.address().split(" ")[0],
    "bank-account": lambda m: m.bank(),
    "licence": lambda m: m.s("12345", 1) + m.s(NUM, 11),
    "passport": lambda m: m.s("TMN", 1) + m.s("RSZK", 1) + m.s(NUM, 7),
    "insurance": lambda m: m.s(NUM, 8),
    "pension": lambda m: f"{m.s(NUM, 4)}-{m.s(NUM, 6)}",
    "residence-card": lambda m: m.s(UP, 2) + m.s(NUM, 8) + m.s(UP, 2),
    "birth-date": lambda m: m.date(),
    "name-ja": lambda m: m.ja.name() if m.r.random() < 0.5 else m.ja.name().replace(" ", ""),
    "name-en": lambda m: m.en.first_name() + " " + m.en.last_name(),
    "email": lambda m: m.mail(),
    "credit-card": lambda m: _grouped(m, m.card(), 4),
    "phone-us": lambda m: m.phone_us(),
    "ssn": lambda m: m.ssn(),
    "iban": lambda m: m.iban(),
    "address-us": lambda m: m.en.address().replace("\n", ", "),
    "ip-address": lambda m: m.ip(),
    "aws-access-key": lambda m: m.r.choice(["AKIA", "ASIA"]) + m.s(UP + "234567", 16),
    "aws-secret-key": lambda m: m.b64(40),
    "github-token": lambda m: m.r.choice([f"ghp_{m.s(WORD, 36)}", f"gho_{m.s(WORD, 36)}", f"ghs_{m.s(WORD, 36)}",
                                          f"github_pat_{m.s(WORD, 22)}_{m.s(WORD, 59)}"]),
    "gitlab-token": lambda m: f"glpat-{m.s(WORD + '_-', 20)}",
    "slack-token": lambda m: m.r.choice([
        f"xox{m.s('bp', 1)}-{m.s(NUM, 12)}-{m.s(NUM, 12)}-{m.s(WORD, 24)}",
        f"https://hooks.slack.com/services/T{m.s(UP + NUM, 8)}/B{m.s(UP + NUM, 8)}/{m.s(WORD, 24)}"]),
    "openai-key": lambda m: m.r.choice([f"sk-{m.s(WORD, 48)}", f"sk-proj-{m.s(WORD + '_-', 120)}"]),
    "anthropic-key": lambda m: f"sk-ant-api03-{m.s(WORD + '_-', 93)}AA",
    "google-key": lambda m: f"AIza{m.s(WORD + '_-', 35)}",
    "stripe-key": lambda m: f"{m.r.choice(['sk', 'rk'])}_{m.r.choice(['live', 'test'])}_{m.s(WORD, 24)}",
    "huggingface-token": lambda m: f"hf_{m.s(UP + LOW, 34)}",
    "npm-token": lambda m: f"npm_{m.s(WORD, 36)}",
    "pypi-token": lambda m: f"pypi-AgEIcHlwaS5vcmc{m.s(WORD + '_-', 120)}",
    "sendgrid-key": lambda m: f"SG.{m.s(WORD + '_-', 22)}.{m.s(WORD + '_-', 43)}",
    "jwt": lambda m: m.jwt(),
    "private-key": lambda m: m.pem(),
    "connection-string": lambda m: m.url(),
    "password": lambda m: m.password(),
    "bearer-token": lambda m: m.s(WORD + "-_", 40),
    "azure-key": lambda m: m.b64(86) + "==",
}  # fmt: skip


def _grouped(m: Maker, digits: str, n: int) -> str:
    sep = m.r.choice(["", "", " ", "-"])
    return sep.join(digits[i : i + n] for i in range(0, len(digits), n)) if sep else digits


# kind -> language -> (templates of pool a, templates of pool b); {v} is the value
TEMPLATES: dict[str, dict[str, tuple[list[str], ...]]] = {
    "my-number": {"ja": (
        ["私のマイナンバーは{v}です。", "個人番号：{v}", "マイナンバー {v} で年末調整お願いします", "この番号{v}を登録して"],
        ["社員の個人番号は {v} になります", "提出書類\nマイナンバー\n{v}", "番号確認書類（{v}）を受領しました。", "mynumber: {v}",
         "従業員の番号は{v}で合っていますか"])},
    "corporate-number": {"ja": (
        ["法人番号 {v} の会社を調べて", "法人番号：{v}", "インボイス登録番号はT{v}です"],
        ["取引先の法人番号は{v}です", "適格請求書発行事業者の登録番号 T{v}", "株式会社サンプル（法人番号{v}）"])},
    "phone-jp": {"ja": (
        ["電話番号は{v}です。", "TEL:{v}", "{v}までご連絡ください", "携帯 {v} に折り返して"],
        ["連絡先：{v}（平日9時〜18時）", "お電話は{v}へどうぞ", "緊急のときは{v}に", "FAX番号が{v}に変わりました"]),
        "en": (["Call me at {v}", "my Tokyo number is {v}."], ["Phone (Japan): {v}", "reach him on {v} after six"])},
    "postal-code": {"ja": (
        ["〒{v}", "郵便番号は{v}です", "郵便番号: {v}"],
        ["お届け先の郵便番号は {v} です。", "〒 {v} までお送りください", "郵便番号（{v}）が間違っています"])},
    "address-jp": {"ja": (
        ["住所は{v}です。", "{v}に住んでいます", "お届け先：{v}"],
        ["{v}まで配達をお願いします", "引っ越し先が{v}に決まった", "契約者の現住所 {v}", "勤務先は{v}にあります"])},
    "bank-account": {"ja": (
        ["振込先は{v}です", "{v} に振り込んでください"],
        ["口座：{v}", "お支払いは{v}までお願いいたします。", "給与は{v}へ"])},
    "licence": {"ja": (
        ["運転免許証番号は{v}です", "免許証番号：{v}"],
        ["免許証の番号 第{v}号", "本人確認：運転免許証（{v}）", "免許番号は {v} でした"])},
    "passport": {"ja": (
        ["パスポート番号は{v}です。", "旅券番号：{v}"],
        ["旅券番号 {v} で予約しました", "パスポート（{v}）の期限が切れる", "パスポートNo.{v}"]),
        "en": (["My passport number is {v}.", "Passport No: {v}"], ["passport {v} expires soon", "passport_number={v}"])},
    "insurance": {"ja": (
        ["保険者番号は{v}です", "健康保険証の保険者番号：{v}"],
        ["被保険者番号 {v} を確認しました", "保険証の番号は{v}になります", "国民健康保険 被保険者証 番号 {v}"])},
    "pension": {"ja": (
        ["基礎年金番号は{v}です", "基礎年金番号：{v}"],
        ["年金手帳の番号は {v} です", "基礎年金番号（{v}）を記入"])},
    "residence-card": {"ja": (
        ["在留カード番号は{v}です", "在留カード：{v}"],
        ["在留カードの番号 {v} を控えました", "外国人社員の在留カード番号（{v}）"])},
    "birth-date": {"ja": (
        ["生年月日は{v}です", "生年月日：{v}"],
        ["誕生日は{v}です。", "{v}生まれです", "患者の生年月日 {v}"]),
        "en": (["DOB: {v}", "date of birth {v}"], ["born on {v}", "birthdate={v}", "Her birthday is {v}"])},
    "name-ja": {"ja": (
        ["{v}さんに連絡して", "氏名：{v}", "担当の{v}様", "お名前は{v}です"],
        ["{v}先生の予約を取りたい", "患者名 {v}", "顧客の{v}様よりお電話がありました", "名前: {v}", "{v}殿",
         "申込者氏名　{v}"])},
    "name-en": {"en": (
        ["Name: {v}", "Please call Mr. {v} back.", "patient name: {v}"],
        ["Dear Mrs. {v},", "Full name: {v}", "customer_name = \"{v}\"", "Dr. {v} signed the form", "My name is {v}."])},
    "email": {"ja": (
        ["メールは{v}です", "{v}に送ってください"], ["連絡先メールアドレス：{v}", "{v}宛に転送しました"]),
        "en": (["Contact: {v}", "send it to {v}, please"], ["from {v} on Monday", "<{v}>", "owner={v};"])},
    "credit-card": {"ja": (
        ["カード番号は{v}です", "クレジットカード {v}"], ["{v}で決済して", "カードNo：{v} 有効期限 12/29"]),
        "en": (["My card number is {v}.", "card: {v}"], ["charge {v} please", "cc={v}&exp=1229", "Visa {v} declined"])},
    "phone-us": {"en": (
        ["Call {v} tomorrow.", "phone: {v}"], ["My cell is {v}", "Tel. {v}", "text me at {v}!"])},
    "ssn": {"en": (
        ["SSN: {v}", "my social security number is {v}"], ["social {v} on file", "ssn={v}", "taxpayer id (SSN) {v}"])},
    "iban": {"en": (
        ["IBAN: {v}", "pay to {v}"], ["the account is {v}.", "iban={v}"])},
    "address-us": {"en": (
        ["Ship to {v}", "Address: {v}"], ["He lives at {v}.", "mailing address {v}"])},
    "ip-address": {"en": (
        ["login from {v}", "client_ip={v}"], ["host {v} refused", "ssh root@{v}"])},
}  # fmt: skip

_KEY = (
    ["export API_KEY={v}", "key: {v}", "使っているキーは{v}です", 'token = "{v}"'],
    [
        "curl -H 'X-Key: {v}' http://localhost/",
        "{v}",
        "このトークン{v}で動かない",
        "const k = '{v}';",
        "env:\n  TOKEN: {v}",
    ],
)
for _kind in (
    "aws-access-key", "github-token", "gitlab-token", "slack-token", "openai-key", "anthropic-key", "google-key",
    "stripe-key", "huggingface-token", "npm-token", "pypi-token", "sendgrid-key", "jwt", "connection-string",
):  # fmt: skip
    TEMPLATES[_kind] = {"en": _KEY}
TEMPLATES["private-key"] = {"en": (["{v}", "my key:\n{v}\n"], ['key = """{v}"""', "鍵です\n{v}"])}
TEMPLATES["aws-secret-key"] = {"en": (
    ["aws_secret_access_key = {v}", "AWS_SECRET_ACCESS_KEY={v}"],
    ["secretAccessKey: '{v}'", "\"SecretAccessKey\": \"{v}\"", "aws_secret_key: {v}"])}  # fmt: skip
TEMPLATES["password"] = {
    "en": (["password={v}", "DB_PASSWORD: {v}", "password = \"{v}\"", "my password is {v}"],
           ["passwd: '{v}'", "{{\"password\": \"{v}\"}}", "PGPASSWORD={v} psql", "--password {v}", "root_pw = '{v}'"],
           ["passphrase: \"{v}\"", "user admin, pass: {v}", "ADMIN_PASSWORD='{v}'", "the password was {v}",
            "spring.datasource.password={v}", "{{'passwd': '{v}', 'port': 22}}"]),
    "ja": (["パスワードは{v}です", "パスワード：{v}"], ["PW: {v}", "ログインのパスワードが{v}", "暗証番号は{v}"],
           ["パスワードを{v}に変更しました", "初期パスワード：{v}", "パスワードは「{v}」です", "管理者パスワード {v}"]),
}  # fmt: skip
TEMPLATES["bearer-token"] = {"en": (
    ["Authorization: Bearer {v}", "curl -H 'Authorization: Bearer {v}' http://h/"],
    ["\"authorization\": \"Bearer {v}\"", "headers={{'Authorization': 'Bearer {v}'}}"])}  # fmt: skip
TEMPLATES["azure-key"] = {"en": (
    ["AccountName=store;AccountKey={v};EndpointSuffix=core.windows.net"],
    ["DefaultEndpointsProtocol=https;AccountName=a1;AccountKey={v}"])}  # fmt: skip

SECRETS = frozenset(list(VALUES)[list(VALUES).index("aws-access-key") :])
DIGITS = frozenset({"my-number", "corporate-number", "phone-jp", "postal-code", "credit-card", "licence", "insurance"})
FREE = frozenset({"name-ja", "name-en", "address-us", "birth-date"})  # words, not structure; stated apart

CARRIERS: tuple[list[str], list[str]] = (
    ["{t}", "{t}", "{t}", "Please check this:\n\n{t}\n", "# {t}\nprint('ok')", "2026-11-02 10:31:07 INFO {t}",
     "1. 資料を確認\n2. {t}\n3. 完了"],
    ["{t}", "{t}", "{t}", "> {t}\n\nこれを英語に訳して", "/* {t} */ int main(void) {{ return 0; }}", "[warn] worker-3: {t}",
     "| field | value |\n| --- | --- |\n| note | {t} |", "Subject: memo\n\n{t}\n\n-- \nsent from my phone"],
)  # fmt: skip


def _wide(v: str, m: Maker) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else "　" if c == " " else c for c in v)


def _hyphen(v: str, m: Maker) -> str:
    return v.replace("-", m.r.choice("‐‑–−ー－"))


def _spaced(v: str, m: Maker) -> str:
    return " ".join(v.replace("-", " - ").split()) if "-" in v else " ".join(v[i : i + 3] for i in range(0, len(v), 3))


def _kanji(v: str, m: Maker) -> str:
    return "".join("〇一二三四五六七八九"[int(c)] if c in NUM else c.replace("-", "の") for c in v)


def _hidden(v: str, m: Maker) -> str:
    n = m.r.randrange(1, len(v))
    return v[:n] + m.r.choice("\u200b\u200c\u2060\ufeff\u00ad") + v[n:]


VALUE_DISGUISES: dict[str, Callable[[str, Maker], str]] = {
    "full-width": _wide, "other hyphen": _hyphen, "spaced": _spaced, "kanji digits": _kanji, "zero-width": _hidden,
}  # fmt: skip
TEXT_DISGUISES: dict[str, Callable[[str], str]] = {
    "percent": urllib.parse.quote,
    "base64": lambda t: base64.b64encode(t.encode()).decode(),
    "json escapes": lambda t: json.dumps({"note": t}),
}


def positives(seed: int, pool: int, each: int, *, disguised: bool) -> Iterator[Text]:
    """`each` texts for every kind and language. `pool` 0 is a, 1 is b, 2 is c."""
    m = Maker(seed)
    for kind, languages in TEMPLATES.items():
        for language, pools in languages.items():
            for _ in range(each):
                value = VALUES[kind](m)
                name, wrap = "plain", None
                if disguised:
                    value, name, wrap = _disguise(kind, value, m)
                text = m.r.choice(pools[min(pool, len(pools) - 1)]).format(v=value)
                text = m.r.choice(CARRIERS[min(pool, 1)]).format(t=text)
                yield Text(wrap(text) if wrap else text, kind, language, name)


def _disguise(kind: str, value: str, m: Maker) -> tuple[str, str, Callable[[str], str] | None]:
    names = ["full-width", "zero-width", *TEXT_DISGUISES]
    if kind in DIGITS:
        names += ["spaced", "kanji digits"] + (["other hyphen"] if "-" in value else [])
    if kind in ("private-key", "password", "azure-key", "connection-string"):
        names = list(TEXT_DISGUISES)
    name = m.r.choice(names)
    if name in TEXT_DISGUISES:
        return value, name, TEXT_DISGUISES[name]
    return VALUE_DISGUISES[name](value, m), name, None


CLEAN_EN = (
    ["The build took {n} seconds and used {k} MB.", "See section {a}.{b} on page {n}.", "Version {a}.{b}.{c} was released.",
     "commit {hex40}", "request id {uuid}", "In {year}, about {n},{d3} people took part.", "Chapter {a}: {words}",
     "ISBN {isbn}", "The password field must not be empty.", "Set the environment variable API_KEY before you start.",
     "{words}", "{words}", "sha256:{hex64}", "He scored {a}-{b} in game {c}.", "The part number is {d4}-{d4}."],
    ["Elapsed: {n}.{d3} ms over {k} iterations", "Figure {a}.{b} shows {words}", "Upgrade from {a}.{b} to {a}.{c} today.",
     "Order #{d6} has {a} items.", "digest {hex64}", "trace {uuid} ended", "Pi is 3.14159265358979 and e is 2.718281828.",
     "EAN {ean}", "Passwords are hashed with a salt.", "Rotate your token every {a}0 days.", "{words}", "{words}",
     "The meeting is on {year}-10-{dd} at 10:{dd}.", "Mr. Chairman, the motion passes.", "Tickets {d4} to {d4} are sold.",
     "Use `sk-learn` style names.", "Dr. Who is a television series."],
)  # fmt: skip
CLEAN_JA = (
    ["処理時間は{n}ミリ秒でした。", "{year}年の売上は{n}億円です。", "バージョン{a}.{b}.{c}を公開しました。", "第{a}章 {jwords}",
     "{jwords}", "{jwords}", "東京都の人口は約1400万人です。", "会議は{a}月{b}日の{c}時からです。", "電話番号を入力してください。",
     "パスワードを忘れた場合はこちら", "品番 {d4}-{d4}", "株式会社の設立手続きについて", "お客様各位", "皆様のご協力に感謝します"],
    ["合計{n}件中{k}件を処理しました", "{year}年度の予算は{n}万円", "リリース{a}.{b}の変更点", "{jwords}", "{jwords}",
     "大阪市と京都市を比べる", "{a}丁目の夕日という映画", "午後{a}時{b}分に開始", "マイナンバー制度とは何ですか", "銀行の営業時間を教えて",
     "住所の書き方を説明して", "注文番号 {d6}", "関係者の皆さんへ", "お疲れ様です", "氏名欄は空欄でかまいません", "番地の数え方",
     "郵便番号は7桁の数字です", "国民健康保険の仕組み"],
)  # fmt: skip
CLEAN_CODE = (
    ["password = os.environ[\"DB_PASSWORD\"]", "api_key: str = Field(default=...)", "token = get_token(user)",
     "const PORT = {d4};", "if len(x) > {n}: return {hex8}", "color: #{hex6};", "id = '{uuid}'", "TIMEOUT_MS = {n}000",
     "password=<your password>", "uint64_t mask = 0x{hex16};", "git checkout {hex8}", "ts={ts} level=info msg=\"done\"",
     "\"integrity\": \"sha512-{b64}==\"", "127.0.0.1:{d4}", "x = [{n}, {k}, {d4}, {d4}]"],
    ["def check(password: str) -> bool:", "secret = config.get('secret')", "API_KEY=your-api-key-here", "password: ${{DB_PASS}}",
     "{{\"id\": {n}, \"created\": {ts}}}", "assert hash == '{hex64}'", "#define MAX {d6}", "rgba({a}, {b}, {c}, 0.5)",
     "pip install numpy=={a}.{b}.{c}", "localhost:{d4}/api/v1", "data = np.zeros(({n}, {k}))", "- uses: actions/checkout@{hex40}",
     "SELECT * FROM t WHERE id = {d6};", "0.0.0.0", "time.sleep({a}.{d3})", "token_count += {d4}", "auth = Bearer()"],
)  # fmt: skip


def negatives(seed: int, pool: int, each: int) -> Iterator[Text]:
    """`each` clean texts of English, Japanese and code."""
    m = Maker(seed)
    for language, pools in (("en", CLEAN_EN), ("ja", CLEAN_JA), ("code", CLEAN_CODE)):
        for _ in range(each):
            parts = [_fill(m.r.choice(pools[min(pool, 1)]), m) for _ in range(m.r.randint(1, 6))]
            yield Text("\n".join(parts), "", language)


def _fill(template: str, m: Maker) -> str:
    hexes = {f"hex{n}": m.s("0123456789abcdef", n) for n in (6, 8, 16, 40, 64)}
    return template.format(
        n=m.r.randint(2, 999), k=m.r.randint(2, 99999), a=m.r.randint(1, 12), b=m.r.randint(1, 9), c=m.r.randint(1, 12),
        d3=m.s(NUM, 3), d4=m.s("123456789", 4), d6=m.s("123456789", 6), dd=m.r.randint(10, 28), year=m.r.randint(1990, 2026),
        uuid=m.en.uuid4(), isbn=m.en.isbn13(), ean=m.en.ean13(), ts=m.r.randint(1_600_000_000_000, 1_800_000_000_000),
        b64=m.b64(86), words=m.en.sentence(12), jwords=m.ja.sentence(8), **hexes,
    )  # fmt: skip
