"""No row lost and none asked twice, after kills, power cuts, full disks and Ctrl-C."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miyabi_llm import batch
from miyabi_llm.batch import journal, reading, scan
from miyabi_llm.errors import BadUsage, MiyabiError
from tests.batch.batches import call, command, go, read, request, text, write
from tests.batch.standin import Memory, answer, right, serving

ROWS = 200
ENV = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def job(tmp_path: Path) -> batch.Job:
    write(tmp_path / "in.jsonl", [request(f"r{i}", f"hello {i}") for i in range(ROWS)])
    return batch.Job(tmp_path / "in.jsonl", tmp_path / "out.jsonl")


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def started(job: batch.Job, url: str, until: int, *more: str) -> subprocess.Popen[str]:
    """The command, at work on the output and with `until` lines of it written."""
    process = subprocess.Popen(
        command(job.source, job.target, url, *more), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 30
    while lines(job.target) < until:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it does not get on"
        time.sleep(0.002)
    return process


def all_right(job: batch.Job) -> None:
    out = read(job.target)
    assert {n: text(r) for n, r in out.items()} == {f"r{i}": right(f"hello {i}") for i in range(ROWS)}


def test_killed_twice_midway_all_rows_are_there_once(job: batch.Job) -> None:
    memory = Memory(delay=0.01)
    with serving(memory) as server:
        for least, most in ((5, 80), (90, 160)):
            process = started(job, server.url, random.randint(least, most))
            time.sleep(random.random() * 0.03)
            process.kill()
            process.communicate()
            finished = [json.loads(x)["custom_id"] for x in job.target.read_bytes().splitlines(keepends=True)[:-1]]
            before = {name: memory.asked[f"hello {name[1:]}"] for name in finished}
            assert finished
        done = call(job.source, job.target, server.url, "--json")
        assert done.returncode == 0, done.stderr
        assert {name: memory.asked[f"hello {name[1:]}"] for name in finished} == before  # none was asked again
    summary = json.loads(done.stdout)
    assert (summary["total"], summary["done"], summary["failed"], summary["left"]) == (ROWS, ROWS, 0, 0)
    assert summary["resumed"] >= 90
    assert summary["completion_tokens"] == 3 * ROWS
    all_right(job)


def test_ctrl_c_says_how_to_go_on(job: batch.Job) -> None:
    with serving(Memory(delay=0.02)) as server:
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            process = started(job, server.url, lines(job.target) + 10)
            process.send_signal(number)
            _, err = process.communicate(timeout=20)
            assert process.returncode == code, err
            assert "rows left; the same command goes on from here" in err
            read(job.target)
        assert call(job.source, job.target, server.url).returncode == 0
        assert server.memory.asked.total() == ROWS
    all_right(job)


def test_a_full_disk_keeps_what_is_finished(job: batch.Job) -> None:
    with serving() as server:
        limited = ["bash", "-c", 'ulimit -f 16; exec "$@"', "-", *command(job.source, job.target, server.url)]
        done = subprocess.run(limited, capture_output=True, text=True, timeout=60, env=ENV)
        assert done.returncode == 4, done.stderr
        assert "File too large" in done.stderr
        assert "run the same command again" in done.stderr
        kept = read(job.target)
        assert 0 < len(kept) < ROWS
        done = call(job.source, job.target, server.url, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["resumed"] == len(kept)
    all_right(job)


def test_a_second_command_is_kept_out(job: batch.Job) -> None:
    with serving() as server, batch.opened(job):
        done = call(job.source, job.target, server.url)
    assert done.returncode == 1
    assert "is being written by another command" in done.stderr
    assert not server.memory.asked


def test_a_finished_batch_asks_nobody(job: batch.Job) -> None:
    with serving() as server:
        go(job, server)
        url = server.url
    done = call(job.source, job.target, url)
    assert (done.returncode, done.stdout.splitlines()[0].split(":")[0]) == (
        0,
        "200 of 200 rows done, 200 from earlier runs",
    )
    assert sorted(p.name for p in job.target.parent.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.state.json"]


def test_ordered_is_the_order_of_the_input(job: batch.Job) -> None:
    rows = [request(f"r{i}", "flaky:" if i % 7 == 0 else f"hello {i}") for i in range(40)]
    write(job.source, rows)
    with serving() as server:
        go(job, server)
        assert list(read(job.target)) != [r["custom_id"] for r in rows]
        size = job.target.stat().st_size
        go(replace(job, ordered=True), server)
        assert server.memory.answered.total() == 40
    assert list(read(job.target)) == [r["custom_id"] for r in rows]
    assert job.target.stat().st_size == size


def test_another_input_or_other_options_are_refused(job: batch.Job) -> None:
    with serving() as server:
        go(job, server)
        old = job.target.read_bytes()
        with pytest.raises(BadUsage, match="other options"):
            go(replace(job, shape=batch.Shape(system="x")), server)
        write(job.source, [request("a", "new")])
        with pytest.raises(BadUsage, match="another input") as e:
            go(job, server)
        assert "--restart" in str(e.value.hint)
        assert job.target.read_bytes() == old
        assert go(replace(job, resume=False), server).done == 1
    assert list(read(job.target)) == ["a"]


def test_a_run_without_an_answer_binds_nobody(job: batch.Job) -> None:
    with batch.opened(job):
        pass
    write(job.source, [request("a", "new")])
    with serving() as server:
        assert go(replace(job, shape=batch.Shape(max_tokens=3)), server, model="x").done == 1


def test_a_file_that_is_no_output_is_left_alone(job: batch.Job) -> None:
    job.target.write_text("my diary\n")
    with pytest.raises(BadUsage, match="is no output of a batch"), batch.opened(job):
        pass
    assert job.target.read_text() == "my diary\n"
    with pytest.raises(BadUsage, match="cannot be the output"), batch.opened(replace(job, target=job.source)):
        pass


def test_a_damaged_state_is_refused(job: batch.Job) -> None:
    with batch.opened(job):
        pass
    state = job.target.with_name("out.jsonl.state.json")
    for content in ("", "[]", "{}", '{"version": 1, "what": 2}', '{"version": 99}'):
        state.write_text(content)
        with pytest.raises(BadUsage, match=r"state|version"), batch.opened(job):
            pass


def test_failed_rows_are_asked_again_on_request(job: batch.Job) -> None:
    write(job.source, [request(f"r{i}", p) for i, p in enumerate(["flaky:", "a", "400:", "b"])])
    with serving() as server:
        once = go(job, server, batch.Limits(tries=1))
        assert (once.done, once.failed) == (2, 2)
        assert go(job, server).failed == 2
        assert server.memory.asked.total() == 4
        again = go(replace(job, retry_failed=True), server)
    assert (again.done, again.failed, again.resumed) == (3, 1, 2)
    assert len(read(job.target)) == 4


def output(names: list[str]) -> bytes:
    body = answer("x", "/v1/completions")
    rows = [
        {"id": "1", "custom_id": n, "response": {"status_code": 200, "request_id": "", "body": body}, "error": None}
        for n in names
    ]
    return b"".join(journal.encode(r) for r in rows)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_power_cut_leaves_is_mended(tmp_path: Path, data: st.DataObject) -> None:
    """Cut at any byte, and with any stretch of it turned to zeros: what stays are whole rows, each once."""
    names = [f"r{i}" for i in range(6)]
    whole = output(names)
    cut = data.draw(st.integers(0, len(whole)))
    hole = data.draw(st.integers(0, cut))
    length = data.draw(st.sampled_from([0, 0, 1, 30, 400]))
    left = bytearray(whole[:cut])
    left[hole : hole + length] = bytes(min(length, cut - hole))
    target = tmp_path / "out.jsonl"
    target.write_bytes(left)
    ids = {reading.digest(n): i for i, n in enumerate(names)}
    found = scan.scan(target, ids)
    journal.mend(target, found)
    rows = read(target)
    assert {reading.digest(n) for n in rows} == found.finished
    if not length:
        ends = [n for i, n in enumerate(names) if len(output(names[: i + 1])) - 1 <= cut]
        assert list(rows) == ends
    again = scan.scan(target, ids)
    assert (again.drop, again.torn, again.open_end, again.finished) == ([], None, False, found.finished)


def test_a_row_that_is_there_twice_stays_once(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_bytes(output(["a", "b", "a", "c"]).rstrip(b"\n"))
    ids = {reading.digest(n): 1 for n in "abc"}
    journal.mend(target, scan.scan(target, ids))
    assert list(read(target)) == ["a", "b", "c"]


def test_a_row_of_somebody_else_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_bytes(output(["a", "x"]))
    with pytest.raises(BadUsage, match="line 2: 'x' is in no line of the input"):
        scan.scan(target, {reading.digest("a"): 1})


def test_damage_in_the_middle_is_told_and_asked_again(job: batch.Job) -> None:
    write(job.source, [request(n, n) for n in "abcd"])
    with serving() as server:
        go(job, server)
        kept = job.target.read_bytes().splitlines(keepends=True)
        job.target.write_bytes(kept[0] + b"\0" * 40 + b"\n" + b"".join(kept[2:]))
        events: list[str] = []
        done = go(job, server, on_event=lambda e: events.append(e.message) if e.name == "damaged" else None)
    assert (done.done, done.resumed) == (4, 3)
    assert len(events) == 1
    assert "line 2: dropped" in events[0]
    assert len(read(job.target)) == 4


def test_a_folder_that_cannot_be_written_is_named(job: batch.Job) -> None:
    with pytest.raises(BadUsage, match="is no folder"), batch.opened(replace(job, target=job.source / "x")):
        pass
    with pytest.raises((BadUsage, MiyabiError)), batch.opened(replace(job, target=job.source.parent)):
        pass
