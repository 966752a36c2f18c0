"""What the real `anthropic` package makes of each fault of Claude, through the gateway with nobody to stand in.

By itself it takes a stream whose connection breaks for a whole one: no exception, half the text, no stop reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import anthropic
import pytest

from tests import clauded
from tests.gateway.house import policy, running

GONE = "http://127.0.0.1:1"
FAULTS: dict[str, tuple[type[Exception], int]] = {
    "429": (anthropic.RateLimitError, 429),
    "spend": (anthropic.RateLimitError, 429),
    "529": (anthropic.InternalServerError, 529),
    "500": (anthropic.InternalServerError, 500),
    "400": (anthropic.BadRequestError, 400),
    "drop": (anthropic.InternalServerError, 502),
    "error-200": (anthropic.InternalServerError, 529),
    "error-first": (anthropic.InternalServerError, 529),
    "half-json": (anthropic.InternalServerError, 502),
}


@pytest.fixture(autouse=True)
def _nobody_elses_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("ANTHROPIC_")]:
        monkeypatch.delenv(name)


def ask(client: anthropic.Anthropic) -> Iterator[str]:
    """The words of a streamed answer."""
    said = [{"role": "user", "content": "Hello"}]
    with client.messages.stream(model="claude-sonnet-5-5", max_tokens=64, messages=said) as stream:
        yield from stream.text_stream
        assert stream.get_final_message().stop_reason == "end_turn"


@contextmanager
def through(text: str) -> Iterator[anthropic.Anthropic]:
    """A client of a gateway with this policy."""
    with (
        running(text) as house,
        anthropic.Anthropic(base_url=house.url, api_key="none", max_retries=0, timeout=60) as sdk,
    ):
        yield sdk


@contextmanager
def at(word: str) -> Iterator[anthropic.Anthropic]:
    """A client of a gateway before a Claude that does this."""
    with clauded.serving(word) as claude, through(policy(f"claude claude {claude.url}", mode="claude")) as sdk:
        yield sdk


@pytest.mark.parametrize("word", sorted(FAULTS))
def test_a_fault_before_the_first_word(word: str) -> None:
    expected, status = FAULTS[word]
    with at(word) as sdk, pytest.raises(anthropic.APIStatusError) as e:
        list(ask(sdk))
    assert isinstance(e.value, expected)
    assert e.value.status_code == status


def test_claude_is_down() -> None:
    text = policy(f"claude claude {GONE}", mode="claude")
    with through(text) as sdk, pytest.raises(anthropic.APIStatusError) as e:
        list(ask(sdk))
    assert e.value.status_code == 503
    assert "claude" in str(e.value)


@pytest.mark.parametrize("word", ["cut=1000", "reset=1000", "end=1000", "error"])
def test_a_cut_in_the_middle_is_an_exception(word: str) -> None:
    words: list[str] = []
    with at(word) as sdk, pytest.raises(anthropic.APIError):
        words.extend(ask(sdk))
    assert "".join(words) != "".join(clauded.WORDS)


def test_a_whole_answer() -> None:
    with at("ok") as sdk:
        assert "".join(ask(sdk)) == "".join(clauded.WORDS)
