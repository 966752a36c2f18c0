"""What may not leave does not: rows V3 to V8 of the fault table, with a cloud that counts its connections."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator

import pytest

from miyabi_llm.gateway import locality
from miyabi_llm.route.values import Target, Upstream
from tests import clauded, openaid
from tests.gateway.house import CHAT, CLOUD_KEY, HELLO, House, policy, running
from tests.gateway.ollama import ollama

SECRET = "AKIAIOSFODNN7EXAMPLE"
PRIVATE = [{"role": "user", "content": f"キーは{SECRET}です"}]
GONE = "http://127.0.0.1:1"


@pytest.fixture
def claude() -> Iterator[clauded.Clauded]:
    with clauded.serving() as server:
        yield server


def refused(house: House, **more: object) -> None:
    answer = house.messages(messages=PRIVATE, **more)  # type: ignore[arg-type]
    assert answer.status_code in (502, 503), answer.text
    assert answer.headers["x-miyabi-verdict"] == "confidential"
    assert SECRET not in answer.text


GOOD = policy("claude claude URL", mode="claude")
BAD = {
    "empty": "",
    "no TOML": "version = = 1",
    "unknown key": GOOD.replace("[privacy]", "[privcay]\nx = 1\n[privacy]"),
    "newer": GOOD.replace("version = 1", "version = 2"),
    "cut": GOOD[: GOOD.index("# end")],
    "cut in a word": GOOD[:40],
    "no privacy": GOOD.replace('[privacy]\ndefault_verdict = "public"\n', ""),
    "wrong mode": GOOD.replace('mode = "claude"', 'mode = "cloud"'),
    "no UTF-8": GOOD.replace("version", "version\udcff"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_V1_a_policy_that_is_none_lets_nothing_out(claude: clauded.Clauded, name: str) -> None:
    with running(BAD[name].replace("URL", claude.url)) as house:
        for model in ("claude", "claude-sonnet-5-5"):
            answer = house.messages(model=model, headers={"x-miyabi-target": "claude"})
            assert (answer.status_code, answer.headers["x-miyabi-verdict"]) == (503, "confidential")
        assert house.http.get("/miyabi/status").json()["policy"]["error"]
    assert claude.connections == 0


@pytest.mark.parametrize("more", ["[limits]\nscan_seconds = 0.0000001", "[limits]\nscan_bytes = 8", "names = true"])
def test_V2_a_scan_that_fails_lets_nothing_out(claude: clauded.Clauded, more: str) -> None:
    """Too late, too long, or a list that is not installed: not looked through is confidential."""
    text = policy(f"claude claude {claude.url}", mode="claude")
    text = text.replace("[privacy]", f"{more}\n[privacy]" if "limits" in more else f"[privacy]\n{more}")
    with running(text) as house:
        answer = house.messages()
    if more != "names = true" or importlib.util.find_spec("japanese_personal_name_dataset") is None:
        assert answer.status_code == 503
        assert claude.connections == 0


@pytest.mark.parametrize("mode", ["claude", "hybrid"])
def test_V3_local_down_is_a_refusal(claude: clauded.Clauded, mode: str) -> None:
    with running(policy(f"claude claude {claude.url}", f"here local {GONE}", mode=mode)) as house:
        for _ in range(3):
            refused(house)
        assert house.messages(messages=PRIVATE).json()["error"]["message"]
    assert claude.connections == 0


@pytest.mark.parametrize("word", ["429", "500", "529", "drop", "cut=300", "error-first", "half-json"])
def test_V3_V4_no_failure_of_a_local_server_sends_it_to_the_cloud(claude: clauded.Clauded, word: str) -> None:
    with (
        clauded.serving(word) as here,
        running(
            policy(f"claude claude {claude.url}", f"here local {here.url}", mode="claude"), keys={"here": "k"}
        ) as house,
    ):
        for stream in (True, False):
            assert house.messages(stream=stream, messages=PRIVATE).status_code >= 400 or not stream
        assert here.asked
    assert claude.connections == 0


def test_V3_no_local_target_at_all(claude: clauded.Clauded) -> None:
    with running(policy(f"claude claude {claude.url}", mode="claude")) as house:
        refused(house)
        refused(house, model="claude")
        refused(house, headers={"x-miyabi-target": "claude"})
        refused(house, headers={"x-miyabi-privacy": "public"})
    assert claude.connections == 0


@pytest.mark.parametrize("header", ["confidential", "CONFIDENTIAL", "internal", "no such word"])
def test_V7_a_client_can_only_tighten(claude: clauded.Clauded, header: str) -> None:
    with running(policy(f"claude claude {claude.url}", f"here local {GONE}", mode="claude")) as house:
        assert house.messages(headers={"x-miyabi-privacy": header}).status_code == 503
        assert claude.connections == 0
        assert house.messages(headers={"x-miyabi-privacy": "public"}).status_code == 200


def test_a_secret_in_the_address_or_a_header_is_seen(claude: clauded.Clauded) -> None:
    with running(policy(f"claude claude {claude.url}", mode="claude")) as house:
        assert house.http.post(f"/v1/messages?k={SECRET}", json=HELLO).status_code == 503
        assert house.messages(headers={"user-agent": SECRET}).status_code == 503
        assert house.http.post("/v1/messages?other=1", json=HELLO).status_code == 503
    assert claude.connections == 0


def test_V5_a_local_server_is_where_it_says(monkeypatch: pytest.MonkeyPatch, claude: clauded.Clauded) -> None:
    def place(url: str, *hosts: str) -> locality.Place:
        return locality.find(Target("t", "local", Upstream(url, hosts=hosts)))

    assert place("http://localhost:8080").addresses
    assert place("http://[::1]:8080").addresses == ("::1",)
    assert place("http://192.0.2.7:8080", "192.0.2.0/24").addresses == ("192.0.2.7",)
    for url, *hosts in (
        ("http://192.0.2.7:8080",),
        ("http://192.0.2.7:8080", "198.51.100.0/24"),
        ("http://no-such-name.invalid",),
        ("https://8.8.8.8",),
        ("http://0.0.0.0:8080",),
        ("ftp://127.0.0.1",),
        ("http://192.0.2.7", "nonsense"),
    ):
        assert place(url, *hosts).elsewhere, url
    with running(policy("here local http://192.0.2.7:8080", mode="local")) as house:
        answer = house.messages()
        assert (answer.status_code, "192.0.2.7" in answer.text) == (503, True)


def test_V5_no_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch, claude: clauded.Clauded) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, claude.url)
    with openaid.serving() as here, running(policy(f"here local {here.url}", mode="local")) as house:
        assert house.chat(stream=False).status_code in (200, 502)
        assert here.asked
    assert claude.connections == 0


def test_V5_no_redirect(claude: clauded.Clauded) -> None:
    with openaid.serving() as here, running(policy(f"here local {here.url}", mode="local")) as house:
        answer = house.chat("redirect")
        assert (answer.status_code, "redirect" in answer.text) == (502, True)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
@pytest.mark.parametrize("model", ["far:latest", "alias-of-far", "big:cloud", "gpt-oss:120b-cloud", "BIG:CLOUD"])
def test_V6_ollama_sends_nothing_on(path: str, model: str) -> None:
    """A model that Ollama runs at ollama.com is refused, whatever it is called here."""
    with ollama() as server, running(policy(f'here local {server.url} backend = "ollama"', mode="local")) as house:
        answer = house.http.post(path, json={**HELLO, "model": model})
        assert answer.status_code == 503
        assert "ollama.com" in answer.text
        assert all(p in ("/api/show", "/api/version") for p, _ in server.asked)


def test_V6_an_ollama_that_is_not_said_to_be_one_is_found_out() -> None:
    with ollama() as server, running(policy(f"here local {server.url}", mode="local")) as house:
        assert house.chat("far:latest", stream=False).status_code == 503
        assert house.chat("near:latest", stream=False).status_code == 200


def test_V6_a_search_on_the_web_is_not_local() -> None:
    tool = {"type": "web_search_20250305", "name": "web_search"}
    with ollama() as server, running(policy(f'here local {server.url} backend = "ollama"', mode="local")) as house:
        assert house.messages(model="near:latest", tools=[tool]).status_code == 503
        assert "web_search" in house.messages(model="near:latest", tools=[tool]).text


def test_V6_nothing_is_pulled_pushed_or_made_through_the_gateway() -> None:
    with ollama() as server, running(policy(f'here local {server.url} backend = "ollama"', mode="local")) as house:
        for path in ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/sha256:00"):
            assert house.http.post(path, json={"model": "x"}).status_code == 404
        assert house.http.get("/api/tags").json()["models"]
        assert not [p for p, _ in server.asked if p not in ("/api/tags",)]


def test_V8_no_word_of_a_request_is_kept(claude: clauded.Clauded, capfd: pytest.CaptureFixture[str]) -> None:
    """The canary is in no header, log, status or file; nor is any key."""
    word = "canary-7f3a9c"
    messages = [{"role": "user", "content": f"{SECRET} {word}"}]
    with (
        clauded.serving() as here,
        running(
            policy(f"claude claude {claude.url}", f"here local {here.url}", mode="claude"), keys={"here": "local-key"}
        ) as house,
    ):
        seen = ""
        for word_of_server in ("ok", "cut=900", "half-json", "400", "500"):
            here.script = [word_of_server]
            body = HELLO | {"messages": messages, "metadata": {"user_id": word}}
            if word_of_server == "cut=900":
                seen += house.cut("/v1/messages", body).decode()
                continue
            answer = house.http.post("/v1/messages", json=body)
            seen += str(answer.headers) + answer.text
        json_type = {"content-type": "application/json"}
        seen += house.http.post("/v1/messages", content=f'{{"{word}'.encode(), headers=json_type).text
        seen += house.http.get("/miyabi/status").text
        seen += json.dumps([[p.name, p.read_bytes().decode("latin-1")] for p in house.work.rglob("*") if p.is_file()])
    out, err = capfd.readouterr()
    for canary in (word, SECRET, CLOUD_KEY, "local-key"):
        assert canary not in seen + out + err
    assert claude.connections == 0


def test_keys_go_where_they_belong(claude: clauded.Clauded) -> None:
    """The client's key goes nowhere, the cloud's key to the cloud only, a local server's key to it only."""
    with (
        clauded.serving() as here,
        running(
            policy(f"claude claude {claude.url}", f"here local {here.url}", mode="claude"),
            key="client-key",
            keys={"here": "local-key"},
        ) as house,
    ):
        house.messages(headers={"x-api-key": "client-key"})
        house.messages(messages=PRIVATE, headers={"x-api-key": "client-key"})
    (_, to_claude, _), (_, to_here, _) = claude.asked[0], here.asked[0]
    assert (to_claude["x-api-key"], to_here["authorization"]) == (CLOUD_KEY, "Bearer local-key")
    assert "client-key" not in str((to_claude, to_here))
    assert CLOUD_KEY not in str(to_here)
    assert "local-key" not in str(to_claude)
    assert CLOUD_KEY not in str(dict(os.environ))


def test_chat_goes_to_those_who_speak_it(claude: clauded.Clauded) -> None:
    with openaid.serving() as here:
        text = policy(f"claude claude {claude.url}", f"here local {here.url}", mode="claude")
        with running(text) as house:
            assert house.chat().content == openaid.normal()
            assert house.http.post("/v1/chat/completions", json=CHAT).headers["x-miyabi-target"] == "here"
    assert claude.connections == 0
