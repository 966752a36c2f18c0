"""Programs from the npm registry for tests: installed once beside the other test caches, by npm, without scripts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

NODE = "node@22.23.3"  # the suite and the Inspector want 22; this package brings the program


def installed(cache: Path, name: str, *packages: str) -> Path:
    """The folder whose `node_modules` has these packages; the test is skipped where npm cannot bring them."""
    folder = cache / "npm" / name
    mark = folder / "installed.json"
    if mark.exists() and json.loads(mark.read_text()) == list(packages):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on PATH: apt-get install npm, or https://nodejs.org")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), *packages],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode != 0:
        pytest.skip(f"npm cannot bring {', '.join(packages)}: {done.stderr[-300:]}")
    mark.write_text(json.dumps(list(packages)))
    return folder


def node(folder: Path) -> Path:
    """Node's program in such a folder."""
    return folder / "node_modules" / ".bin" / "node"


def path(folder: Path) -> str:
    """PATH with the folder's programs first."""
    return os.pathsep.join([str(folder / "node_modules" / ".bin"), os.environ["PATH"]])
