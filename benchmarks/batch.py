"""Rows per second of a batch against a bare asyncio loop, and its memory at 2,000 and 20,000 rows; prints ratios.

A server in a process of its own answers each request after a fixed time. The bare loop uses the same HTTP library
with as many requests at once, keeps the answers in memory and writes them at the end: no journal, no retries, no
checks. Both sides run in processes of their own, in turns.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AT_ONCE = 8
RUNS = 3
BODY = json.dumps({
    "id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 40},
    "finish_reason": "stop"}], "usage": {"prompt_tokens": 9, "completion_tokens": 40},
}).encode()  # fmt: skip


async def serve(delay: float) -> None:
    """Answer every request the same, `delay` seconds after it came; prints the port."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lower = head.lower()
                if b"content-length:" in lower:
                    await reader.readexactly(int(lower.split(b"content-length:")[1].split(b"\r\n")[0]))
                if delay:
                    await asyncio.sleep(delay)
                length = str(len(BODY)).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: " + length)
                writer.write(b"\r\n\r\n" + BODY)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def bare(url: str, source: Path, target: Path) -> None:
    """What one would write by hand."""
    import httpx

    rows = [json.loads(line) for line in source.read_text().splitlines()]
    gate = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(base_url=url, trust_env=False, limits=httpx.Limits(max_connections=AT_ONCE)) as http:

        async def ask(row: dict[str, str]) -> str:
            async with gate:
                body = {"model": "m", "messages": [{"role": "user", "content": row["prompt"]}]}
                answer = await http.post("/v1/chat/completions", json=body)
                return json.dumps({"custom_id": row["custom_id"], "response": answer.json()})

        target.write_text("\n".join(await asyncio.gather(*map(ask, rows))))


def ours(url: str, source: Path, target: Path) -> None:
    """The verb."""
    from miyabi_llm import batch
    from miyabi_llm.types import Endpoint

    with batch.opened(batch.Job(source, target)) as work:
        done = batch.run(work, Endpoint(url, "m"), batch.Limits(concurrency=AT_ONCE), stop=batch.Stop())
    assert done.done == done.total


def side(name: str, url: str, source: str, target: str) -> None:
    """One side, timed in this process; prints seconds and peak memory in MiB."""
    import httpx  # noqa: F401 - both sides need it: its import is not what is measured

    from miyabi_llm import batch  # noqa: F401 - the same

    begun = time.perf_counter()
    if name == "bare":
        asyncio.run(bare(url, Path(source), Path(target)))
    else:
        ours(url, Path(source), Path(target))
    print(time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def run(name: str, url: str, source: Path, folder: Path) -> tuple[float, float]:
    """One side in a process of its own: seconds and peak MiB."""
    target = Path(tempfile.mkdtemp(dir=folder)) / "out.jsonl"
    argv = [sys.executable, __file__, "side", name, url, str(source), str(target)]
    seconds, memory = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    return float(seconds), float(memory)


def written(folder: Path, count: int) -> Path:
    """An input of `count` rows."""
    path = folder / f"{count}.jsonl"
    path.write_text("".join(json.dumps({"custom_id": f"r{i}", "prompt": f"prompt {i}"}) + "\n" for i in range(count)))
    return path


def compare(delay: float, count: int, folder: Path) -> None:
    """Both sides in turns against one server."""
    server = subprocess.Popen([sys.executable, __file__, "serve", str(delay)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        source = written(folder, count)
        times: dict[str, list[float]] = {"bare": [], "batch": []}
        for _ in range(RUNS):
            for name, seen in times.items():
                seen.append(run(name, url, source, folder)[0])
        rates = {name: count / statistics.median(seen) for name, seen in times.items()}
        ratio = statistics.median(b / o for b, o in zip(times["bare"], times["batch"], strict=True))
        spread = " to ".join(f"{count / t:.0f}" for t in (max(times["batch"]), min(times["batch"])))
        print(f"{1000 * delay:6.0f} ms {rates['bare']:10.0f} {rates['batch']:10.0f} {ratio:8.2f}   ({spread})")
        if not delay:
            small, large = (run("batch", url, written(folder, n), folder)[1] for n in (2_000, 20_000))
            print(f"peak memory of a batch: {small:.0f} MiB at 2,000 rows, {large:.0f} MiB at 20,000")
    finally:
        server.kill()
        server.communicate()


def main() -> None:
    """Two servers: one that answers at once (all is overhead), one that takes 50 ms."""
    print(f"{'answer':>9} {'bare r/s':>10} {'batch r/s':>10} {'ratio':>8}   ({AT_ONCE} at once, medians of {RUNS})")
    with tempfile.TemporaryDirectory() as tmp:
        compare(0.05, 1_000, Path(tmp))
        compare(0.0, 2_000, Path(tmp))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(float(sys.argv[2])))
    elif sys.argv[1:2] == ["side"]:
        side(*sys.argv[2:6])
    else:
        main()
