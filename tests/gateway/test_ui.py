"""The page: it holds all it needs, shows no word of a request, and works in a real browser under load."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests import chromium, clauded, openaid
from tests.gateway.house import CHAT, House, policy, running

SECRET = "the words of a request"
KEY = "AKIAIOSFODNN7EXAMPLE"
MY_NUMBER = "マイナンバーは123456789018です"
MORE = "[budget]\nmonthly_usd = 5.0\n"


@pytest.fixture
def house() -> Iterator[tuple[House, clauded.Clauded, openaid.Openaid]]:
    """Claude, a local server, and one that is not there."""
    with clauded.serving() as claude, openaid.serving() as local:
        here = 'model = "normal";aliases = ["private"]'
        gone = 'model = "gone";aliases = ["gone"]'
        text = policy(
            f"claude claude {claude.url}",
            f"here local {local.url} {here}",
            f"away local http://127.0.0.1:1 {gone}",
            mode="claude",
            more=MORE,
        )
        with running(text) as found:
            yield found, claude, local


def test_the_page_holds_all_it_needs(house: tuple[House, clauded.Clauded, openaid.Openaid]) -> None:
    found = house[0]
    answer = found.http.get("/miyabi/")
    page, allowed = answer.text, answer.headers["content-security-policy"]
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert allowed.startswith("default-src 'none'; ")
    assert "unsafe" not in allowed
    assert "*" not in allowed
    for block in ("style", "script"):
        (text,) = re.findall(f"<{block}>(.*?)</{block}>", page, re.S)
        assert f"{block}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in allowed
    assert not re.search(r"https?://|//cdn|@import|url\(", page)
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(|\son\w+=|style=", page)
    assert found.http.get("/miyabi", follow_redirects=False).headers["location"] == "/miyabi/"
    assert found.http.post("/miyabi/", json={}).status_code in (404, 405)


def test_the_page_wants_the_key(tmp_path: Path) -> None:
    with openaid.serving() as local, running(policy(f"here local {local.url}", mode="local"), key="a-key") as found:
        assert httpx.get(f"{found.url}/miyabi/", trust_env=False).status_code == 401
        shown = httpx.get(f"{found.url}/miyabi/", trust_env=False).headers["www-authenticate"]
        assert shown.startswith("Basic")
        assert httpx.get(f"{found.url}/miyabi/", auth=("", "a-key"), trust_env=False).status_code == 200
        assert httpx.get(f"{found.url}/miyabi/status", auth=("x", "wrong"), trust_env=False).status_code == 401


def test_the_figures_hold_no_word_of_a_request(house: tuple[House, clauded.Clauded, openaid.Openaid]) -> None:
    found = house[0]
    found.messages(stream=False, messages=[{"role": "user", "content": SECRET}])
    found.chat("private", stream=False, messages=[{"role": "user", "content": f"{SECRET} {KEY}"}])
    text = found.http.get("/miyabi/status").text
    assert SECRET not in text
    assert KEY not in text
    assert clauded.WORDS[0] not in text
    assert len(found.http.get("/miyabi/status").json()["decisions"]) == 2


@contextmanager
def load(house: House) -> Iterator[None]:
    """Requests of every kind, for as long as the block runs."""
    stop = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=house.url, timeout=30, trust_env=False) as http:
            turn = number
            while not stop.is_set():
                turn += 1
                with suppress(httpx.HTTPError):  # some are cut on purpose
                    _one(http, turn)
                stop.wait(0.05)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def _one(http: httpx.Client, turn: int) -> None:
    said = {"anthropic-version": "2023-06-01"}
    body = {"model": "claude-sonnet-5-5", "max_tokens": 64, "stream": True}
    match turn % 6:
        case 0:
            words = {"messages": [{"role": "user", "content": f"{SECRET} {KEY}"}]}
            http.post("/v1/messages", json=body | words, headers=said)
        case 1:
            words = {"messages": [{"role": "user", "content": MY_NUMBER}]}
            http.post("/v1/chat/completions", json=CHAT | words | {"stream": True})
        case 2:
            http.post("/v1/chat/completions", json=CHAT | {"model": "gone"})
        case 3:
            http.post("/v1/chat/completions", json=CHAT | {"model": "private", "stream": True})
        case _:
            words = {"messages": [{"role": "user", "content": "A question that may leave"}]}
            http.post("/v1/messages", json=body | words, headers=said)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_real_browser_under_load(
    house: tuple[House, clauded.Clauded, openaid.Openaid], scheme: str, test_cache: Path
) -> None:
    """The picture is kept beside the other test caches, to be looked at."""
    found, claude, _ = house
    claude.script = ["ok", "ok", "ok", "529", "ok", "cut=600"] * 200 + ["ok"]
    folder = test_cache / "screenshots"
    folder.mkdir(exist_ok=True)

    async def look() -> None:
        async with chromium.page() as page:
            await page.open(f"{found.url}/miyabi/", scheme=scheme)
            await page.until("document.getElementById('live').textContent === 'live'")
            await page.until("document.querySelectorAll('#decisions tr').length >= 30")
            await asyncio.sleep(12)  # for the plots to have a shape
            shown = await page.value("document.body.innerText")
            rows = await page.value("document.querySelectorAll('#targets tr').length")
            await page.shot(folder / f"gateway-{scheme}.png")
            await page.value("document.getElementById('filter').value = 'none'; showDecisions()")
            await page.until("[...document.querySelectorAll('#decisions tr')].length > 0")
            await page.do("Emulation.setDeviceMetricsOverride", width=420, height=900, deviceScaleFactor=1, mobile=True)
            wide = await page.value("document.documentElement.scrollWidth")
            await page.shot(folder / f"gateway-{scheme}-narrow.png")
        assert rows == 3
        assert wide <= 420
        for words in ("confidential", "public", "claude", "here", "refused", "tokens/s", "$5.00", "live"):
            assert words in shown, words
        for secret in (SECRET, KEY, "123456789018", clauded.WORDS[0] + clauded.WORDS[1]):
            assert secret not in shown
        strangers = [url for url in page.asked if not url.startswith((found.url, "data:,"))]
        assert not strangers
        assert not [line for line in page.said if "Security" in line or "Error" in line or "rror:" in line]

    with load(found):
        asyncio.run(look())
