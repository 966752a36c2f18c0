"""Text from the bytes of tokens: however they are cut, the same text comes out, and nothing of a stop text."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.embedded.text import Text, depth


def said(data: bytes, cuts: list[int], stops: list[str]) -> tuple[list[str], bool]:
    text, pieces = Text(stops), []
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for a, b in pairwise(places):
        pieces.append(text.add(data[a:b]))
        if text.stopped:
            break
    return [*pieces, text.end()], text.stopped


@given(st.text(), st.lists(st.integers(0, 60)))
def test_without_stops_all_of_it_comes_in_whole_characters(whole: str, cuts: list[int]) -> None:
    pieces, stopped = said(whole.encode("utf-8", "replace"), cuts, [])
    assert "".join(pieces) == whole.encode("utf-8", "replace").decode()
    assert not stopped


@given(st.text("abc", max_size=30), st.lists(st.integers(0, 30)), st.lists(st.text("abc", min_size=1, max_size=4)))
def test_it_ends_before_the_first_stop(whole: str, cuts: list[int], stops: list[str]) -> None:
    pieces, stopped = said(whole.encode(), cuts, stops)
    assert stopped == any(stop in whole for stop in stops)
    assert whole.startswith("".join(pieces))
    assert not any(stop in "".join(pieces) for stop in stops)
    if not stopped:
        assert "".join(pieces) == whole


def test_what_may_become_a_stop_is_held_back_and_given_when_it_does_not() -> None:
    text = Text(["END"])
    assert [text.add(b) for b in (b"a E", b"N", b"x", b"EN")] == ["a ", "", "ENx", ""]
    assert text.end() == "EN"


def test_a_character_that_never_ends_is_marked() -> None:
    text = Text([])
    assert text.add("日".encode()[:2]) == ""
    assert text.end() == "\ufffd"


def test_how_deep_a_grammar_is() -> None:
    assert depth('root ::= ("a" ("(((" [((] ("b")?)?) "\\"("') == 3
    assert depth("root ::= x") == 0
