"""What a client sees when what is behind the gateway fails: rows G1 to G20 of the fault table, by their number."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

from miyabi_llm.gateway.http1 import Times
from miyabi_llm.gateway.retries import Budget
from tests import clauded, openaid
from tests.gateway.house import CHAT, HELLO, House, policy, running

GOOD = b"".join(clauded.pieces())
GONE = "http://127.0.0.1:1"


@pytest.fixture
def claude() -> Iterator[clauded.Clauded]:
    with clauded.serving() as server:
        yield server


@pytest.fixture
def local() -> Iterator[openaid.Openaid]:
    with openaid.serving() as server:
        yield server


@pytest.fixture
def alone(claude: clauded.Clauded) -> Iterator[House]:
    """Claude with nobody to stand in."""
    with running(policy(f"claude claude {claude.url}", mode="claude")) as house:
        yield house


@pytest.fixture
def pair(claude: clauded.Clauded) -> Iterator[tuple[House, clauded.Clauded]]:
    """Claude, and a second server that speaks its dialect, here."""
    with (
        clauded.serving() as second,
        running(
            policy(f"claude claude {claude.url}", f'here local {second.url} model = "small"', mode="claude"),
            keys={"here": "k"},
        ) as house,
    ):
        yield house, second


def broken(house: House) -> bytes:
    """The body of a message that is cut, as far as it came."""
    return house.cut("/v1/messages", HELLO)


def test_bytes_pass_unchanged_and_the_decision_is_told(claude: clauded.Clauded, alone: House) -> None:
    odd = b'{ "model" :"claude-sonnet-5-5","max_tokens": 5 , "stream":true,\n'
    odd += b'"messages":[{"role":"user","content":"\\u0048i"}]}'
    headers = {"content-type": "application/json", "anthropic-version": "2023-06-01", "x-miyabi-hint": "hard"}
    answer = alone.http.post("/v1/messages?beta=true", content=odd, headers=headers)
    assert answer.content == GOOD
    path, sent, body = claude.asked[0]
    assert (path, body) == ("/v1/messages?beta=true", odd)
    assert "x-miyabi-hint" not in sent
    told = {k: v for k, v in answer.headers.items() if k.startswith("x-miyabi-")}
    assert int(told.pop("x-miyabi-audit-id")) == 1
    assert told.pop("x-miyabi-rule")
    assert told == {
        "x-miyabi-route": "claude",
        "x-miyabi-verdict": "public",
        "x-miyabi-target": "claude",
        "x-miyabi-attempts": "claude=200",
    }


def test_a_whole_answer_and_a_count_pass(alone: House) -> None:
    assert alone.messages(stream=False).json()["content"][0]["text"] == "".join(clauded.WORDS)
    assert alone.http.post("/v1/messages/count_tokens", json=HELLO).json()["input_tokens"] > 0


@pytest.mark.parametrize("word", ["drop", "cut=0", "reset=0"])
def test_G1_death_before_the_first_byte_is_tried_again_or_told(claude: clauded.Clauded, word: str) -> None:
    claude.script = [word, "ok"]
    with running(policy(f"claude claude {claude.url}", mode="claude")) as house:
        assert house.messages().content == GOOD
        claude.script = [word]
        answer = house.messages()
        assert answer.status_code == 502
        assert answer.json()["type"] == "error"


@pytest.mark.parametrize("word", ["drop", "cut=0", "cut=400", "529", "500", "429", "error-first", "error-200", "html"])
def test_G1_G8_before_the_first_word_another_stands_in(
    pair: tuple[House, clauded.Clauded], claude: clauded.Clauded, word: str
) -> None:
    house, second = pair
    claude.script = [word]
    begin = time.monotonic()
    answer = house.messages()
    assert answer.content == b"".join(clauded.pieces(model="small"))
    assert answer.headers["x-miyabi-target"] == "here"
    assert answer.headers["x-miyabi-attempts"].startswith("claude=")
    assert answer.headers["x-miyabi-attempts"].endswith("here=200")
    assert json.loads(second.asked[-1][2])["model"] == "small"
    assert len(claude.asked) == 1
    assert time.monotonic() - begin < 5  # at once: no wait before the other is asked


@pytest.mark.parametrize("how", ["cut", "reset", "end"])
@pytest.mark.parametrize("at", [700, 1000, len(GOOD) - 60, len(GOOD) - 3])
def test_G2_G3_G20_a_cut_is_an_error_and_then_a_cut(claude: clauded.Clauded, alone: House, how: str, at: int) -> None:
    claude.script = [f"{how}={at}"]
    body = broken(alone)
    good, _, error = body.rpartition(b"event: error\ndata: ")
    assert GOOD.startswith(good)
    assert json.loads(error)["error"]["type"] == "api_error"
    assert b"message_stop" not in body
    assert alone.gateway.status.snapshot()["decisions"][-1]["broken"] == "api_error"


def test_G2_no_second_model_is_glued_on(pair: tuple[House, clauded.Clauded], claude: clauded.Clauded) -> None:
    house, second = pair
    claude.script = ["cut=900"]
    assert b"event: error" in broken(house)
    assert second.asked == []


def test_G20_the_raw_connection_has_no_last_chunk(claude: clauded.Clauded, alone: House) -> None:
    claude.script = ["end=900"]
    body = json.dumps(HELLO | {"stream": True}).encode()
    head = "POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    got = alone.raw(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    assert b"event: error" in got
    assert b"\r\n0\r\n" not in got


@pytest.mark.parametrize("model", ["endless", "reset", "error", "garbage", "bare"])
def test_G2_G3_G5_in_a_chat(local: openaid.Openaid, model: str) -> None:
    with running(policy(f"here local {local.url}", mode="local")) as house:
        body = house.cut("/v1/chat/completions", CHAT | {"model": model})
        assert b"[DONE]" not in body
        assert "error" in json.loads(body.strip().rpartition(b"data: ")[2])


def test_G4_silence_is_an_error(claude: clauded.Clauded) -> None:
    claude.script = ["silent=900"]
    with running(policy(f"claude claude {claude.url}", mode="claude"), times=Times(idle=0.5)) as house:
        body = broken(house)
    assert json.loads(body.rpartition(b"data: ")[2])["error"]["type"] == "timeout_error"


@pytest.mark.parametrize("word", ["error-200", "error-first"])
def test_G6_an_error_under_a_good_status_is_an_error(claude: clauded.Clauded, alone: House, word: str) -> None:
    claude.script = [word]
    answer = alone.messages()
    assert (answer.status_code, answer.json()["error"]["type"]) == (529, "overloaded_error")


def test_G6_an_error_event_after_words_is_passed_on_and_the_connection_cut(
    claude: clauded.Clauded, alone: House
) -> None:
    claude.script = ["error"]
    assert broken(alone).endswith(clauded.OVERLOADED)


def test_G7_retry_after(claude: clauded.Clauded, alone: House) -> None:
    claude.script = ["429"]
    answer = alone.messages()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert len(claude.asked) == 1


def test_G7_a_spent_month_is_not_asked_again(pair: tuple[House, clauded.Clauded], claude: clauded.Clauded) -> None:
    house, _ = pair
    claude.script = ["spend"]
    assert house.messages().headers["x-miyabi-target"] == "here"
    asked = len(claude.asked)
    for _ in range(3):
        assert house.messages().headers["x-miyabi-target"] == "here"
    assert len(claude.asked) == asked == 1


def test_G7_a_spent_month_tells_its_client_not_to_ask_again(claude: clauded.Clauded, alone: House) -> None:
    claude.script = ["spend"]
    answer = alone.messages()
    assert (answer.status_code, answer.headers["x-should-retry"]) == (429, "false")
    assert len(claude.asked) == 1


def test_G8_tries_are_few(claude: clauded.Clauded, alone: House) -> None:
    claude.script = ["529"]
    assert alone.messages().status_code == 529
    assert len(claude.asked) <= 3


def test_G8_tries_are_a_tenth_of_a_thousand() -> None:
    budget, more = Budget(), 0
    for _ in range(1000):
        budget.request()
        more += budget.take() + budget.take()
    assert 90 <= more <= 101


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_G9_the_clients_own_fault_is_nobody_elses(
    pair: tuple[House, clauded.Clauded], claude: clauded.Clauded, status: int
) -> None:
    house, second = pair
    claude.script = [str(status)]
    answer = house.messages()
    assert (answer.status_code, answer.json()) == (status, clauded.error(status))
    assert (len(claude.asked), len(second.asked)) == (1, 0)


def test_G10_a_closed_port_and_a_name_that_is_none() -> None:
    for url in (GONE, "http://no-such-name.invalid"):
        with running(policy(f"claude claude {url}", mode="claude")) as house:
            answer = house.messages()
            assert (answer.status_code, answer.json()["type"]) == (503, "error")
            assert "claude=unreachable" in answer.headers["x-miyabi-attempts"]


def test_G10_no_tls(claude: clauded.Clauded) -> None:
    with running(policy(f"claude claude {claude.url.replace('http:', 'https:')}", mode="claude")) as house:
        assert house.messages().status_code in (502, 503)


def test_G10_the_circuit_opens_and_a_probe_closes_it(claude: clauded.Clauded) -> None:
    """After some failures a target is not asked any more; what stands in is asked at once."""
    claude.script = ["drop"]
    with (
        clauded.serving() as second,
        running(
            policy(f"claude claude {claude.url}", f'here local {second.url} model = "m"', mode="claude"),
            keys={"here": "k"},
        ) as house,
    ):
        for _ in range(12):
            assert house.messages().headers["x-miyabi-target"] == "here"
        assert len(claude.asked) < 12
        assert "claude" not in house.messages().headers["x-miyabi-attempts"]


def test_G11_a_client_that_leaves_ends_the_work(claude: clauded.Clauded, alone: House) -> None:
    claude.script = ["slow"]
    with alone.http.stream("POST", "/v1/messages", json=HELLO | {"stream": True}) as answer:
        next(answer.iter_raw())
        left = time.monotonic()
    assert claude.gone.wait(10)
    assert claude.left_at - left <= 5.0  # under a tenth of a second on an idle machine
    until = time.monotonic() + 10
    while not (rows := alone.gateway.status.snapshot()["decisions"]) and time.monotonic() < until:
        time.sleep(0.02)
    assert rows[-1]["status"] == 499


def test_a_client_that_leaves_with_the_last_event_had_its_answer(claude: clauded.Clauded, alone: House) -> None:
    """SDKs close the connection when they saw the end of the answer, and do not wait for the end of the body."""
    everything = b"".join(clauded.pieces())
    claude.script = [f"silent={len(everything)}"]
    with alone.http.stream("POST", "/v1/messages", json=HELLO | {"stream": True}) as answer:
        got = b""
        for data in answer.iter_raw():
            got += data
            if got == everything:
                break
    until = time.monotonic() + 10
    while not (rows := alone.gateway.status.snapshot()["decisions"]) and time.monotonic() < until:
        time.sleep(0.02)
    assert rows[-1]["status"] == 200


def test_G11_at_a_local_server_too(local: openaid.Openaid) -> None:
    with running(policy(f"here local {local.url}", mode="local")) as house:
        with house.http.stream("POST", "/v1/chat/completions", json=CHAT | {"model": "slow", "stream": True}) as answer:
            next(answer.iter_raw())
            left = time.monotonic()
        assert local.gone.wait(10)
        assert time.monotonic() - left < 3  # the stand-in sees it at the second write after


def test_G12_a_slow_reader_slows_the_server_down(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A server that writes without end is stopped by a client that does not read; memory stays what it is."""
    from tests.gateway.endless import endless

    with endless() as server, running(policy(f"here local {server.url}", mode="local")) as house:
        body = json.dumps(CHAT | {"stream": True}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", house.port)) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            head = head.replace("host: x", f"host: 127.0.0.1:{house.port}")
            s.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            assert s.recv(1 << 12)
            server.stalled.wait(20)
            assert server.stalled.is_set()
            before = server.sent
            time.sleep(0.3)
            assert server.sent == before
            assert before < 64 << 20


@pytest.mark.parametrize("word", ["half-json", "html", "gzip"])
def test_G17_half_an_answer_is_none(claude: clauded.Clauded, alone: House, word: str) -> None:
    claude.script = [word]
    answer = alone.messages(stream=False)
    assert answer.status_code == 502
    assert answer.json()["type"] == "error"


def test_G18_nothing_is_tried_again_after_the_first_word(claude: clauded.Clauded, alone: House) -> None:
    claude.script = ["cut=900"]
    broken(alone)
    assert len(claude.asked) == 1


def test_a_redirect_is_not_followed(claude: clauded.Clauded, alone: House) -> None:
    claude.script = ["redirect"]
    assert alone.messages().status_code == 502
    assert all(path == "/v1/messages" and body for path, _, body in claude.asked)
