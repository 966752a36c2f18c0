"""A GGUF asked through the real llama-server: its prompts, tokens, probabilities and answers.

A token's exact log-probability comes from a request that forces this token (a bias on it) and asks for its chance:
llama-server takes chances from the raw logits, before any bias. A token that is half a letter is kept back together
with its chance; its chance is then read from the list of the likeliest, after a token that is a whole letter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miyabi_llm.errors import ServerFailed
from miyabi_llm.tools.moment import Kitchen, Moment, moment
from miyabi_llm.types import Event, OnEvent, silent

BORDER = 2  # tokens of a prompt that the beginning of an answer may change: letters of both may be one token
FORCE = 1e6  # a bias that no logit outweighs
LISTS = (2_000, 1 << 20)  # likeliest tokens looked through for one that is half a letter
WHOLE = "!"  # a text that is one whole token in every vocabulary we know


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer: its tokens, the likeliest tokens at each place (empty where not told), and why it ended."""

    tokens: tuple[int, ...]
    text: str
    top: tuple[Mapping[int, float], ...]
    stop: str


@dataclass(frozen=True, slots=True)
class Server:
    """A running llama-server; `words` go to its template."""

    moment: Moment
    words: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, messages: Sequence[Mapping[str, Any]], *, begin: bool = True) -> str:
        """The messages as the served template writes them."""
        return self.moment.render(messages, begin=begin, words=self.words)

    def ids(self, text: str) -> tuple[int, ...]:
        """The token ids of a prompt, as a request for a completion reads it."""
        return self.moment.tokens(text)

    def answer(self, ids: Sequence[int], most: int, top: int = 0) -> Answer:
        """What the model writes after `ids`, always the likeliest token. Raises ServerFailed."""
        said = self._complete(ids, most, n_probs=top, return_tokens=True)
        tokens = tuple(int(t) for t in said.get("tokens") or ())
        told = said.get("completion_probabilities") or ()
        # tokens that are half a letter have no entry: then no place can be told from another
        lists = tuple(_top(one) for one in told) if len(told) == len(tokens) else ()
        stop = {"eos": "eos", "word": "eos", "limit": "limit"}.get(str(said.get("stop_type")), "limit")
        return Answer(tokens, str(said.get("content") or ""), lists, stop)

    def chances(self, ids: Sequence[int], top: int, whole: int) -> dict[int, float]:
        """Log-probabilities of the `top` likeliest tokens after `ids`; `whole` is a token that is a whole letter."""
        said = self._complete(ids, 1, n_probs=top, logit_bias=[[whole, FORCE]])
        return _top(_first(said))

    def chance(self, ids: Sequence[int], token: int, whole: int) -> float:
        """The log-probability of `token` after `ids`, exactly as the model has it."""
        told = self._complete(ids, 1, n_probs=1, logit_bias=[[token, FORCE]]).get("completion_probabilities")
        if told and int(told[0]["id"]) == token:
            return float(told[0]["logprob"])
        for most in LISTS:
            if (found := self.chances(ids, most, whole).get(token)) is not None:
                return found
        raise ServerFailed(f"the server tells no chance of token {token}")

    def whole(self) -> int:
        """A token that is a whole letter."""
        said = self.moment.ask("/tokenize", {"content": WHOLE, "add_special": False, "parse_special": False})
        ids = said.get("tokens") or []
        if len(ids) != 1:
            raise ServerFailed(f"the vocabulary has no token for {WHOLE!r}")
        return int(ids[0])

    def _complete(self, ids: Sequence[int], most: int, **more: Any) -> dict[str, Any]:
        body = {"prompt": list(ids), "n_predict": most, "temperature": 0.0, "cache_prompt": True, "id_slot": 0}
        return self.moment.ask("/completion", body | {"seed": 0, "stream": False} | more)


@contextmanager
def serving(model: Path, kitchen: Kitchen, ctx: int, words: Mapping[str, Any] | None = None) -> Iterator[Server]:
    """A server of `model` while the block runs. Raises as `moment`."""
    with moment(model, kitchen, ctx) as running:
        yield Server(running, words or {})


def score(
    server: Server, rows: Sequence[Mapping[str, Any]], forget: Sequence[Mapping[str, Any]], *,
    answered: tuple[int, int] = (0, 64), on_event: OnEvent = silent, name: str = "gguf",
) -> dict[str, Any]:  # fmt: skip
    """The same measurement as the child's `score`, by the server's own prompts and tokens. Raises ServerFailed.

    `answered`: how many rows are answered, and with how many tokens at most.
    """
    whole = server.whole()
    found: dict[str, Any] = {"rows": [], "forget": [], "answers": []}
    for key, part in (("rows", rows), ("forget", forget)):
        for i, row in enumerate(part):
            told = [row["id"]]
            for wanted in ("chosen", "rejected") if "chosen" in row else ("completion",):
                told += nats(server, row["prompt"], row[wanted], whole)
            found[key].append(told)
            on_event(Event("progress", name, done=i + 1, total=len(part), unit="rows"))
    for row in rows[: answered[0]]:
        said = server.answer(server.ids(_text(server, row["prompt"], begin=True)), answered[1])
        want = row.get("completion") or row.get("chosen") or ""
        text = want if isinstance(want, str) else "".join(str(m.get("content") or "") for m in want)
        found["answers"].append({"id": row["id"], "text": said.text, "want": text, "stop": said.stop})
    return found


def nats(server: Server, prompt: Any, answer: Any, whole: int) -> list[Any]:
    """How surprised the model is by an answer, in nats over all its tokens, and their number.

    Raises ServerFailed where the served template writes the prompt otherwise when an answer follows.
    """
    begun = server.ids(_text(server, prompt, begin=True))
    if isinstance(answer, str):
        ids = (*begun, *server.ids(answer))
    else:
        ids = server.ids(_text(server, [*prompt, *answer], begin=False))
    border = next((i for i, (x, y) in enumerate(zip(begun, ids, strict=False)) if x != y), min(len(begun), len(ids)))
    if border < len(begun) - BORDER:
        raise ServerFailed("the served template writes the prompt otherwise before an answer")
    total = sum(-server.chance(ids[:at], ids[at], whole) for at in range(border, len(ids)))
    return [total, len(ids) - border]


def _text(server: Server, messages: Any, *, begin: bool) -> str:
    return messages if isinstance(messages, str) else server.prompt(messages, begin=begin)


def _top(one: Mapping[str, Any]) -> dict[int, float]:
    try:
        return {int(t["id"]): float(t["logprob"]) for t in one["top_logprobs"]}
    except (KeyError, TypeError, ValueError):
        raise ServerFailed("the server gave no probabilities") from None


def _first(said: Mapping[str, Any]) -> Mapping[str, Any]:
    told = said.get("completion_probabilities")
    if not isinstance(told, list) or not told:
        raise ServerFailed("the server gave no probabilities")
    first = told[0]
    return first if isinstance(first, dict) else {}
