"""The supervisor of a detached server: `python -m miyabi_llm.serve.daemon FD`, told what to do over that descriptor."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection

from miyabi_llm.errors import MiyabiError, ServerFailed
from miyabi_llm.serve.detach import Order
from miyabi_llm.serve.run import Job, supervise
from miyabi_llm.serve.state import RunDir
from miyabi_llm.types import Event


class _Teller:
    """Events to whoever started us until the server is ready; the later ones to the server's log."""

    def __init__(self, pipe: Connection, order: Order) -> None:
        self._pipe, self._log = pipe, RunDir(order.settings.run).log(order.name)

    def __call__(self, event: Event) -> None:
        if not self._pipe.closed:
            self.send(event)
            if event.kind == "done":
                self._pipe.close()
        elif event.kind in ("warning", "phase"):
            with suppress(OSError):
                fd = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
                os.write(fd, f"[miyabi-llm] {event.name}: {event.message}\n".encode())
                os.close(fd)

    def send(self, what: Event | MiyabiError) -> None:
        """Tell the starter, if it still listens."""
        with suppress(OSError, ValueError):
            self._pipe.send(what)


def main(fd: int) -> int:
    """Read the order, serve until a signal; returns the exit code."""
    with Connection(fd) as pipe:
        order: Order = pipe.recv()
        tell = _Teller(pipe, order)
        try:
            with ExitStack() as stack:
                if order.artifact is not None and order.artifact.files:
                    from miyabi_llm.store import Store

                    stack.enter_context(Store(order.settings.store).lease(order.artifact))
                supervise(order.plan, order.settings, tell, Job("detached", order.name, order.artifact, order.limits))
        except MiyabiError as e:
            if not pipe.closed:
                tell.send(e)
            return e.exit_code
        if not pipe.closed:  # by a signal: whoever waits for it must hear more than silence
            tell.send(ServerFailed(f"{order.name} was stopped before it was ready"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1])))
