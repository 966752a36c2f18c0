"""Detectors: check digits, boundaries between scripts, disguises, and time that grows with the text alone."""

import base64
import json
import time
import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm import detect
from miyabi_llm.detect import numbers
from miyabi_llm.detect.scanner import LateError
from tests.detect.adversary import ADVERSARIES

MY_NUMBER = "123456789018"
AWS = "AKIA" + "Q3EXAMPL" + "E7ZT4WMB"  # in parts: no scanner of repositories shall take it for a real one
CARD = "4111" + "1111" * 2 + "1111"


def kinds(text: str) -> set[str]:
    return {h.kind for h in detect.scan(text)}


def test_the_check_digits() -> None:
    """The examples are computed by hand from the ordinances; 7000012050002 is the National Tax Agency's own number."""
    assert numbers.my_number(MY_NUMBER)
    assert not numbers.my_number("123456789019")
    assert numbers.corporate_number("7000012050002")
    assert not numbers.corporate_number("8000012050002")
    assert numbers.luhn(CARD)
    assert not numbers.luhn("4111111111111112")


POSITIVE = {
    f"キーは{AWS}です": "aws-access-key",
    f"キーは{AWS}で、マイナンバーは{MY_NUMBER}です": "my-number",
    "電話は０９０－１２３４－５６７８まで": "phone-jp",
    "〇九〇の一二三四の五六七八に電話": "phone-jp",
    "090-1234-\u200b5678": "phone-jp",
    "法人番号 7000012050002": "corporate-number",
    "登録番号T7000012050002": "corporate-number",
    "〒150-0002": "postal-code",
    "東京都渋谷区渋谷二丁目二十一番一号": "address-jp",
    "みずほ銀行渋谷支店 普通 1234567": "bank-account",
    "免許証番号 301234567890": "licence-jp",
    "旅券番号TR1234567": "passport",
    "保険者番号：06123456": "insurance-jp",
    "基礎年金番号 1234-567890": "pension-jp",
    "在留カードAB12345678CD": "residence-card-jp",
    "生年月日：昭和60年4月1日": "birth-date",
    "担当の山田太郎様": "name",
    "氏名：山田 太郎": "name",
    "taro.yamada@tanaka-shoji.co.jp": "email",
    f"card {CARD}": "credit-card",
    "SSN 123-45-6789": "ssn",
    "(415) 555-2671": "phone-us",
    "GB82 WEST 1234 5698 7654 32": "iban",
    "12 Oak Street, Springfield, IL 62701": "address-us",
    "ssh root@52.68.1.9": "ip-address",
    "password=hunter2!": "password",
    '{"password": "correct horse"}'.replace(" horse", "-horse"): "password",
    "パスワードはTokyo2026です": "password",
    "postgres://app:s3cr3tpw@db.internal/x": "connection-string",
    "Authorization: Bearer abcdef0123456789abcdef": "bearer-token",
    "-----BEGIN OPENSSH PRIVATE KEY-----": "private-key",
    "sk-ant-" + "api03-" + "a1B2" * 10: "anthropic-key",
}


@pytest.mark.parametrize("text", POSITIVE)
def test_found_as_it_is_and_encoded(text: str) -> None:
    kind = POSITIVE[text]
    assert kind in kinds(text)
    for how in (
        urllib.parse.quote(text),
        json.dumps({"a": text}),
        json.dumps(json.dumps({"a": text}, ensure_ascii=False)),
        base64.b64encode(f"memo: {text}".encode()).decode(),
        f"memo: {text}".encode().hex(),
        "\n".join(base64.b64encode((text + " " * 120).encode()).decode()[i : i + 76] for i in range(0, 160, 76)),
        base64.b64encode(urllib.parse.quote(f"memo: {text}").encode()).decode(),
    ):
        assert kind in kinds(how), how


CLEAN = [
    "password = os.environ['DB_PASSWORD']", "password: str", "API_KEY=your-api-key-here", "api_key=${API_KEY}",
    "token = get_token(user)", "max_tokens: 4096", "3.14159265358979323846", "550e8400-e29b-41d4-a716-446655440000",
    "2026-11-29T15:34:36.123456Z", "1767225600123", "sha256:" + "ab12" * 16, "noreply@example.com",
    "git@github.com:a/b.git",
    "皆様、お客様、仕様、神様", "127.0.0.1:8080", "version 1.2.3.4", "東京都の人口は1400万人", "お名前は何ですか",
    "x@y.png", "@types/node@20.1.0", "# coding: utf-8", "the secretary of state", "key: value",
    "ISBN 978-4-10-101001-1",
    "password=<password>", "Dr. Who", "- name: Install Dependencies", "4900000000000", "order 123456-7890",
]  # fmt: skip


@pytest.mark.parametrize("text", CLEAN)
def test_clean(text: str) -> None:
    assert kinds(text) == set()


def test_places_and_masks() -> None:
    text = f"ab キー{AWS}。"
    (hit,) = detect.scan(text)
    assert text[hit.start : hit.end] == AWS
    assert AWS not in hit.masked
    assert hit.masked.startswith("AKIA")
    wide = "１２３４５６ x taro@tanaka-shoji.jp"
    (hit,) = detect.scan(wide)
    assert wide[hit.start : hit.end] == "taro@tanaka-shoji.jp"


def test_base64_without_text_is_not_looked_at() -> None:
    blob = base64.b64encode(bytes(range(256)) * 8).decode()
    assert detect.examine(f"data: {blob}").unseen
    assert not detect.examine("integrity sha512-" + "aB3+" * 21 + "==").unseen


def test_the_cache_says_the_same_and_holds_no_text() -> None:
    cache = detect.Cache(entries=2)
    text = f"key {AWS}"
    first = detect.cached(text, cache)
    assert detect.cached(text, cache) == first
    assert (cache.hits, cache.misses) == (1, 1)
    for n in range(5):
        detect.cached(f"nothing {n}", cache)
    assert len(cache) == 2


def test_a_deadline_ends_a_scan() -> None:
    with pytest.raises(LateError):
        detect.examine("x" * 100, detect.Options(deadline=time.thread_time() - 1))


@given(st.text())
def test_any_text_is_scanned_and_places_are_inside(text: str) -> None:
    for hit in detect.examine(text).hits:
        assert 0 <= hit.start <= hit.end <= len(text)


@given(st.text(max_size=40), st.text(max_size=40), st.sampled_from([AWS, "090-1234-5678", "taro@tanaka-shoji.co.jp"]))
@settings(max_examples=200)
def test_found_between_any_letters_of_other_scripts(before: str, after: str, secret: str) -> None:
    """Kana, kanji, emoji and signs do not hide a secret; only letters and digits joined to it may."""
    keep = [c for c in before + "|" + after if not (c.isascii() or c.isalnum()) or "ぁ" <= c <= "龥"]
    assert kinds(f"{''.join(keep)}、{secret}、{''.join(keep)}")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", ADVERSARIES)
def test_no_text_makes_a_scan_explode(name: str) -> None:
    """100 kB each (a pattern that is not linear would take hours); 1 MB in the slow tier."""
    unit = ADVERSARIES[name]
    detect.examine((unit * (100_000 // len(unit) + 1))[:100_000])


@pytest.mark.slow
@pytest.mark.parametrize("name", ADVERSARIES)
def test_a_megabyte_of_it(name: str) -> None:
    unit = ADVERSARIES[name]
    detect.examine((unit * (1_000_000 // len(unit) + 1))[:1_000_000])
