"""What serving imports before it starts a server: nothing that could be loaded while the server loads."""

from __future__ import annotations

import subprocess
import sys


def test_the_verb_is_light() -> None:
    script = "import sys, miyabi_llm.serve; print(*{'httpx', 'psutil', 'rich'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True).stdout
    assert out.strip() == ""
