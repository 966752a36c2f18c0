"""A Modelfile for people who import by hand: without TEMPLATE, because a right one is already in the file. Pure.

Ollama 0.30 and newer renders the file's own template through llama-server where it knows no curated one. Its curated
ones it recognises by likeness; `export.ollama` and `quantize --to ollama:` compare prompts after the import. Read in
its source (v0.33); not run against the program.
"""

from __future__ import annotations

from collections.abc import Sequence

from miyabi_llm.gguf import Array, Header

REQUIRES = "0.30.0"  # the first that runs models by llama-server


def modelfile(file: str, header: Header, ends: Sequence[int], ctx: int) -> str:
    """The text: the file, its context in tokens, a stop for every end of an answer that is a control token's text."""
    texts = header.kv.get("tokenizer.ggml.tokens")
    words = [str(t) for t in texts.items] if isinstance(texts, Array) else []
    stops = [words[i] for i in dict.fromkeys(ends) if 0 <= i < len(words) and '"' not in words[i]]
    lines = [f"FROM ./{file}", f"PARAMETER num_ctx {ctx}", *(f'PARAMETER stop "{s}"' for s in stops)]
    return "\n".join([*lines, f"REQUIRES {REQUIRES}"]) + "\n"
