"""What a server's answer to a download means: go on, try again, start over, or give up."""

from __future__ import annotations

import email.utils
import re
import time
from dataclasses import dataclass
from urllib.parse import unquote

import httpx

from miyabi_llm.errors import AccessDenied, Corrupt, ModelMissing, NetworkError
from miyabi_llm.sources.net import Hiccup, Response, shown
from miyabi_llm.types import RemoteFile

_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_STRONG = re.compile(r'"[\x21\x23-\x7e]{1,256}"', re.ASCII)


class Restart(Exception):
    """What is on disk belongs to another file, or cannot be continued: from the beginning, please."""

    def __init__(self, reason: str, *, ranges: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.ranges = ranges


@dataclass(frozen=True, slots=True)
class First:
    """What the first answer tells: `validator` is a strong ETag or None; `total` and `end` in bytes."""

    validator: str | None
    total: int | None
    end: int | None


def first(response: Response, file: RemoteFile, asked_end: int | None) -> First:
    """Read the headers of the first answer. `asked_end` is set when only the beginning was asked for.

    Raises Hiccup, Restart (the server's ranges are no good), NetworkError, AccessDenied, ModelMissing, Corrupt.
    """
    check_status(response, file)
    length = content_length(response)
    if response.status == 200:
        _refuse_length(length, file)
        if length is None and file.size is None and "chunked" not in response.headers.get("transfer-encoding", ""):
            raise NetworkError(f"{place(file)}: the server does not say how long the file is")
        ranges = response.headers.get("accept-ranges", "").strip().lower() != "none"
        return First(strong(response) if ranges else None, length if file.size is None else file.size, None)
    start, end, total = _content_range(response)
    if asked_end is None or start != 0 or end != min(asked_end, total) or length not in (None, end):
        raise Restart("the server sent another range than asked for", ranges=False)
    _refuse_length(total, file)
    validator = strong(response)
    if validator is None and end < total:
        raise Restart("the server gives its file no strong ETag", ranges=False)
    return First(validator, total, end)


def later(response: Response, file: RemoteFile, asked: tuple[int, int, int | None], validator: str) -> None:
    """Read the headers of the answer for the bytes `asked` = (start, end, total).

    Raises Restart when they are not of the file that `validator` names, else as `first`.
    """
    check_status(response, file)
    if response.status == 200:
        raise Restart("the file changed at its source, or the server forgot how to continue", ranges=True)
    start, end, total = _content_range(response)
    if (start, end, total) != asked or content_length(response) not in (None, end - start):
        raise Restart("the server sent another range than asked for", ranges=False)
    if response.headers.get("etag") not in (None, validator):
        raise Restart("the file changed at its source", ranges=True)


def check_status(response: Response, file: RemoteFile) -> None:
    """Refuse everything but 200 and 206 of plain bytes, each in its own way."""
    status, where = response.status, place(file)
    if status in (401, 403):
        raise AccessDenied(f"{where}: {status}, the server wants a login or refuses this one")
    if status in (404, 410):
        raise ModelMissing(f"{where}: {status}, there is no such file")
    if status == 416:
        raise Restart("the server refuses the range", ranges=False)
    if status in (408, 421, 425, 429) or status >= 500:
        raise Hiccup(f"the server answered {status}", retry_after(response.headers.get("retry-after", "")))
    if status not in (200, 206):
        raise NetworkError(f"{where}: the server answered {status}")
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise NetworkError(f"{where}: the server insists on a compressed transfer, which cannot be checked")
    kind = response.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        raise _page(file)


def refuse_page(chunk: bytes, file: RemoteFile) -> None:
    """Raise NetworkError when the first bytes are those of a web page (a portal, an error in disguise)."""
    head = chunk[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        raise _page(file)


def _page(file: RemoteFile) -> NetworkError:
    return NetworkError(
        f"{place(file)}: a web page came instead of the file",
        hint="Is there a login page between you and the internet? Open the address in a browser.",
    )


def retry_after(text: str) -> float | None:
    """Seconds a Retry-After header asks to wait, as a number or a date; None when it does not say."""
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def strong(response: Response) -> str | None:
    """The answer's strong ETag, None when it is weak, odd or not there."""
    tag = response.headers.get("etag", "")
    return tag if _STRONG.fullmatch(tag) else None


def content_length(response: Response) -> int | None:
    """The declared length in bytes, None when there is none."""
    text = response.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def place(file: RemoteFile) -> str:
    """File and address for a message, without the address's query; the address alone when it ends with the name."""
    if not file.urls:
        return file.name
    address = shown(httpx.URL(file.urls[0]))
    return address if unquote(address).endswith(f"/{file.name}") else f"{file.name} ({address})"


def _content_range(response: Response) -> tuple[int, int, int]:
    match = _RANGE.fullmatch(response.headers.get("content-range", "").strip())
    if not match:
        raise Restart("the server's range cannot be read", ranges=False)
    start, last, total = (int(g) for g in match.groups())
    return start, last + 1, total


def _refuse_length(length: int | None, file: RemoteFile) -> None:
    if length is not None and file.size is not None and length != file.size:
        raise Corrupt(
            f"{place(file)}: the server has {length} bytes, {file.size} were promised",
            hint="The file changed at its source; pull again, or name a fixed revision.",
        )


def total(response: Response) -> int | None:
    """How long the whole file is, from the answer to a request for a piece of it; None when it does not say."""
    if response.status != 206:
        return content_length(response)
    try:
        return _content_range(response)[2]
    except Restart:
        return None
