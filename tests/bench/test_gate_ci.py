"""The CI example of the documentation, run as the shell it is, against servers of known timing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tests.bench.wire import mock

pytestmark = pytest.mark.alone  # it measures time
FOLDER = Path(__file__).parent.parent.parent / "docs" / "how-to" / "bench-gate"
BIN = Path(sys.executable).parent
QUICK, SLOW = (
    ("--ttft", "0.006", "--itl", "0.001", "--tokens", "5"),
    ("--ttft", "0.03", "--itl", "0.005", "--tokens", "5"),
)
SILENT = ("--ttft", "0", "--itl", "0", "--tokens", "0")
RULES = {"TTFT": "ttft_p50 > +100%", "TPOT": "tpot_p50 > +100%"}


@pytest.fixture(scope="module")
def quick() -> Iterator[str]:
    with mock(*QUICK) as target:
        yield target.endpoint.base_url


@pytest.mark.skipif(sys.platform == "win32" or shutil.which("bash") is None, reason="the example is a bash script")
@pytest.mark.parametrize(
    ("new", "env", "code", "red", "skipped"),
    [
        (QUICK, {}, 0, 0, 0),
        (SLOW, {}, 5, 1, 0),
        (SLOW, {"BUDGET": "1", "STRICT": "1"}, 6, 0, 1),
        (SILENT, {}, 7, 1, 0),
    ],
    ids=["pass", "regression", "inconclusive", "invalid"],
)
def test_the_script(
    quick: str, tmp_path: Path, new: tuple[str, ...], env: dict[str, str], code: int, red: int, skipped: int
) -> None:
    homes = {f"MIYABI_{name}": str(tmp_path / name.lower()) for name in ("HOME", "CONFIG", "CACHE")}
    path = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    summary = tmp_path / "summary.md"
    with mock(*new) as target:
        urls = {"BASE_URL": quick, "NEW_URL": target.endpoint.base_url, "GITHUB_STEP_SUMMARY": str(summary)}
        done = subprocess.run(
            ["bash", str(FOLDER / "gate.sh")],
            env={**path, **homes, **urls, **RULES, "BUDGET": "30", **env},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == code, (done.stdout, done.stderr)
    suite = ElementTree.parse(tmp_path / "gate.xml").getroot()
    assert suite is not None
    counts = suite.attrib
    assert (int(counts["failures"]) + int(counts["errors"]) > 0) == bool(red), counts
    assert (int(counts["skipped"]) > 0) == bool(skipped), counts
    words = {0: "PASS", 5: "FAIL", 6: "INCONCLUSIVE", 7: "INVALID"}[6 if env else code]
    assert words in summary.read_text().splitlines()[0]
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 1
    assert ("::warning::" in done.stdout) == (words == "INCONCLUSIVE")


def test_the_action_runs_that_script() -> None:
    action = yaml.safe_load((FOLDER / "action.yml").read_text())
    (step,) = action["runs"]["steps"]
    assert action["runs"]["using"] == "composite"
    assert step["run"] == 'bash "$GITHUB_ACTION_PATH/gate.sh"'
    assert set(action["inputs"]) == {"base", "new", "workload", "budget"}
    for name, value in step["env"].items():
        assert value == f"${{{{ inputs.{name.removesuffix('_URL').lower()} }}}}"
