"""Whether a prompt fits the context, known before it is sent; whether the server read all of it, after."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from miyabi_llm.chat.session import Session
from miyabi_llm.client.values import Message, Usage
from miyabi_llm.errors import PromptTooLong

if TYPE_CHECKING:
    from miyabi_llm.client import Client

NEAR = 0.9  # of the context: from here on we warn
USUAL = 4096  # tokens of context that every backend gives without being asked
ANSWER = 1024  # tokens to keep for an answer of unknown length
ROOM = 256  # tokens an answer should have left, else we warn
SURELY = 8  # bytes per token, more than tokenizers reach on real text: a prompt above context * SURELY cannot fit

_WORDS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ "
_NOT_ASCII = bytes(range(128, 256))


@dataclass(frozen=True, slots=True)
class Budget:
    """How a request fits the context, in tokens. `exact` False: `prompt` is a guess from its length."""

    prompt: int
    exact: bool
    context: int | None
    max_tokens: int | None
    warnings: tuple[str, ...] = field(default=())


def check(client: Client, session: Session) -> Budget:
    """Count what would be sent against the server's context, before it is sent.

    Raises PromptTooLong when prompt and answer cannot fit. A server that cannot count gets a guess, and only
    a prompt that cannot possibly fit is refused on a guess.
    """
    messages, options = session.messages(), session.options
    context = client.context_size()
    count = client.count_prompt(messages, options.params())
    prompt = count if count is not None else estimate(messages)
    return judge(
        Budget(prompt, count is not None, context, options.max_tokens), size_of(messages), client.trained_context()
    )


def judge(budget: Budget, size: int, most: int | None = None) -> Budget:
    """`budget` with its warnings. Raises PromptTooLong. Pure.

    `size` is the bytes of the messages, `most` the context the model was trained for, if that is known.
    """
    context, prompt = budget.context, budget.prompt
    if context is None:
        return budget
    least = prompt if budget.exact else size // SURELY
    wanted = budget.max_tokens or 1
    if least + wanted > context:
        about = "" if budget.exact else "about "
        answer = f" and the answer may take {wanted:,}" if budget.max_tokens else ""
        raise PromptTooLong(
            f"the prompt has {about}{prompt:,} tokens{answer}; the context is {context:,}: "
            f"{prompt + wanted - context:,} too many, nothing was sent",
            hint=_advice(_round_up(prompt + max(wanted, ROOM)), most),
            prompt_tokens=prompt,
            exact=budget.exact,
            max_tokens=budget.max_tokens,
            context=context,
        )
    warnings = []
    left = context - prompt
    if left < wanted or (budget.max_tokens is None and (prompt > NEAR * context or left < ROOM)):
        word = "has" if budget.exact else "may have"
        room = f"{left:,} are left for the answer" if left > 0 else "it may not fit, and this server cannot count"
        warnings.append(f"the prompt {word} {prompt:,} tokens of a context of {context:,}: {room}")
    return replace(budget, warnings=tuple(warnings))


def _advice(wanted: int, most: int | None) -> str:
    if most is not None and wanted > most:
        return f"Cut the prompt: the model was trained for {most:,} tokens, no --ctx makes it read more."
    return f"Serve the model with --ctx {wanted} or more, or cut the prompt."


def was_cut(budget: Budget, size: int, usage: Usage | None) -> str | None:
    """A warning when the server read fewer tokens than were sent: some cut a long prompt and say nothing."""
    seen = usage.prompt_tokens if usage else None
    if not seen:
        return None
    least = budget.prompt if budget.exact else size // (SURELY * 2)
    if seen >= least:
        return None
    sent = f"{budget.prompt:,}" if budget.exact else f"at least {least:,}"
    return f"the server read {seen:,} prompt tokens of {sent}: it has cut the prompt"


def context_for(messages: tuple[Message, ...], max_tokens: int | None, most: int | None) -> int | None:
    """The context to serve with so that `messages` fit: None where any usual default will do.

    `most` is what the model was trained for; asking beyond it would only give worse answers.
    """
    wanted = estimate(messages) + (max_tokens or ANSWER)
    if wanted <= USUAL:
        return None
    roomy = max(_round_up(wanted), 2 * USUAL)
    return roomy if most is None else min(roomy, most)


def estimate(messages: tuple[Message, ...]) -> int:
    """Tokens of `messages`, guessed on the high side from their bytes; used only where nobody can count.

    Three bytes of words or of non-ASCII text to a token; digits and signs count one each, as many tokenizers
    take them. Held against Gemma's tokenizer this is 1.0 to 2.5 times the truth, but too low for base64.
    """
    tokens = 0
    for message in messages:
        data = message.content.encode("utf-8", "replace")
        signs = len(data.translate(None, _WORDS + _NOT_ASCII))
        tokens += -(-(len(data) - signs) // 3) + signs + 8
    return tokens + 16


def size_of(messages: tuple[Message, ...]) -> int:
    """Bytes of text in `messages`."""
    return sum(len(m.content.encode("utf-8", "replace")) for m in messages)


def _round_up(tokens: int) -> int:
    return -(-tokens // 1024) * 1024
