"""The command `bench`, as a person or a script types it: exit codes, files, targets, and its end by a signal."""

from __future__ import annotations

import csv
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm.cli import bench_parse, execute
from miyabi_llm.cli.bench_targets import Wish, wishes
from miyabi_llm.cli.default import json_files
from miyabi_llm.errors import BadUsage
from miyabi_llm.store import Store
from miyabi_llm.types import Artifact
from tests.bench.failing import failing
from tests.bench.wire import mock

QUICK = ("--ttft", "0.03", "--itl", "0.005", "--tokens", "4")  # slow enough for a busy machine to keep up
Said = tuple[int, str, str]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with mock(*QUICK) as target:
        yield target.endpoint.base_url


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command: (exit code, stdout, stderr); again when a busy machine kept our client from its work."""

    def go(*argv: str) -> Said:
        for _ in range(6):
            rc = execute(["bench", *argv])
            out, err = capsys.readouterr()
            disturbed = rc == 7 and re.search(
                r"were achieved|were sent|late at|late at the median|of a core", err + out
            )
            if not disturbed or "failed (" in err:
                break
        return rc, out, err

    return go


# --- what the words mean


def test_the_words_that_name_no_command_are_for_run(say: Callable[..., Said], url: str) -> None:
    for words in ((f"m={url}",), ("run", f"m={url}"), ("--url", f"m={url}")):
        rc, out, _ = say(*words, "-n", "6", "--warm-up", "0")
        assert rc == 0
        assert re.search(r"c=1 +m +6 ", out), out
    rc, out, _ = say("--help")
    assert rc == 0
    assert "--concurrency" in out
    assert "ab " in out


def test_json_is_a_flag_or_a_file() -> None:
    assert json_files(["m", "--json", "f.json"]) == ["m", "--json-file", "f.json"]
    assert json_files(["--json", "m"]) == ["--json", "m"]
    assert json_files(["--json=x"]) == ["--json-file", "x"]
    assert json_files(["--", "--json", "f.json"]) == ["--", "--json", "f.json"]


def test_targets_have_names() -> None:
    found = wishes(["a=qwen:1b", "http://h:1/v1", "https://h/x.gguf", "日本=http://h:2"], ["b=http://h:3"], ["srv"], [])
    assert found == (
        Wish("a", "qwen:1b"),
        Wish("h:1", url="http://h:1/v1"),
        Wish("https://h/x.gguf", "https://h/x.gguf"),
        Wish("日本", url="http://h:2"),
        Wish("b", url="http://h:3"),
        Wish("srv", endpoint="srv"),
    )
    assert wishes([], [], [], []) == (Wish("model", ""),)
    twice = wishes(["q", "q"], [], [], ["x", "y"])
    assert [(w.name, w.backend) for w in twice] == [("q (x)", "x"), ("q (y)", "y")]
    assert [w.name for w in wishes(["q", "q"], [], [], [])] == ["q", "q'"]
    with pytest.raises(BadUsage, match="called a"):
        wishes(["a=x", "a=y"], [], [], [])
    with pytest.raises(BadUsage, match="3 backends for 2"):
        wishes(["x", "y"], [], [], ["1", "2", "3"])


def test_loads_of_a_command_line() -> None:
    sending = bench_parse.Sending()
    plan = bench_parse.plan(bench_parse.Words("1,4"), sending)
    assert [(x.concurrency, x.duration_s, x.requests) for x in plan.loads] == [(1, 30.0, None), (4, 30.0, None)]
    (load,) = bench_parse.plan(bench_parse.Words(rate="0.5", requests=9), sending).loads
    assert (load.rate, load.concurrency, load.duration_s, load.requests) == (0.5, None, None, 9)
    searched = bench_parse.plan(bench_parse.Words(slo="ttft_p95<500ms", rate="2"), sending)
    assert (searched.start, searched.searching) == (2.0, True)
    assert bench_parse.goals("ttft<500ms,tpot<50ms") == {"ttft": 0.5, "tpot": 0.05}


@pytest.mark.parametrize(
    "words",
    [
        ["--concurrency", "0"],
        ["--concurrency", "1.5"],
        ["--concurrency", "x"],
        ["--concurrency", "2,2"],
        ["--concurrency", "1", "--rate", "1"],
        ["--sweep", "--rate", "1"],
        ["--slo", "ttft"],
        ["--slo", "ttft_p95<1s", "--concurrency", "2"],
        ["--arrival", "never"],
        ["--price-in", "1"],
        ["--compat", "x"],
        ["--speech", "x"],
        ["--workload", "nothing"],
        ["--fail-on", "ttft_p50 > +10%"],
        ["--junit", "f.xml"],
        ["--concurrency", "1,2", "--fail-on", "ttft_p50 > 1s"],
        ["--sweep", "--save-baseline", "b.json"],
        ["--prices", "nowhere.toml"],
        ["--goodput", "x"],
    ],
)
def test_what_makes_no_sense_is_refused(say: Callable[..., Said], words: list[str]) -> None:
    rc, out, err = say("http://127.0.0.1:9#m", *words)
    assert (rc, out) == (2, "")
    assert "miyabi-llm:" in err


# --- results


def test_every_file_holds_what_was_measured(say: Callable[..., Said], url: str, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"r.{kind}" for kind in ("json", "csv", "html", "jsonl")}
    options = [str(x) for k in ("json", "csv", "html") for x in (f"--{k}", files[k])]
    rc, out, err = say(
        f"一号={url}", f"b={url}", "-c", "2,4", "-n", "12", *options, "--samples", str(files["jsonl"]),
        "--compat", "vllm", "--price-in", "1", "--price-out", "2", "--name", "比較 <b>",
    )  # fmt: skip
    assert rc == 0, err
    assert len(re.findall(r"c=[24] +(一号|b) +12 ", out)) == 4
    assert "your price" in out
    study = json.loads(files["json"].read_text())
    assert [level["label"] for level in study["levels"]] == ["c=2", "c=4"]
    first = study["levels"][0]
    assert [t["name"] for t in first["report"]["targets"]] == ["一号", "b"]
    assert first["vllm"]["b"]["median_ttft_ms"] > 30
    rows = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert {row["load"] for row in rows} == {"c=2", "c=4"}
    assert all(float(row["p50"]) > 0 for row in rows if row["metric"] == "ttft")
    page = files["html"].read_text()
    assert "比較 &lt;b&gt;" in page
    assert page.count("<svg") == 5
    assert "一号" in page
    assert not re.search(r"(src|href)=.?https?:", page.replace("http://www.w3.org", ""))  # nothing from elsewhere
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert len(files["jsonl"].read_text().splitlines()) == 12


def test_one_json_document_on_standard_output(say: Callable[..., Said], url: str) -> None:
    rc, out, _ = say(f"m={url}", "-n", "8", "--fail-on", "ttft_p50 > 1us", "--json")
    assert rc == 5
    found = json.loads(out)
    assert found["judgement"]["outcome"] == "fail"
    assert found["firsts"][0]["target"] == "m"


def test_a_failing_server_prints_no_number_and_exits_with_7(say: Callable[..., Said], tmp_path: Path) -> None:
    with failing(lambda n: "500" if n % 3 == 1 else "ok") as server:
        rc, out, err = say(
            f"m={server.url}", "-n", "30", "--html", str(tmp_path / "r.html"), "--json", str(tmp_path / "r.json")
        )
    assert rc == 7
    assert "tok/s" not in out
    assert "INVALID" in err
    assert re.search(r"1\d of 30 requests failed \(1\d http\)", err)
    assert "INVALID" in (tmp_path / "r.html").read_text()
    (measured,) = json.loads((tmp_path / "r.json").read_text())["levels"][0]["report"]["measured"]
    assert measured["metrics"] == []


def test_nobody_there_is_said_at_once(say: Callable[..., Said]) -> None:
    begin = time.monotonic()
    rc, _, err = say("m=http://127.0.0.1:9#model")
    assert rc == 7
    assert "no answer to the first request: m: connect" in err
    assert time.monotonic() - begin < 10


def test_a_gate_a_baseline_and_a_history(say: Callable[..., Said], url: str, tmp_path: Path) -> None:
    base, junit, summary, history = (str(tmp_path / n) for n in ("b.json", "j.xml", "s.md", "h.jsonl"))
    rc, _, err = say(f"m={url}", "-n", "20", "--save-baseline", base)
    assert (rc, "calibrate" in err) == (0, True)
    told = ("--junit", junit, "--markdown", summary, "--history", history, "--label", "v1")
    rc, out, _ = say(f"m={url}", "-n", "20", "--baseline", base, "--fail-on", "ttft_p50 < -95%", *told)
    assert rc == 2  # turned around
    rc, out, _ = say(f"m={url}", "-n", "20", "--baseline", base, "--fail-on", "ttft_p50 > +900%", *told)
    assert (rc, "PASS: m against baseline" in out) == (0, True)
    assert 'failures="0"' in Path(junit).read_text()
    assert "PASS" in Path(summary).read_text()
    rc, out, _ = say("history", history, "--plot", str(tmp_path / "h.svg"))
    assert (rc, "v1" in out) == (0, True)
    assert (tmp_path / "h.svg").read_text().startswith("<svg")


def test_a_b_and_a_slower_one(say: Callable[..., Said], url: str, tmp_path: Path) -> None:
    with mock("--ttft", "0.09", "--itl", "0.005", "--tokens", "4") as slow:
        b = f"b={slow.endpoint.base_url}"
        rc, out, _ = say("ab", f"a={url}", b, "--pairs", "2", "--json", str(tmp_path / "j.json"))
    assert rc == 5
    assert "FAIL: b against a" in out
    assert json.loads((tmp_path / "j.json").read_text())["outcome"] == "fail"
    assert say("ab", f"a={url}")[0] == 2


def test_calibrated_noise_is_remembered(say: Callable[..., Said], url: str, tmp_path: Path) -> None:
    rc, out, _ = say("calibrate", f"m={url}", "--rounds", "10", "--pairs", "1")
    assert rc == 0
    assert "ttft_p50" in out
    rc, _, err = say(f"m={url}", "-n", "10", "--save-baseline", str(tmp_path / "b.json"))
    assert (rc, "is not known" in err) == (0, False)
    assert json.loads((tmp_path / "b.json").read_text())["noise"]["ttft_p50"] > 0


def test_interrupted_it_ends_with_what_there_is(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "miyabi_llm", "bench", f"m={url}", "--duration", "60", "--json", "r.json"]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(4)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=20)
    assert child.returncode == 130, err
    assert "INCOMPLETE" in err
    assert re.search(r"c=1 +m +\d+ ", out)
    study: dict[str, Any] = json.loads((tmp_path / "r.json").read_text())
    assert study["incomplete"] is True
    assert study["levels"][0]["report"]["measured"][0]["counts"]["failed"] == 0


def test_a_model_is_started_measured_and_stopped(
    say: Callable[..., Said],
    real_server: Path,
    real_store: Store,
    real_artifact: Artifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real llama-server with the small real model: a base model, so it is asked for completions."""
    monkeypatch.setenv("MIYABI_HOME", str(real_store.root.parent))
    words = ("-n", "3", "--max-tokens", "8", "--threads", "1", "--ctx", "2048", "--workload", "batch", "--json")
    rc, out, err = say("gemma3:270m", *words)
    study = json.loads(out)
    assert rc == 0, (err, study)
    (first,) = study["firsts"]
    assert first["load_s"] > 0
    (level,) = study["levels"]
    (asked,) = level["report"]["targets"]
    assert (asked["backend"], asked["speech"]) == ("llama-cpp", "openai-completions")
    assert level["report"]["measured"][0]["counts"]["provenance"] == {"server timings": 3}
    assert level["used"][0]["resources"]["memory_peak"] > 100 << 20
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(asked["url"].rpartition(":")[2])), timeout=5)
