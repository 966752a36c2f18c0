"""The page at /miyabi/: one file that fetches nothing from elsewhere, and is allowed nothing it does not hold."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from typing import Final

from aiohttp import web

PAGE: Final = "/miyabi/"
_STYLE: Final = re.compile(r"<style>(.*?)</style>", re.S)
_SCRIPT: Final = re.compile(r"<script>(.*?)</script>", re.S)


class Ui:
    """The page, read once."""

    def __init__(self) -> None:
        text = (files("miyabi_llm.data") / "gateway.html").read_text(encoding="utf-8")
        self._body = text.encode()
        self._headers = {
            "content-security-policy": policy(text),
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
        }

    async def show(self, request: web.BaseRequest) -> web.Response:
        """GET /miyabi/."""
        return web.Response(body=self._body, content_type="text/html", charset="utf-8", headers=self._headers)

    async def lead(self, request: web.BaseRequest) -> web.Response:
        """GET /miyabi: to the page, whose addresses are relative to it."""
        return web.Response(status=308, headers={"location": PAGE})


def policy(page: str) -> str:
    """A content security policy that lets in the page's own style and script, by their hashes, and nothing else. Pure.

    The page may ask this server only; no other page may frame it.
    """
    rules = {
        "default-src": "'none'",
        "script-src": _hashes(_SCRIPT, page),
        "style-src": _hashes(_STYLE, page),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hashes(block: re.Pattern[str], page: str) -> str:
    sums = (hashlib.sha256(text.encode()).digest() for text in block.findall(page))
    return " ".join(f"'sha256-{base64.b64encode(s).decode()}'" for s in sums)
