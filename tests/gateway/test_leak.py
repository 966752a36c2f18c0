"""Nothing confidential leaves: a sample of `benchmarks/leak.py`, in a network namespace where only loopback exists."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "leak.py"


def test_nothing_confidential_leaves() -> None:
    pytest.importorskip("faker")
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespaces here")
    command = [sys.executable, str(SCRIPT), "--requests", "200", "--lanes", "16"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "interfaces: lo\n" in ran.stdout
    assert "cloud: 0 connections, 0 requests, 0 bytes" in ran.stdout
    assert "control: 200 public requests, of which the cloud saw 200" in ran.stdout
