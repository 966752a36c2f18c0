"""How fast a pull is beside `curl -o f URL && sync f && sha256sum f`, measured in the same run.

    python benchmarks/pull.py [--mib 2048] [--rounds 3] [--connections 1,4,8]

The server is one process that sends ranges of a file by sendfile over loopback. A pull is the download engine
and the store: every byte written, synced, hashed from disk and published. Ratios above 1 mean the pull is faster.
The `sha256sum` of many systems does not use the processor's SHA instructions; so the same is measured a second time
with Python's `hashlib.file_digest` in its place, and the ratio to that is what the pull itself saves.
Each measured side runs in a fresh process; the order alternates between rounds; the figure is the median.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20
_HASHLIB = "import hashlib; print(hashlib.file_digest(open('f', 'rb'), 'sha256').hexdigest())"
HASHES = {"curl+sha256sum": ["sha256sum", "f"], "curl+hashlib": [sys.executable, "-c", _HASHLIB]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", default="8")
    parser.add_argument("--dir", type=Path, default=None, help="where to write (default: a temporary folder)")
    parser.add_argument("--child", nargs=4, metavar=("URL", "SHA", "CONNECTIONS", "DIR"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(*args.child)
    if not shutil.which("curl"):
        sys.exit("curl is needed for the comparison")
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        compare(Path(name), args.mib * MIB, args.rounds, [int(c) for c in args.connections.split(",")])


def compare(work: Path, size: int, rounds: int, connections: list[int]) -> None:
    """Alternate the sides, then print medians and ratios."""
    digest = make(work / "source", size)
    sides: dict[str, list[dict[str, float]]] = {s: [] for s in (*HASHES, *(f"pull x{c}" for c in connections))}
    with served(work / "source") as url:
        for round_ in range(rounds):
            for side in sorted(sides, reverse=bool(round_ % 2)):
                target = work / "target"
                target.mkdir()
                os.sync()
                found = curl(url, digest, side, target) if side in HASHES else pull(url, digest, side, target)
                sides[side].append(found)
                print(f"{side}: {found}", file=sys.stderr)
                shutil.rmtree(target)
    middle = {s: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for s, runs in sides.items()}
    print(f"{size // MIB} MiB over loopback, medians of {rounds}, sides in turns")
    for side, found in middle.items():
        parts = ", ".join(f"{k} {v:g}" for k, v in found.items() if k not in ("seconds", "peak_mib"))
        peak = f"; peak memory {found['peak_mib']:g} MiB" if "peak_mib" in found else ""
        print(f"  {side:16}{found['seconds']:7.2f} s  ({parts}{peak})")
    for side in (s for s in middle if s not in HASHES):
        for other in HASHES:
            print(f"{side}, times as fast as {other}: {middle[other]['seconds'] / middle[side]['seconds']:.2f}")


def make(path: Path, size: int) -> str:
    """A file without holes or repetition worth compressing; its sha256."""
    digest, block = hashlib.sha256(), os.urandom(MIB)
    with path.open("wb") as f:
        for i in range(0, size, MIB):
            piece = i.to_bytes(8, "little") + block[8 : min(MIB, size - i)]
            f.write(piece)
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def served(path: Path) -> Iterator[str]:
    """The address of a server for `path`."""
    script = Path(__file__).with_name("pull_server.py")
    server = subprocess.Popen([sys.executable, str(script), str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/model.gguf"
    finally:
        server.kill()
        server.wait()


def curl(url: str, digest: str, side: str, target: Path) -> dict[str, float]:
    """Download, sync and hash, one after the other, with the usual tools or with `side`'s way to hash."""
    started = time.perf_counter()
    subprocess.run(["curl", "-sS", "-o", "f", url], cwd=target, check=True)
    got = time.perf_counter()
    subprocess.run(["sync", "f"], cwd=target, check=True)
    synced = time.perf_counter()
    out = subprocess.run(HASHES[side], cwd=target, check=True, capture_output=True, text=True).stdout
    done = time.perf_counter()
    assert out.split()[0] == digest
    parts = {"download": got - started, "sync": synced - got, "hash": done - synced}
    return {"seconds": round(done - started, 2), **{k: round(v, 2) for k, v in parts.items()}}


def pull(url: str, digest: str, side: str, target: Path) -> dict[str, float]:
    """One pull in a fresh process, its start included."""
    argv = [sys.executable, __file__, "--child", url, digest, side.removeprefix("pull x"), str(target)]
    started = time.perf_counter()
    out = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 2), **json.loads(out)}


def child(url: str, digest: str, connections: str, target: str) -> None:
    """The measured process: fetch, commit, and say how much memory it took."""
    from dataclasses import replace

    from miyabi_llm import config, sources
    from miyabi_llm.refs import ModelRef
    from miyabi_llm.store import Store
    from miyabi_llm.types import silent

    settings = replace(config.load({"MIYABI_HOME": target, "HOME": target}), connections=int(connections))
    source = sources.open("https", settings)
    (file,) = source.list(ModelRef.parse(f"{url}#sha256={digest}")).files
    started = time.perf_counter()
    with Store(settings.store).part(digest, file.size) as part:
        source.fetch(file, part, silent)
        got = time.perf_counter()
        part.commit(file.sha256, file.size)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {"fetch": got - started, "commit": time.perf_counter() - got, "cpu": usage.ru_utime + usage.ru_stime}
    print(json.dumps({k: round(v, 2) for k, v in found.items()} | {"peak_mib": usage.ru_maxrss // 1024}))


if __name__ == "__main__":
    main()
