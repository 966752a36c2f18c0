"""The protocol's own conformance suite: all of both required sets, asked of the fixture on our factory and transport.

Most scenarios call tools of the suite's own naming, so the product's server is asked only those that need none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import npm
from tests.mcp.pipe import PATIENCE_S, ROOT
from tests.mcp.test_http import free_port, serving, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SUITES = {
    "0.1.16": "@modelcontextprotocol/conformance@0.1.16",
    "alpha": "@modelcontextprotocol/conformance@0.2.0-alpha.12",
}
PRODUCT = {
    "alpha": (
        ("2026-07-28", "server-stateless"),
        ("2026-07-28", "tools-list"),
        ("2026-07-28", "caching"),
        ("2026-07-28", "http-header-validation"),
        ("2026-07-28", "server-sse-multiple-streams"),
        ("2026-07-28", "dns-rebinding-protection"),
        ("2026-07-28", "input-required-result-unsupported-methods"),
        ("2025-11-25", "server-initialize"),
        ("2025-11-25", "server-session-lifecycle"),
        ("2025-11-25", "ping"),
        ("2025-11-25", "tools-list"),
        ("2025-11-25", "dns-rebinding-protection"),
        ("2025-11-25", "server-sse-multiple-streams"),
    ),
    "0.1.16": tuple(
        ("", name)
        for name in (
            "server-initialize",
            "ping",
            "tools-list",
            "dns-rebinding-protection",
            "server-sse-multiple-streams",
        )
    ),
}


@dataclass(frozen=True, slots=True)
class Suite:
    """One version of the suite."""

    folder: Path
    work: Path

    def run(self, url: str, *options: str) -> tuple[int, str, list[dict[str, str]]]:
        """Exit code, what it printed, and every check it made."""
        out = self.work / "-".join(o.strip("-") for o in options)
        program = self.folder / "node_modules/@modelcontextprotocol/conformance/dist/index.js"
        argv = [str(npm.node(self.folder)), str(program), "server", "--url", url, "-o", str(out), *options]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600, env=os.environ)
        checks = [c for file in sorted(out.rglob("checks.json")) for c in json.loads(file.read_text())]
        return done.returncode, done.stdout + done.stderr, checks


@pytest.fixture(params=SUITES)
def suite(request: pytest.FixtureRequest, test_cache: Path, tmp_path: Path) -> Suite:
    name = str(request.param)
    return Suite(npm.installed(test_cache, f"conformance-{name}", npm.NODE, SUITES[name]), tmp_path)


@contextmanager
def everything() -> Iterator[str]:
    """The fixture on a port of its own."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.mcp.everything", str(port)], cwd=ROOT)
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def bad(checks: Sequence[dict[str, str]], *kinds: str) -> list[str]:
    return [f"{c['id']}: {c.get('errorMessage', '')}" for c in checks if c["status"] in (kinds or ("FAILURE",))]


def count(checks: Sequence[dict[str, str]]) -> int:
    return sum(c["status"] == "SUCCESS" for c in checks)


def test_all_that_is_required(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    revisions = ["2025-11-25", "2026-07-28"] if "alpha" in suite.folder.name else [""]
    with everything() as url:
        for revision in revisions:
            options = ["--requirements", revision] if revision else ["--suite", "all"]
            code, said, checks = suite.run(url, *options)
            with capsys.disabled():
                total = [line for line in said.splitlines() if line.startswith(("Total:", "Not scored"))]
                print(f"\n{suite.folder.name} {revision}: {count(checks)} checks passed; {'; '.join(total)}")
            assert code == 0, said[-4000:]
            assert not [c for c in bad(checks) if "sep-2663" not in c and "tasks" not in c]  # an extension, not scored
            assert count(checks) >= (40 if not revision else 80)


def test_the_product(suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What needs no tool of the suite's own; the checks of `server-stateless` that do are told, and passed over."""
    name = "alpha" if "alpha" in suite.folder.name else "0.1.16"
    with serving(tmp_path) as url:
        for revision, scenario in PRODUCT[name]:
            options = ["--scenario", scenario, *(["--spec-version", revision] if revision else [])]
            _, said, checks = suite.run(url, *options)
            assert checks, said
            own = bad(checks, "FAILURE", "WARNING")
            failed = [c for c in own if "'test_" not in c]  # those that name a tool of the suite's own
            assert not failed, (scenario, revision)
            with capsys.disabled():
                print(f"\n{name} {revision} {scenario}: {count(checks)} passed, {len(own)} want the suite's tools")
