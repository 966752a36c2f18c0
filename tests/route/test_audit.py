"""The log: any tampering is found, a torn end is not, and a second writer is refused."""

import itertools
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from miyabi_llm.errors import Unsafe
from miyabi_llm.route.audit import Audit, AuditFailed, verify
from miyabi_llm.route.keys import secret
from miyabi_llm.route.taint import Taints
from miyabi_llm.route.values import Verdict

KEY = b"k" * 32
COUNTER = itertools.count()


def made(folder: Path, lines: int = 6) -> Path:
    path = folder / f"audit-{next(COUNTER)}.jsonl"
    log = Audit(path, KEY, lambda: 1_796_000_000.5)
    for n in range(lines):
        log.append({"kind": "decision", "target": "local", "verdict": "PUBLIC", "found": n})
    log.close()
    return path


def test_a_whole_log_verifies_and_goes_on(tmp_path: Path) -> None:
    path = made(tmp_path)
    assert verify(path, KEY).problems == ()
    log = Audit(path, KEY)
    assert log.append({"kind": "untaint"}) == 7
    log.close()
    assert verify(path, KEY).lines == 7
    assert verify(path, b"x" * 32).problems
    assert path.stat().st_mode & 0o077 == 0


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_change_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = made(tmp_path_factory.getbasetemp(), 4)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    how = data.draw(st.sampled_from(["flip", "drop byte", "insert", "drop line", "swap", "repeat", "cut", "cut lines"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    i, j = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    byte = bytes([data.draw(st.integers(0, 255))])
    changed = {
        "flip": whole[:at] + byte + whole[at + 1 :],
        "drop byte": whole[:at] + whole[at + 1 :],
        "insert": whole[:at] + byte + whole[at:],
        "drop line": b"".join(lines[:i] + lines[i + 1 :]),
        "swap": b"".join(lines[j] if n == i else lines[i] if n == j else line for n, line in enumerate(lines)),
        "repeat": b"".join([*lines[: i + 1], lines[i], *lines[i + 1 :]]),
        "cut": whole[:at],
        "cut lines": b"".join(lines[:i]),
    }[how]
    assume(changed != whole)
    path.write_bytes(changed)
    assert verify(path, KEY).problems, how


def test_the_head_file_is_watched_too(tmp_path: Path) -> None:
    path = made(tmp_path)
    head = path.with_name(path.name + ".head")
    good = head.read_bytes()
    for bad in (b"", good[:20], good.replace(b"000000000006", b"000000000002")):
        head.write_bytes(bad)
        assert verify(path, KEY).problems
    head.write_bytes(good)
    assert verify(path, KEY).whole


def test_a_line_cut_by_a_crash_is_taken_off(tmp_path: Path) -> None:
    path = made(tmp_path)
    with path.open("ab") as file:
        file.write(b'{"n":7,"at":1')
    assert verify(path, KEY).problems == ("the last line is cut (13 bytes)",)
    log = Audit(path, KEY)
    log.append({"kind": "decision"})
    log.close()
    assert verify(path, KEY).lines == 7
    assert verify(path, KEY).whole


def test_a_changed_log_is_not_written_on(tmp_path: Path) -> None:
    path = made(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"found":2', b'"found":9'))
    with pytest.raises(AuditFailed, match="line 3 was changed"):
        Audit(path, KEY)


def test_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = Audit(path, KEY)
    code = (
        "import sys; from pathlib import Path; from miyabi_llm.route.audit import Audit\n"
        "Audit(Path(sys.argv[1]), b'k' * 32)"
    )
    other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert "another gateway writes it" in other.stderr
    log.append({})


def test_a_full_disk_is_no_send(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from miyabi_llm.route.audit import Audit, AuditFailed\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "log = Audit(Path(sys.argv[1]), b'k' * 32)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "try:\n"
        "    for n in range(9): log.append({'n2': n})\n"
        "except AuditFailed as e: print('refused', n)\n"
    )
    path = tmp_path / "audit.jsonl"
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert out.stdout.startswith("refused"), out.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 300
    log = Audit(path, KEY)  # the torn line is taken off
    log.append({})
    assert verify(path, KEY).whole


def test_the_secret_is_made_once_and_refused_when_open(tmp_path: Path) -> None:
    path = tmp_path / "route" / "key"
    value = secret(path)
    assert secret(path) == value
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(Unsafe):
        secret(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(Unsafe):
        secret(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(OSError, match="link"):
        secret(link)


def test_taint_stays_over_restarts_and_only_grows(tmp_path: Path) -> None:
    path = tmp_path / "taint.db"
    taints = Taints(path, KEY)
    assert taints.of("s") is Verdict.PUBLIC
    taints.mark("s", Verdict.CONFIDENTIAL, [("my-number", b"x" * 32)])
    taints.mark("s", Verdict.INTERNAL)
    assert Taints(path, KEY).of("s") is Verdict.CONFIDENTIAL
    (kept,) = taints.all()
    assert kept.kinds == ("my-number",)
    files = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert b"x" * 32 not in files
    assert taints.untaint(kept.session)
    assert not taints.untaint("s")
    assert taints.of("s") is Verdict.PUBLIC


def test_a_taint_file_that_cannot_be_read_taints_everything(tmp_path: Path) -> None:
    taints = Taints(tmp_path / "taint.db", KEY)
    taints.close()
    with pytest.raises(sqlite3.ProgrammingError):
        taints._db.execute("select 1")
    assert taints.of("s") is Verdict.CONFIDENTIAL
