"""A headless Chromium driven by its own protocol: a page opened and asked, and what it fetched and said."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

PATIENCE_S = 60.0
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip


def program() -> str:
    """Chromium on PATH; the test is skipped without one."""
    found = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    return found or pytest.skip("no chromium on PATH: apt-get install chromium")


class Page:
    """One page. `asked` are the addresses it fetched, `said` what it wrote to its console, errors among it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        self._socket, self._number = socket, itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._task = asyncio.create_task(self._listen())

    async def do(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._number)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(PATIENCE_S):
            answer = await self._answers[number]
        assert "error" not in answer, answer
        return dict(answer["result"])

    async def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        said = await self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not await self.value(expression):
            assert time.monotonic() < deadline, f"never: {expression}"
            await asyncio.sleep(0.2)

    async def open(self, url: str, width: int = 1400, height: int = 1000, scheme: str = "light") -> None:
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.do(f"{domain}.enable")
        await self.do(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await self.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await self.do("Page.navigate", url=url)

    async def shot(self, path: Path) -> None:
        """A picture of the page."""
        said = await self.do("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(said["data"]))

    async def _listen(self) -> None:
        async for message in self._socket:
            body = json.loads(message.data)
            if "id" in body:
                self._answers.pop(body["id"]).set_result(body)
            elif body["method"] == "Network.requestWillBeSent":
                self.asked.append(body["params"]["request"]["url"])
            elif body["method"] == "Log.entryAdded":
                self.said.append(body["params"]["entry"]["text"])
            elif body["method"] == "Runtime.exceptionThrown":
                self.said.append(json.dumps(body["params"]["exceptionDetails"]))

    async def end(self) -> None:
        self._task.cancel()
        await self._socket.close()


@asynccontextmanager
async def page() -> AsyncIterator[Page]:
    """A browser with one page; it ends with the block."""
    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.Popen(
            [program(), *FLAGS, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL
        )
        try:
            told = Path(profile) / "DevToolsActivePort"
            deadline = time.monotonic() + PATIENCE_S
            while not (told.exists() and told.read_text().count("\n")):
                assert process.poll() is None, "chromium ended"
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
            port = told.read_text().split("\n")[0]
            async with aiohttp.ClientSession() as http:
                async with http.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    rows = [r for r in await answer.json() if r["type"] == "page"]
                socket = await http.ws_connect(rows[0]["webSocketDebuggerUrl"], max_msg_size=64 << 20)
                made = Page(socket)
                yield made
                await made.end()
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
