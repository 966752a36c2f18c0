"""A server that streams without end, as fast as it is read."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests import openaid


class Endless(openaid.Openaid):
    """`sent` counts bytes; `stalled` is set when nobody reads any more."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        self.stalled = threading.Event()


def write(h: openaid.Handler) -> None:
    """Pieces of 64 KiB until the other side stops reading."""
    server = h.server
    assert isinstance(server, Endless)
    h.begin()
    piece = openaid.chunk(content="x" * (1 << 16))
    while not server.release.is_set():
        if not select.select([], [h.connection], [], 3)[1]:
            server.stalled.set()
            server.release.wait(20)
            break
        h.piece(piece)
        server.sent += len(piece)
    h.close_connection = True


@contextmanager
def endless() -> Iterator[Endless]:
    """Such a server for as long as the block runs."""
    openaid.BEHAVIOURS["normal"], before = write, openaid.BEHAVIOURS["normal"]
    server = Endless()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
        openaid.BEHAVIOURS["normal"] = before
