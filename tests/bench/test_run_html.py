"""The report in one page: whole, safe, without a number where none may be; and the view of a terminal."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from miyabi_llm.bench import html
from miyabi_llm.bench.cost import Cost
from miyabi_llm.bench.live import KEEP, Live, Trace
from miyabi_llm.bench.report import Asked, Machine, Questions, Report, Table
from miyabi_llm.bench.resources import Resources
from miyabi_llm.bench.slo import Kept, Trial
from miyabi_llm.bench.stats import Collector, metrics
from miyabi_llm.bench.study import Curve, First, KneeOf, Level, Search, Study, Used, blank
from miyabi_llm.bench.sweep import Knee
from miyabi_llm.bench.values import Load
from miyabi_llm.cli.bench_live import Board
from miyabi_llm.types import Event
from tests.bench.making import BEGIN, MS, S, lost, run, sample

EVIL = "<script>alert(1)</script>"


def level(label: str = "c=1", invalid: tuple[str, ...] = (), targets: tuple[str, ...] = ("日本", EVIL)) -> Level:
    collectors = [Collector([name], origin_ns=BEGIN) for name in targets]
    for c in collectors:
        for i in range(40):
            c(sample((100 + i, 130 + i, 150 + i), sent=20 * i, prompt_tokens=9))
        c(lost("http", target=0))
    measured = tuple(m for c in collectors for m in metrics(c, run(1.0)))
    aims = tuple(Asked(name, "http://127.0.0.1:1", "m", "", "openai-chat") for name in targets)
    health = run().health
    report = Report(
        "2026-11-22T00:00:00+00:00", 1.0, aims, Questions("chat", "0" * 64, 3), Load(int(label[2:])), health,
        Machine("Linux", "cpu", 2, 1 << 30), measured, invalid,
    )  # fmt: skip
    used = tuple(Used(n, Resources(1.0, 0.5, 1 << 30, 1 << 29, 3), costs=(Cost("x", 1, 2),)) for n in targets)
    curves = tuple(
        Curve(n, k, tuple((0.1 + i / 100, i / 10) for i in range(1, 10))) for n in targets for k in ("ttft", "itl")
    )
    over = tuple(Curve(n, "ttft", ((0.0, 0.1), (1.0, 0.2))) for n in targets)
    return Level(label, blank(report), used, curves if not invalid else (), over if not invalid else ())


def test_a_page_holds_all_of_it_and_nothing_of_it_is_markup() -> None:
    search = Search("日本", "streams", (Trial(1.0, (Kept("ttft_p95 < 1s", 0.95, 40, 40, 0.91, 1.0),)),), None)
    study = Study(
        EVIL, (level("c=1"), level("c=2")), (First("日本", 1.25, 0.4),), (KneeOf("日本", Knee(2, 10, "why")),),
        (search,), command=("miyabi-llm", "bench", "a b"),
    )  # fmt: skip
    page = html.page(study, [("Gate: PASS", Table(("rule",), (("x > 1",),), ("because",)))])
    assert "<script" not in page
    assert page.count("<svg") == 5  # beside each other, two distributions, over time, throughput against latency
    for words in ("日本", "ready after 1.2 s", "Knee of", "no load that was tried", "miyabi-llm bench &#x27;a b&#x27;"):
        assert words in page, words
    assert "Gate: PASS" in page
    assert "because" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert not re.findall(r"https?://(?!www\.w3\.org|127\.0\.0\.1)", page)
    assert "currentColor" in page  # the plots take the page's own colour, light or dark


def test_an_invalid_page_shows_reasons_and_no_result() -> None:
    page = html.page(Study("x", (level(invalid=("the client was late",)),)))
    assert "INVALID: these numbers must not be used" in page
    assert "the client was late" in page
    assert "<svg" not in page
    assert "TTFT p50" not in page


def test_one_target_at_one_load_is_compared_with_nothing() -> None:
    page = html.page(Study("x", (level(targets=("a",)),), incomplete=True))
    assert page.count("<svg") == 3
    assert "INCOMPLETE" in page


def test_what_is_said_while_it_runs() -> None:
    live = Live("t", "c=2")
    for i in range(10):
        live(sample((100, 200), sent=300 * i, tokens=4))
    live(lost())
    live(lost("cancelled"))
    seen = live.snapshot(BEGIN + 3 * S)
    assert (seen.done, seen.failed, seen.tokens, seen.ttft_p50) == (12, 1, 40, pytest.approx(0.1))
    assert seen.tokens_per_s == pytest.approx(40 / 3, rel=0.01)
    assert seen.words == "13.3 tokens/s, TTFT p50 100 ms so far, 1 failed"
    assert live.snapshot(BEGIN + 60 * S).tokens_per_s == 0


def test_a_trace_keeps_few_points_over_the_whole_time() -> None:
    trace = Trace()
    for i in range(3 * KEEP):
        trace(replace(sample((100,)), sent_ns=BEGIN + i * MS))
    points = trace.points(BEGIN)
    assert KEEP / 2 <= len(points) <= KEEP
    assert points[-1][0] > 2.9 * KEEP / 1000


def test_the_terminal_shows_each_target_and_load() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    board = Board(console)
    live = Live("日本", "c=2")
    live(sample())
    from miyabi_llm.types import plain

    board(Event("progress", "日本 c=2", "", 1, None, "requests", plain(live.snapshot(BEGIN + S))))
    board(Event("phase", "a[b]", "[/red] words of a server"))
    console.print(board.table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "日本" in text
    assert "100 ms" in text
    assert "a[b] [/red] words of a server" in text
