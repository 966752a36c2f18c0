"""Many GGUF models in llama-server's own router: it starts a server for each, we say when."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from miyabi_llm.errors import MiyabiError, ServerFailed
from miyabi_llm.proc import Child, Exit, launch, ports
from miyabi_llm.serve.failure import explain, how
from miyabi_llm.serve.keys import new_key
from miyabi_llm.serve.many import preset
from miyabi_llm.serve.many.hosts import Place, resident
from miyabi_llm.serve.many.values import Loaded
from miyabi_llm.serve.state import write_private
from miyabi_llm.types import Endpoint, Event, LaunchPlan, Secret

if TYPE_CHECKING:
    import aiohttp

KEY_VARIABLE = "LLAMA_API_KEY"
POLL = 0.01  # seconds between looks at a model that loads: little beside any load
UP_S = 30.0  # for the router itself, which loads nothing
DEATHS, WITHIN_S = 5, 600.0  # of the router, until it is given up


class RouterHost:
    """One llama-server without a model, which runs one llama-server for each loaded model.

    It listens on loopback with a random key that its children demand too. `plans` are the command lines the models
    would be served by on their own; all of one program. Started with the first load, and again when it died.
    """

    def __init__(self, plans: Mapping[str, LaunchPlan], place: Place) -> None:
        first = next(iter(plans.values())).argv or ()
        self._program = first[: first.index("--model")]
        self._plans, self._place = dict(plans), place
        self._names = preset.sections(plans)
        self._preset = preset.text(plans, self._program, self._names)
        self._key = new_key()
        self._child: Child | None = None
        self._endpoint = Endpoint("http://127.0.0.1:0", "")
        self._http: aiohttp.ClientSession | None = None
        self._loaded: set[str] = set()
        self._deaths: deque[float] = deque(maxlen=DEATHS)

    def models(self) -> tuple[str, ...]:
        """The aliases it can load."""
        return tuple(self._plans)

    async def load(self, name: str) -> Loaded:
        """Have the router load it. Raises ServerFailed or MachineLimit with the child's last words."""
        await self._up()
        asked = await self._ask("POST", "/models/load", {"model": self._names[name]})
        if not asked.get("success") and "already" not in str(asked):
            raise ServerFailed(f"{name}: llama-server's router refuses: {_words(asked)}")
        deadline = time.monotonic() + self._place.limits.load_s
        while True:
            row = await self._row(name)
            status = row.get("status", {})
            if status.get("value") in ("loaded", "sleeping"):
                break
            if status.get("failed") or status.get("value") not in ("loading", "downloading"):
                raise self._explained(name, status)
            if time.monotonic() > deadline:
                with suppress(MiyabiError):
                    await self.unload(name)
                raise ServerFailed(f"{name}: not loaded after {self._place.limits.load_s:g} s")
            await asyncio.sleep(POLL)
        self._loaded.add(name)
        plan = self._plans[name]
        # Not through the router: it ends the answer of a child that died as if it were whole.
        url = f"http://127.0.0.1:{_port(name, status)}"
        endpoint = Endpoint(url, name, plan.endpoint.dialects, self._key)
        return Loaded(endpoint, plan.ctx, plan)

    async def unload(self, name: str) -> None:
        """Have the router unload it; returns when its process is gone."""
        self._loaded.discard(name)
        if self._child is None or self._child.poll() is not None:
            return
        with suppress(MiyabiError):  # it says no when the model is not running: then it is as it should be
            await self._ask("POST", "/models/unload", {"model": self._names[name]})
        deadline = time.monotonic() + 30.0  # three times the router's own patience with a child
        while (await self._row(name)).get("status", {}).get("value") not in ("unloaded", None):
            if time.monotonic() > deadline:
                raise ServerFailed(f"{name}: llama-server's router does not unload it")
            await asyncio.sleep(POLL)

    async def memory(self, name: str) -> int | None:
        """Resident bytes of the model's own server."""
        child = self._child
        return None if child is None else await asyncio.to_thread(_resident_of, child, self._names[name])

    async def lost(self) -> Mapping[str, str]:
        """Loaded models whose server, or whose router, died."""
        if not self._loaded or self._child is None:
            return {}
        if (ended := self._child.poll()) is not None:
            gone = dict.fromkeys(self._loaded, f"llama-server's router died: {how(ended)}")
        else:
            try:
                rows = await self._rows()
            except MiyabiError:
                return {}  # too busy to answer: a later look tells
            values = {n: rows.get(self._names[n], {}).get("status", {}) for n in self._loaded}
            gone = {n: _died(s) for n, s in values.items() if s.get("value") == "unloaded"}
        self._loaded -= set(gone)
        return gone

    async def close(self) -> None:
        """End the router and all its servers."""
        if self._http is not None:
            await self._http.close()
        if self._child is not None:
            await asyncio.to_thread(self._child.stop, self._place.limits.grace_s)

    async def _up(self) -> None:
        """Start the router if it does not run, and prove that who answers is ours. Raises what stopped it."""
        if self._child is not None and self._child.poll() is None:
            return
        if self._child is not None:
            self._loaded.clear()
            self._refuse_crash_loop()
            await asyncio.to_thread(self._child.stop, 0.0)  # what it left behind
        place, port = self._place, await asyncio.to_thread(_free)
        file, empty = place.work / "router.ini", place.work / "no-cache"
        empty.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(file, self._preset.encode())
        argv = (*self._program, "--models-preset", str(file), "--models-max", "0", "--no-models-autoload")
        argv += ("--host", "127.0.0.1", "--port", str(port))
        # the models in the user's cache of llama.cpp are not on our list
        env: dict[str, str | Secret] = {KEY_VARIABLE: self._key, "LLAMA_CACHE": str(empty), "HF_HUB_CACHE": str(empty)}
        place.on_event(Event("phase", "router", f"llama-server for {len(self._plans)} models"))
        self._endpoint = Endpoint(f"http://127.0.0.1:{port}", "router", key=self._key)
        child = await asyncio.to_thread(launch, argv, place.env, env, place.work / "router.log")
        self._child = child
        await self._wait_up(child, port)

    async def _wait_up(self, child: Child, port: int) -> None:
        deadline = time.monotonic() + UP_S
        plan = LaunchPlan("llama-cpp", self._program, {}, self._endpoint)
        while True:
            if (ended := child.poll()) is not None:
                raise explain(plan, ended, child.tail(), ready=False)
            with suppress(MiyabiError):
                known = await self._rows()
                break
            if time.monotonic() > deadline:
                await asyncio.to_thread(child.stop, 0.0)
                raise ServerFailed("llama-server's router does not answer", log=child.tail())
            await asyncio.sleep(POLL)
        if await asyncio.to_thread(lambda: ports.listens(child.pids(), port)) is False:
            raise ServerFailed(f"port {port} is answered by another process than llama-server's router")
        if missing := set(self._names.values()) - set(known):
            raise ServerFailed(f"llama-server's router does not know {', '.join(sorted(missing))}", log=child.tail())

    def _refuse_crash_loop(self) -> None:
        now = time.monotonic()
        self._deaths.append(now)
        if len(self._deaths) == DEATHS and now - self._deaths[0] < WITHIN_S:
            raise ServerFailed(
                f"llama-server's router died {DEATHS} times in {WITHIN_S / 60:g} min",
                hint="`miyabi-llm logs` says why.",
            )

    def _explained(self, name: str, status: Mapping[str, Any]) -> MiyabiError:
        child, code = self._child, status.get("exit_code", 1)
        ended = Exit(code=code) if code >= 0 else Exit(signal=-code)
        said = child.tail() if child is not None else ""
        return explain(self._plans[name], ended, said, ready=False)

    async def _rows(self) -> dict[str, Any]:
        body = await self._ask("GET", "/models")
        if not isinstance(body.get("data"), list):
            raise ServerFailed(f"llama-server's router tells no models: {_words(body)}")
        return {row["id"]: row for row in body["data"]}

    async def _row(self, name: str) -> dict[str, Any]:
        row = (await self._rows()).get(self._names[name], {})
        return row if isinstance(row, dict) else {}

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        import aiohttp

        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        headers = {"authorization": f"Bearer {self._key.reveal()}"}
        try:
            async with self._http.request(
                method, self._endpoint.base_url + path, json=body, headers=headers
            ) as response:
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as e:
            raise ServerFailed(f"llama-server's router does not answer: {type(e).__name__}") from e
        return answer if isinstance(answer, dict) else {}


def _free() -> int:
    import socket

    with socket.socket() as s:  # any port will do: nobody but the front calls it
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _resident_of(child: Child, section: str) -> int | None:
    """Resident bytes of the router's server for one section."""
    import psutil

    for pid in child.pids():
        with suppress(psutil.Error):
            words = psutil.Process(pid).cmdline()
            if "--alias" in words and words[words.index("--alias") + 1] == section:
                return resident([pid])
    return None


def _port(name: str, status: Mapping[str, Any]) -> int:
    """Where the child of a loaded model listens: the router shows its command line."""
    words = status.get("args", [])
    port = words[words.index("--port") + 1] if "--port" in words else "0"
    if not str(port).isdigit() or int(port) == 0:
        raise ServerFailed(f"{name}: llama-server's router does not say where its server listens")
    return int(port)


def _words(answer: Mapping[str, Any]) -> str:
    error = answer.get("error")
    return str(error.get("message")) if isinstance(error, dict) else str(answer)[:300]


def _died(status: Mapping[str, Any]) -> str:
    return f"its server ended with exit code {status.get('exit_code', '?')}"
