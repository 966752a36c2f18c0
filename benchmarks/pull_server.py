"""A range server for the pull benchmark: one file of nothing but sendfile, in a process of its own."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading


def answer(connection: socket.socket, fd: int, size: int) -> None:
    """Serve GET requests with and without Range until the client goes."""
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pending = b""
        while True:
            while b"\r\n\r\n" not in pending:
                more = connection.recv(65536)
                if not more:
                    return
                pending += more
            head, _, pending = pending.partition(b"\r\n\r\n")
            match = re.search(rb"(?i)\r\nrange: bytes=(\d+)-(\d*)", head)
            start = int(match[1]) if match else 0
            end = min(int(match[2] or size - 1) + 1, size) if match else size
            lines = [
                "HTTP/1.1 206 Partial Content" if match else "HTTP/1.1 200 OK",
                "Content-Type: application/octet-stream",
                'ETag: "benchmark"',
                "Accept-Ranges: bytes",
                f"Content-Length: {end - start}",
                *([f"Content-Range: bytes {start}-{end - 1}/{size}"] if match else []),
            ]
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            while start < end:
                start += os.sendfile(connection.fileno(), fd, start, end - start)


def main() -> None:
    """Serve the file named by the first argument; print the port."""
    fd = os.open(sys.argv[1], os.O_RDONLY)
    size = os.fstat(fd).st_size
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=guarded, args=(connection, fd, size), daemon=True).start()


def guarded(connection: socket.socket, fd: int, size: int) -> None:
    """A client that hangs up is no error."""
    try:
        answer(connection, fd, size)
    except OSError:
        return


if __name__ == "__main__":
    main()
