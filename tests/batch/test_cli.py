"""The command `batch`, as a person types it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch.batches import call, read, request, text, write
from tests.batch.standin import Standin, right, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Standin]:
    with serving() as s:
        yield s


def test_bad_lines_are_named_and_nothing_is_sent(server: Standin, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [request("a", "never 1"), "{oops", request("a", "never 2")])
    done = call(source, tmp_path / "out.jsonl", server.url)
    assert done.returncode == 2
    assert "2 bad lines of 3; nothing was sent" in done.stderr
    assert "line 2: not JSON" in done.stderr
    assert "line 3: custom_id 'a' is already on line 1" in done.stderr
    assert "--skip-bad" in done.stderr
    done = call(source, tmp_path / "out.jsonl", server.url, "--json")
    assert [p["line"] for p in json.loads(done.stdout)["error"]["details"]["problems"]] == [2, 3]
    assert not (tmp_path / "out.jsonl").exists()
    assert not [p for p in server.memory.asked if p.startswith("never")]
    done = call(source, tmp_path / "out.jsonl", server.url, "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert "1 of 3 rows done, 2 skipped" in done.stdout
    assert list(read(tmp_path / "out.jsonl")) == ["a"]


def test_a_text_file_of_prompts(server: Standin, tmp_path: Path) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("first prompt\n\n二番目\n", "utf-8")
    options = ["m", "--system", "be brief", "--max-tokens", "9", "--temperature", "0", "--ordered"]
    done = call(source, tmp_path / "out.jsonl", server.url, *options)
    assert done.returncode == 0, done.stderr
    out = read(tmp_path / "out.jsonl")
    assert {n: text(r) for n, r in out.items()} == {"row-1": right("first prompt"), "row-3": right("二番目")}
    sent = next(b for b in server.memory.bodies if b["messages"][-1]["content"] == "first prompt")
    assert (sent["model"], sent["max_tokens"], sent["temperature"]) == ("m", 9, 0)
    assert sent["messages"][0] == {"role": "system", "content": "be brief"}


def test_failed_rows_set_the_exit_code(server: Standin, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "400:"}, {"prompt": "fine"}])
    done = call(source, tmp_path / "out.jsonl", server.url)
    assert done.returncode == 1
    assert "1 row failed" in done.stderr
    assert call(source, tmp_path / "out.jsonl", server.url, "--allow-errors", "1").returncode == 0


def test_a_summary_with_a_cost_only_by_given_prices(server: Standin, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "12345"}, {"prompt": "long"}])
    done = call(source, tmp_path / "out.jsonl", server.url, "--json", "--price-in", "1", "--price-out", "10")
    summary = json.loads(done.stdout)
    assert (summary["prompt_tokens"], summary["completion_tokens"], summary["cut"]) == (9, 6, 1)
    assert summary["cost"] == pytest.approx((9 + 60) / 1e6)
    assert json.loads(done.stderr.splitlines()[-1])["name"] == "rows"
    assert "cost:" not in call(source, tmp_path / "out.jsonl", server.url).stdout
    assert call(source, tmp_path / "out.jsonl", server.url, "--price-in", "1").returncode == 2


def test_a_schema_is_asked_for_and_held_against_the_answers(server: Standin, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "json:"}, {"prompt": "prose"}])
    schema = write(tmp_path / "schema.json", [{"type": "object", "required": ["n"]}])
    done = call(source, tmp_path / "out.jsonl", server.url, "--schema", str(schema))
    assert done.returncode == 1, done.stderr
    out = read(tmp_path / "out.jsonl")
    assert out["row-1"]["error"] is None
    assert out["row-2"]["error"]["code"] == "schema"
    asked = next(b for b in server.memory.bodies if b["messages"][-1]["content"] == "json:")
    assert asked["response_format"]["json_schema"]["schema"] == {"type": "object", "required": ["n"]}


def test_words_that_do_not_go_together(server: Standin, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "x"}])
    out = tmp_path / "out.jsonl"
    for more, words in [
        (["--endpoint", "x"], "--endpoint names a server that runs"),
        (["--to", "images"], "unknown kind of request"),
        (["--to", "embeddings", "--system", "x"], "a system text is for chat"),
        (["--ctx", "5"], "--url starts none"),
    ]:
        done = call(source, out, server.url, *more)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
