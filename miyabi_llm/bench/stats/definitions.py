"""What each metric is, in words: unit, which way is better, definition. The documentation is checked against it."""

from __future__ import annotations

from typing import NamedTuple

from miyabi_llm.bench.stats.values import Better


class Definition(NamedTuple):
    """One metric's unit, its better direction, and what it is."""

    unit: str
    better: Better
    text: str


DEFINITIONS: dict[str, Definition] = {
    "ttft": Definition(
        "s",
        "lower",
        "First piece of reasoning or text, minus the first byte sent. Pieces with a role only do not count.",
    ),
    "ttft_text": Definition("s", "lower", "First piece of text (reasoning does not count), minus the first byte sent."),
    "ttft_intended": Definition("s", "lower", "First piece of reasoning or text, minus the time the schedule wanted."),
    "gap": Definition(
        "s", "lower", "Time between successive pieces of an answer, all pieces of all answers in one distribution."
    ),
    "itl": Definition("s", "lower", "Time per token after the first piece; see its source for how it was taken."),
    "itl_request": Definition(
        "s", "lower", "Per answer: (last piece - first piece) / (tokens - tokens of the first piece)."
    ),
    "tpot": Definition("s", "lower", "Per answer: (end to end - TTFT) / (output tokens - 1)."),
    "e2e": Definition("s", "lower", "Last piece of reasoning or text, minus the first byte sent."),
    "e2e_intended": Definition("s", "lower", "Last piece of reasoning or text, minus the time the schedule wanted."),
    "decode_tps": Definition(
        "tokens/s", "higher", "Per answer: (tokens - tokens of the first piece) / (last piece - first piece)."
    ),
    "prefill_tps": Definition(
        "tokens/s", "higher", "Per answer: prompt tokens that were not cached / TTFT; waiting and network are in it."
    ),
    "server_prompt_tps": Definition(
        "tokens/s", "higher", "Per answer: prompt tokens that were not cached / the server's own time for the prompt."
    ),
    "server_decode_tps": Definition(
        "tokens/s", "higher", "Per answer: output tokens / the server's own time for generating them."
    ),
    "server_load": Definition("s", "lower", "The server's own time for loading the model, per answer."),
    "prompt_tokens": Definition("tokens", "neither", "Tokens of the prompt, as the server counts them."),
    "output_tokens": Definition("tokens", "neither", "Tokens of the answer, from the best source there is."),
    "output_tps": Definition(
        "tokens/s", "higher", "Output tokens that came while requests were sent, per second of it."
    ),
    "prompt_tps": Definition(
        "tokens/s", "higher", "Prompt tokens whose answers began while requests were sent, per second of it."
    ),
    "total_tps": Definition("tokens/s", "higher", "output_tps + prompt_tps."),
    "rps": Definition(
        "requests/s",
        "higher",
        "Whole answers per second while requests were sent; of one that ended later, the share that came in time.",
    ),
    "goodput": Definition("requests/s", "higher", "As rps, of the answers that keep every limit of the objective."),
    "good_share": Definition(
        "share", "higher", "Answers that keep every limit of the objective, of all requests; failed ones are misses."
    ),
    "error_rate": Definition("share", "lower", "Failed requests of all that were not cancelled."),
    "cached_share": Definition("share", "neither", "Prompt tokens the server had cached, of those of which it tells."),
}
