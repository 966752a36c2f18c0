"""Quality from question to verdict: against a server that knows the answers, and against a real small model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from miyabi_llm.bench.quality import BUILT_IN, How, Report, Subject, load_tasks, measure, read_report, write_report
from miyabi_llm.bench.quality.harness import can_score, judge_probe
from miyabi_llm.bench.values import Speech, Target
from miyabi_llm.errors import BadUsage, NetworkError
from miyabi_llm.store import Store
from miyabi_llm.types import Artifact, Endpoint
from tests.bench.quizd import Quiz, serving

# `bench quality`, whether or not the group has it already
RUN = (
    "import sys; from miyabi_llm.cli import execute; from miyabi_llm.cli.app import COMMANDS; "
    "COMMANDS['quality'] = ('bench_quality', ''); sys.exit(execute(['quality', *sys.argv[1:]]))"
)


@pytest.fixture
def quiz() -> Iterator[Quiz]:
    with serving() as server:
        yield server


def ask(quiz: Quiz, how: How, speech: Speech = "openai-chat") -> Report:
    return measure(Subject(Target("quiz", quiz.endpoint, speech)), load_tasks(BUILT_IN), how)


def run(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | (env or {}))


@pytest.mark.parametrize("speech", ["openai-chat", "openai-completions"])
def test_every_item_is_asked_deterministically_and_graded(quiz: Quiz, speech: Speech) -> None:
    quiz.wrong = {"json-person", "ja-teiki"}
    found = ask(quiz, How(twice=12, concurrency=4), speech)
    assert (found.total.n, found.total.right, found.invalid) == (122, 120, ())
    assert [i.id for i in found.items if not i.right] == ["json-person", "ja-teiki"]
    assert found.drift is not None
    assert (found.drift.asked, found.drift.same) == (12, 12)
    assert len(quiz.asked) == 122 + 12
    assert all((a["temperature"], a["seed"]) == (0, 1) and "cache_prompt" not in a for a in quiz.asked)
    if speech == "openai-completions":
        assert all(a["prompt"].endswith("\n\nAnswer:") and a["stop"] == ["\n\n"] for a in quiz.asked)


def test_answers_that_wander_are_seen(quiz: Quiz) -> None:
    quiz.wander = True
    found = ask(quiz, How(limit=3, twice=4))
    assert found.drift is not None
    assert (found.drift.asked, found.drift.same) == (4, 0)


def test_items_that_do_not_run_make_it_invalid_and_are_no_wrong_answers(quiz: Quiz) -> None:
    quiz.broken = {"json-person"}
    found = ask(quiz, How(twice=0, concurrency=4))
    assert (found.total.n, found.total.right) == (121, 121)
    assert found.invalid == ('1 of 122 items did not run: http: 500: {"error": {"message": "broken on purpose"}}',)


def test_nobody_there() -> None:
    nobody = Endpoint("http://127.0.0.1:9", "m", backend="other")
    found = measure(Subject(Target("n", nobody)), load_tasks(["json"]), How(limit=2))
    assert found.invalid[0].startswith("2 of 2 items did not run: connect")


def test_a_report_survives_the_disk_and_damage_is_refused(quiz: Quiz, tmp_path: Path) -> None:
    found, path = ask(quiz, How(limit=2, twice=2)), tmp_path / "r.json"
    write_report(found, path)
    assert read_report(path) == found
    body = json.loads(path.read_text())
    for damage in ({"schema": 9}, {"items": [{}]}, {"how": None}, {"seconds": "x"}, {"items": body["items"][:1] * 2}):
        path.write_text(json.dumps(body | damage))
        with pytest.raises(BadUsage):
            read_report(path)


def test_the_command_and_its_exit_codes(quiz: Quiz, tmp_path: Path) -> None:
    stored, url = str(tmp_path / "a.json"), quiz.endpoint.base_url
    quick = ["--url", url, "--twice", "0", "-c", "8"]
    assert run(*quick, "--json-file", stored).returncode == 0
    same = run(*quick, "--baseline", stored)
    assert (same.returncode, "PASS" in same.stdout) == (0, True), same.stderr
    few = run(*quick, "--baseline", stored, "--limit", "2", "--json")
    assert (few.returncode, json.loads(few.stdout)["comparison"]["outcome"]) == (6, "inconclusive")
    quiz.wrong = {q.id for s in load_tasks(BUILT_IN) for q in s.questions[::3]}
    worse = run(*quick, "--baseline", stored)
    assert (worse.returncode, "FAIL" in worse.stdout) == (5, True)
    quiz.broken = {"ja-teiki"}
    broken = run(*quick, "--json")
    assert (broken.returncode, json.loads(broken.stdout)["error"]["code"]) == (7, "invalid-measurement")
    assert run(*quick, "--tasks", "nothing").returncode == 2


def test_two_servers_in_one_command(quiz: Quiz) -> None:
    with serving() as other:
        other.wrong = {q.id for s in load_tasks(BUILT_IN) for q in s.questions[::2]}
        words = ["--url", f"good={quiz.endpoint.base_url}", "--url", f"bad={other.endpoint.base_url}"]
        done = run(*words, "--twice", "0", "-c", "8", "--json")
    body = json.loads(done.stdout)
    assert (done.returncode, body["comparison"]["a"], body["comparison"]["b"]) == (5, "good", "bad")
    assert [r["name"] for r in body["reports"]] == ["good", "bad"]


def test_a_server_without_prompt_log_probabilities_is_known(quiz: Quiz) -> None:
    target = Target("quiz", quiz.endpoint, "openai-completions")
    assert can_score(target) == "it leaves out the prompt although asked to `echo` it"
    quiz.echo = True
    assert can_score(target) == ""
    with pytest.raises(NetworkError):
        can_score(Target("n", Endpoint("http://127.0.0.1:9", "m")))


@pytest.mark.parametrize("said", [None, {}, {"choices": [{}]}, {"choices": [{"text": "one two three four x"}]}])
def test_any_answer_to_the_probe_is_judged(said: object) -> None:
    assert judge_probe(said)


def test_without_the_harness_the_command_says_how_to_get_it(quiz: Quiz) -> None:
    done = run("--url", quiz.endpoint.base_url, "--lm-eval", "gsm8k", env={"PATH": "/nowhere"})
    assert done.returncode == 3
    assert 'pip install "lm_eval[api]"' in done.stderr


def test_a_real_base_model_is_asked_by_completions(
    real_server: Path, real_store: Store, real_artifact: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "store").symlink_to(real_store.root)
    path = os.pathsep.join([str(real_server.parent), os.environ["PATH"]])
    words = [str(real_artifact.ref), "--backend", "llama-cpp", "--tasks", "japanese", "--limit", "2", "--twice", "1"]
    done = run(
        *words, "--ctx", "1024", "--threads", "1", "--max-tokens", "6", "--json",
        env={"MIYABI_HOME": str(tmp_path / "home"), "PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    assert (report["speech"], report["total"]["n"], report["model_sha256"]) == (
        "openai-completions", 2, real_artifact.files[0].sha256,
    )  # fmt: skip
    assert report["drift"]["same"] == report["drift"]["asked"] == 1


@pytest.mark.slow
def test_the_real_coder_model_is_above_chance(real_server: Path, real_store: Store, tmp_path: Path) -> None:
    from miyabi_llm.pull import pull
    from miyabi_llm.refs import ModelRef
    from tests.conftest import USER

    artifact = pull(ModelRef.parse("qwen2.5-coder:1.5b"), real_store, USER)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "store").symlink_to(real_store.root)
    path = os.pathsep.join([str(real_server.parent), os.environ["PATH"]])
    env = os.environ | {"MIYABI_HOME": str(tmp_path / "home"), "PATH": path}
    words = [str(artifact.ref), "--backend", "llama-cpp", "--twice", "6", "--json"]
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, timeout=3600, env=env)
    assert done.returncode == 0, done.stderr
    shares = {s["task"]: s["share"] for s in json.loads(done.stdout)["report"]["scores"]}
    assert shares["json"] > 0.3
    assert shares["japanese"] > 0.3
