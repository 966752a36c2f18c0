"""The small HTTP client: kept connections, cut answers, and servers that do not keep to the rules."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from miyabi_llm.gateway.http1 import Failed, Order, Pool, Times, origin

TIMES = Times(connect=5, head=5, idle=5)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def ask(serve: Serve, times: int = 1, limits: Times = TIMES) -> list[bytes | Failed]:
    """What `times` requests, one after the other, get from such a server."""

    async def run() -> list[bytes | Failed]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        at = origin(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        pool, got = Pool(limits), []
        async with server:
            for _ in range(times):
                try:
                    answer = await pool.send(at, Order("POST", "/x", (("a", "b"),), b"{}"))
                    try:
                        got.append(await answer.read(1 << 20))
                    finally:
                        answer.close()
                except Failed as e:
                    got.append(e)
                await asyncio.sleep(0.02)
            pool.close()
            await asyncio.sleep(0.02)
        return got

    return asyncio.run(run())


def replies(*answers: bytes, close: bool = False, seen: list[bytes] | None = None) -> Serve:
    """A server that gives these answers, one a request, over all its connections; b"" closes instead."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while left:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(2)
                if seen is not None:
                    seen.append(head + body)
                answer = left.pop(0)
                writer.write(answer)
                await writer.drain()
                if close or not answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    return serve


def why(result: bytes | Failed) -> str:
    assert isinstance(result, Failed), result
    return result.why


def test_a_request_is_written_as_it_was_given() -> None:
    seen: list[bytes] = []
    assert ask(replies(OK, OK, seen=seen), 2) == [b"hello", b"hello"]
    assert seen[0].startswith(b"POST /x HTTP/1.1\r\nhost: 127.0.0.1:")
    assert seen[0].endswith(b"\r\na: b\r\ncontent-length: 2\r\n\r\n{}")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK,
    ],
)
def test_forms_of_an_answer(answer: bytes) -> None:
    assert ask(replies(answer)) == [b"hello"]


def test_an_answer_to_the_end_of_the_connection() -> None:
    assert ask(replies(b"HTTP/1.1 200 OK\r\n\r\nhello", close=True)) == [b"hello"]


@pytest.mark.parametrize(
    "answer",
    [OK[:-1], b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n", OK[:20], b"", b"HTTP/1.1 200"],
)
def test_a_cut_answer_is_none(answer: bytes) -> None:
    assert why(ask(replies(answer, close=True))[0]) == "cut"


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300 + b"content-length: 5\r\n\r\nhello",
    ],
)
def test_what_is_no_http(answer: bytes) -> None:
    assert why(ask(replies(answer, close=True))[0]) in ("garbled", "cut")


def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    """The server closes it just after an answer, or just when the next request comes."""
    assert ask(replies(OK, OK, OK, close=True), 3) == [b"hello"] * 3
    assert ask(replies(OK, b"", OK), 2) == [b"hello", b"hello"]


def test_a_new_connection_is_not_tried_twice() -> None:
    assert why(ask(replies(b"", OK))[0]) == "cut"


def test_bytes_after_an_answer_spoil_the_connection() -> None:
    assert ask(replies(OK + b"HTTP/1.1 500 no\r\ncontent-length: 4\r\n\r\nevil", OK), 2) == [b"hello", b"hello"]


def test_silence_ends() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    assert why(ask(silent, limits=Times(5, 0.2, 5))[0]) == "timeout"
    half = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel"
    assert why(ask(replies(half, OK), limits=Times(5, 5, 0.2))[0]) == "timeout"


def test_a_header_is_one_line() -> None:
    async def run() -> None:
        server = await asyncio.start_server(replies(OK), "127.0.0.1", 0)
        at = origin(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with server:
            with pytest.raises(Failed, match="line break"):
                await Pool(TIMES).send(at, Order("GET", "/", (("a", "b\r\nc: d"),)))
            await asyncio.sleep(0.02)

    asyncio.run(run())


def test_where_a_base_url_leads() -> None:
    assert origin("https://api.anthropic.com").name == "api.anthropic.com"
    assert origin("https://api.anthropic.com").authority == "api.anthropic.com"
    assert origin("http://[::1]:8080/anthropic/").prefix == "/anthropic"
    assert origin("http://[::1]:8080").authority == "[::1]:8080"
    assert origin("http://box:81", ("10.0.0.1",)).addresses == ("10.0.0.1",)
