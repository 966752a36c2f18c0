"""Drawing the next token of an answer that must follow a grammar, without letting llama.cpp die of a dead end."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import llama_cpp
import numpy as np

from miyabi_llm.embedded.asked import bad


class Guided:
    """A sampler's choice, made in two steps.

    llama.cpp's own sampler accepts what it chose in the same breath. Where the grammar leaves no token at all it
    chooses a forbidden one, and accepting that ends the process. Here the choice is looked at in between.
    """

    def __init__(self, n_vocab: int) -> None:
        self._data = np.zeros(n_vocab, dtype=[("id", np.intc), ("logit", np.single), ("p", np.single)])
        self._ids = np.arange(n_vocab, dtype=np.intc)

    def draw(self, sampler: Any, context: Any) -> int:
        """The next token. Raises Refused when the grammar allows none."""
        n = len(self._ids)
        self._data["id"], self._data["p"] = self._ids, 0
        self._data["logit"] = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(n,))
        pointer = self._data.ctypes.data_as(llama_cpp.llama_token_data_p)
        array = llama_cpp.llama_token_data_array(data=pointer, size=n, selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise bad("response_format: nothing can follow here under this schema")
        chosen = array.data[array.selected]
        if chosen.logit == -math.inf:
            raise bad("response_format: nothing can follow here under this schema")
        llama_cpp.llama_sampler_accept(sampler, chosen.id)
        return int(chosen.id)
