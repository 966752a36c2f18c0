"""What trl made of the rows, looked at before a step is taken: nothing cut, something learned, the end learned."""

from __future__ import annotations

from typing import Any

from miyabi_llm.engines.child.common import Failed

MASKED = -100


def examine(trainer: Any, max_length: int) -> dict[str, Any]:
    """Tokens and trained tokens of the rows. Raises Failed naming the row where training could not teach what it says.

    Rows that were packed are looked at as the sequences they became.
    """
    tokenizer = trainer.processing_class
    ends = _ends(trainer, tokenizer)
    data = trainer.train_dataset
    trained = tokens = 0
    for number, row in enumerate(data):
        ids, labels = row["input_ids"], row["labels"]
        learned = [label for label in labels if label != MASKED]
        tokens, trained = tokens + len(ids), trained + len(learned)
        if len(ids) > max_length:
            raise Failed("corrupt", f"row {number + 1} has {len(ids)} tokens, data.max_length is {max_length}")
        if not learned:
            raise Failed(
                "corrupt", f"row {number + 1} trains no token", "Its answer is empty, or the template drops it."
            )
        if not ends & set(_last_words(learned, tokenizer)):
            text = tokenizer.decode(learned[-8:])
            raise Failed(
                "corrupt",
                f"row {number + 1} does not train the end of the answer: it ends with {text!r}",
                "The chat template must close the assistant's turn with the token that ends an answer.",
            )
    return {"sequences": len(data), "tokens": tokens, "trained_tokens": trained, "ends": sorted(ends)}


def _last_words(learned: list[int], tokenizer: Any) -> list[int]:
    """The last trained token that is not white space."""
    for token in reversed(learned):
        if tokenizer.decode([token]).strip():
            return [token]
    return []


def _ends(trainer: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer."""
    told = trainer.model.generation_config.eos_token_id
    ends = set(told) if isinstance(told, list) else {told}
    ends.add(tokenizer.eos_token_id)
    return {e for e in ends if e is not None}
