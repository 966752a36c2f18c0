"""The two processes of a gateway: `egress ORDER` holds the keys and starts `front ORDER`, which answers clients.

The first is the parent: what it has in its environment its child never sees. The child gets the keys of local servers
and the key that seals permits over a pipe, which also tells it when its parent is gone.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from miyabi_llm.gateway.values import Order

KEY_VARIABLE: Final = "MIYABI_GATEWAY_KEY"  # what clients must show
SERVER_KEYS: Final = "MIYABI_GATEWAY_SERVER_KEYS"  # JSON: local target -> its key
GOODBYE_S: Final = 2.0  # for answers that are on their way when a signal comes: who drains did so before


def main(argv: list[str]) -> int:
    """`python -m miyabi_llm.gateway.process egress|front ORDER.json`."""
    return _egress(argv[1]) if argv[0] == "egress" else _front(argv[1])


def _egress(file: str) -> int:
    """The process with the keys. Starts the front first, so that both get ready at once."""
    seal = secrets.token_bytes(32)
    key, servers = os.environ.pop(KEY_VARIABLE, ""), os.environ.pop(SERVER_KEYS, "{}")
    keep = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "MIYABI_LAUNCH")
    front = subprocess.Popen(
        [sys.executable, "-P", "-m", "miyabi_llm.gateway.process", "front", file],
        stdin=subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if k in keep},
    )
    signal.signal(signal.SIGTERM, lambda *_: None)  # the front gets it too; it ends first
    try:
        from miyabi_llm.gateway.egress import clouds
        from miyabi_llm.gateway.values import Order

        order = Order.from_json(Path(file).read_text(encoding="utf-8"))
        policy = _policy(order)
        local = json.loads(servers) | _local_keys(policy)
        known = clouds(policy.targets, dict(os.environ))
        assert front.stdin is not None
        said = {"seal": seal.hex(), "key": key, "servers": local, "clouds": sorted(known)}
        front.stdin.write(json.dumps(said).encode() + b"\n")
        front.stdin.flush()
        if not known:
            return front.wait()
        return asyncio.run(_send(order, known, seal, front))
    finally:
        if front.poll() is None:
            front.terminate()
            try:
                front.wait(GOODBYE_S + 1)
            except subprocess.TimeoutExpired:
                front.kill()


def _local_keys(policy: Any) -> dict[str, str]:
    names = {t.name: t.endpoint.key_env for t in policy.targets if t.local and t.endpoint.key_env}
    return {name: os.environ[variable] for name, variable in names.items() if os.environ.get(variable)}


async def _send(order: Order, known: Any, seal: bytes, front: subprocess.Popen[bytes]) -> int:
    from miyabi_llm.gateway.books import written
    from miyabi_llm.gateway.egress import Egress

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, front.terminate)
    _private(order.socket.parent)
    order.socket.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        sender = Egress(known, seal, lambda target, nonce: written(order.audit, target, nonce))
        server = await asyncio.start_unix_server(sender.serve, str(order.socket))
    finally:
        os.umask(before)
    async with server:
        code = await asyncio.to_thread(front.wait)
    sender.close()
    order.socket.unlink(missing_ok=True)
    if order.socket.parent != order.work:
        order.socket.parent.rmdir()
    return code


def _private(folder: Path) -> None:
    """Make the folder of the socket, or see that it is ours alone. Raises SystemExit for anybody else's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise SystemExit(f"[miyabi-llm] {folder} is not a folder that only you can read; remove it")


def _policy(order: Order) -> Any:
    from miyabi_llm.route import policy
    from miyabi_llm.route.values import Target, Upstream

    servers = tuple(
        Target(name, "local", Upstream(url, model, ("anthropic", "openai"), backend=backend))
        for name, url, model, backend in order.servers
    )
    if order.policy is None:
        return policy.denied("no policy file", servers)
    return policy.load(order.policy, servers)


def _front(file: str) -> int:
    """The process that answers clients; from here on it can reach local targets only."""
    told = json.loads(sys.stdin.buffer.readline() or b"{}")
    if not told:
        return 1
    from miyabi_llm.gateway.values import Order

    order = Order.from_json(Path(file).read_text(encoding="utf-8"))
    return asyncio.run(_answer(order, told))


async def _answer(order: Order, told: dict[str, Any]) -> int:
    from miyabi_llm.gateway import hook, locality
    from miyabi_llm.gateway.assemble import Parts, assemble, listen
    from miyabi_llm.gateway.books import open_files
    from miyabi_llm.gateway.roads import Out
    from miyabi_llm.types import Secret

    policy = _policy(order)
    files = open_files(order)
    if files.why:
        _say(f"the books: {files.why}")
    places = {t.name: locality.find(t) for t in policy.targets if t.local}
    for name, place in places.items():
        if place.elsewhere:
            _say(f"{name} is not used: {place.elsewhere}")
    if policy.error:
        _say(f"nothing goes to a cloud: {policy.error}")
    hook.install([h for t in policy.targets if t.local for h in t.endpoint.hosts], (str(order.socket),))
    parts = assemble(
        order,
        policy,
        Parts(
            files=files,
            places=places,
            keys={k: Secret(v) for k, v in told["servers"].items()},
            out=Out(order.socket, bytes.fromhex(told["seal"])) if told["clouds"] else None,
            key=Secret(told["key"]) if told["key"] else None,
        ),
    )
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_reader(0, _watch(loop, stop))
    try:
        async with listen(parts, order.host, order.port, GOODBYE_S):
            await stop.wait()
    except OSError as e:
        _say(f"cannot listen on {order.host}:{order.port}: {e.strerror}")
        return 1
    finally:
        files.close()
    return 0


def _watch(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> Callable[[], None]:
    """End when the parent is gone: nobody else would send for us."""

    def read() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop.set()

    return read


def _say(text: str) -> None:
    print(f"[miyabi-llm] {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
