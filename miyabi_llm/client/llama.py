"""What only llama-server answers: its rendering, its token ids, and how likely first tokens are with an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from miyabi_llm.client.http import Client
from miyabi_llm.errors import MiyabiError


def render(client: Client, messages: Sequence[Mapping[str, Any]], tools: object = None) -> str:
    """The prompt that the server's template makes of `messages`. Raises MiyabiError with the server's words."""
    body = {"messages": list(messages)} | ({"tools": tools} if tools else {})
    said = client._ask("POST", "/apply-template", body).get("prompt")
    if not isinstance(said, str):
        raise MiyabiError("the server rendered no prompt")
    return said


def tokenize(client: Client, text: str, *, special: bool) -> tuple[int, ...]:
    """The ids of `text`, control tokens in it recognised; with `special` the tokens that begin and end every text."""
    said = client._ask("POST", "/tokenize", {"content": text, "add_special": special, "parse_special": True})
    ids = said.get("tokens")
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
        raise MiyabiError("the server gave no token ids")
    return tuple(ids)


def chances(client: Client, prompt: str, *, adapter: float | None = None, most: int = 40) -> dict[int, float]:
    """Log-probabilities of the `most` likely first tokens after `prompt`; `adapter` scales the first LoRA adapter.

    Empty when the likeliest one is half a letter. Raises MiyabiError.
    """
    body: dict[str, Any] = {
        "prompt": prompt, "n_predict": 1, "n_probs": most, "temperature": 0.0, "cache_prompt": False, "seed": 0,
    }  # fmt: skip
    if adapter is not None:
        body["lora"] = [{"id": 0, "scale": adapter}]
    said = client._ask("POST", "/completion", body).get("completion_probabilities")
    if not said:  # the first token is half a letter: the server keeps it back, and its chances with it
        return {}
    try:
        return {int(t["id"]): float(t["logprob"]) for t in said[0]["top_logprobs"]}
    except (TypeError, KeyError, IndexError, ValueError):
        raise MiyabiError("the server gave no probabilities") from None
