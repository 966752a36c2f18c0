"""llama.cpp in this process: one model, loaded once, one generation at a time."""

from __future__ import annotations

import ctypes
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import llama_cpp
from jinja2 import TemplateError
from llama_cpp import llama_chat_format, llama_grammar

from miyabi_llm.embedded.asked import Ask, Refused, bad
from miyabi_llm.embedded.guided import Guided
from miyabi_llm.embedded.text import Text, depth

PIECE = 256  # bytes of a token's text at first; longer ones say how long they are
GRAMMAR = 256 << 10  # characters of a grammar
NESTED = 2000  # groups in groups: llama.cpp's parser calls itself for each, until the stack ends the process
# what code that walks somebody's data without looking raises (RuntimeError: too deep a recursion, too)
STRANGE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
BATCH = 512  # tokens of a prompt that are computed at once, as llama-server's physical batch


@dataclass(frozen=True, slots=True)
class Options:
    """How a model is loaded. `threads` None: one a physical core; `gpu_layers` -1: all of them."""

    model: Path
    ctx: int
    threads: int | None = None
    kv_type: str | None = None
    gpu_layers: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be generated from: token ids, and how."""

    tokens: tuple[int, ...]
    ask: Ask
    grammar: Any = None


@dataclass(frozen=True, slots=True)
class Done:
    """How a generation ended. `evaluated` prompt tokens were computed, the rest were still there. Milliseconds."""

    reason: Literal["stop", "length", "cancelled"]
    prompt: int
    evaluated: int
    predicted: int
    prompt_ms: float
    predicted_ms: float


class Model(llama_cpp.Llama):  # type: ignore[misc]  # the library ships no types to us
    """A model that counts the tokens it computes."""

    computed = 0
    guided: Guided | None = None

    def eval(self, tokens: Sequence[int]) -> None:
        """Compute `tokens`, which follow those computed before."""
        self.computed += len(tokens)
        super().eval(tokens)

    def sample(self, *args: Any, **kwargs: Any) -> int:
        """The next token; `guided` draws it when the answer must follow a grammar."""
        if self.guided is None or self._sampler is None:
            return int(super().sample(*args, **kwargs))
        return self.guided.draw(self._sampler.sampler, self.ctx)


class Engine:
    """A loaded model. `prepare` may be called from any thread at any time, `run` from one at a time.

    `moved` changes whenever a generation moves on; `decoded` is how many tokens the present one has made.
    """

    def __init__(self, options: Options) -> None:
        load_compute(Path(llama_cpp.__file__).parent / "lib")
        kv = None if options.kv_type in (None, "f16") else _ggml_type(str(options.kv_type))
        threads = options.threads or physical_cores()
        self._model = Model(
            str(options.model),
            n_ctx=options.ctx,
            n_batch=BATCH,
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=options.gpu_layers,
            type_k=kv,
            type_v=kv,
            flash_attn=kv is not None,  # llama.cpp computes a quantized V cache only so
            verbose=True,  # why a load failed is told only so
        )
        self._model.verbose = False
        llama_cpp.llama_log_set(_errors_only, ctypes.c_void_p(0))
        self._vocab = llama_cpp.llama_model_get_vocab(self._model.model)
        self.ctx: int = self._model.n_ctx()
        self.ctx_train: int = llama_cpp.llama_model_n_ctx_train(self._model.model)
        self._template = self._chat_template()
        self.moved = self.decoded = 0

    @property
    def chats(self) -> bool:
        """Whether the model brings a chat template."""
        return self._template is not None

    def prepare(self, ask: Ask) -> Prompt:
        """The tokens and the grammar of a request. Raises Refused when it does not fit, or cannot be done."""
        tokens = self.tokens(ask)
        if not tokens:
            raise bad("the prompt is empty")
        if (highest := max(tokens)) >= self._model.n_vocab():
            raise bad(f"{highest} is no token of this model")
        if len(tokens) >= self.ctx:
            raise Refused(
                400,
                "exceed_context_size_error",
                f"the prompt has {len(tokens)} tokens, the context {self.ctx}: nothing was cut off",
                n_prompt_tokens=len(tokens),
                n_ctx=self.ctx,
            )
        return Prompt(tokens, ask, None if ask.schema is None else self._grammar(ask.schema))

    def tokens(self, ask: Ask) -> tuple[int, ...]:
        """The prompt of a request as the model gets it, however long. Raises Refused."""
        if ask.messages is not None:
            return self.tokenize(self._render(ask))
        return ask.prompt if isinstance(ask.prompt, tuple) else self.tokenize(ask.prompt)

    def tokenize(self, text: str, *, add_special: bool = True) -> tuple[int, ...]:
        """Token ids; `add_special`: with the tokens the model wants around every text."""
        return tuple(self._model.tokenize(text.encode("utf-8", "replace"), add_bos=add_special, special=True))

    def run(self, prompt: Prompt, cancel: threading.Event, say: Callable[[str], None]) -> Done:
        """Generate, handing each piece of text to `say`, until the end or until `cancel` is set."""
        model, ask = self._model, prompt.ask
        text = Text(ask.stop)
        most = self.ctx - len(prompt.tokens) if ask.most is None else min(ask.most, self.ctx - len(prompt.tokens))
        model.computed = self.decoded = 0
        model.set_seed(random.getrandbits(32) if ask.sampling.seed is None else ask.sampling.seed)
        begin = first = time.perf_counter()
        evaluated, reason = 0, "length"
        with self._abortable(cancel) as prompt_is_done:
            tokens = self._generate(prompt)
            try:
                for token in tokens:
                    if self.decoded == 0:
                        first, evaluated = time.perf_counter(), model.computed
                        prompt_is_done()
                    self.decoded += 1
                    self.moved += 1
                    if llama_cpp.llama_vocab_is_eog(self._vocab, token):
                        reason = "stop"
                        break
                    if piece := text.add(self._piece(token)):
                        say(piece)
                    if text.stopped or cancel.is_set() or self.decoded >= most:
                        reason = "stop" if text.stopped else "cancelled" if cancel.is_set() else "length"
                        break
            except RuntimeError:
                self._model.reset()  # what was half computed must not be built on
                if not cancel.is_set():
                    raise
                reason = "cancelled"
            finally:
                tokens.close()
        if piece := text.end():
            say(piece)
        end = time.perf_counter()
        ms = ((first - begin) * 1000, (end - first) * 1000)
        return Done(reason, len(prompt.tokens), evaluated, self.decoded, *ms)  # type: ignore[arg-type]

    def _generate(self, prompt: Prompt) -> Any:
        how = prompt.ask.sampling
        self._model.guided = Guided(self._model.n_vocab()) if prompt.grammar is not None else None
        return self._model.generate(
            prompt.tokens,
            temp=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            min_p=how.min_p,
            repeat_penalty=how.repeat_penalty,
            presence_penalty=how.presence_penalty,
            frequency_penalty=how.frequency_penalty,
            grammar=prompt.grammar,
        )

    @contextmanager
    def _abortable(self, cancel: threading.Event) -> Iterator[Callable[[], None]]:
        """While the block runs, or until what it yields is called, `cancel` ends a computation in its middle.

        A prompt takes many seconds, a token a fraction of one: it is needed for the prompt only, and it costs a call
        into Python for each operation of the model.
        """

        def asked(_: object) -> bool:
            self.moved += 1
            return cancel.is_set()

        callback = llama_cpp.ggml_abort_callback(asked)

        def end() -> None:
            llama_cpp.llama_set_abort_callback(self._model.ctx, llama_cpp.ggml_abort_callback(), None)

        llama_cpp.llama_set_abort_callback(self._model.ctx, callback, None)
        try:
            yield end
        finally:
            end()

    def _piece(self, token: int) -> bytes:
        """The bytes of a token. Not the library's own `detokenize`: it loses tokens of more than 32 bytes."""
        size = PIECE
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = llama_cpp.llama_token_to_piece(self._vocab, llama_cpp.llama_token(token), buffer, size, 0, False)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def _grammar(self, schema: str) -> Any:
        try:
            text = llama_grammar.json_schema_to_gbnf(schema) if schema else llama_grammar.JSON_GBNF
        except (*STRANGE, re.error) as e:  # the library's converter walks a strange schema without looking
            raise bad(f"response_format: this schema cannot be followed: {type(e).__name__}: {e}") from e
        if len(text) > GRAMMAR or depth(text) > NESTED:
            raise bad("response_format: this schema is too large: its texts and lists may be long, or it is deep")
        # llama.cpp makes nothing of a grammar it does not understand, and the library would go on with the nothing
        tried = llama_cpp.llama_sampler_init_grammar(self._vocab, text.encode(), b"root")
        if not tried:
            raise bad("response_format: llama.cpp does not understand the grammar of this schema")
        llama_cpp.llama_sampler_free(tried)
        return llama_grammar.LlamaGrammar.from_string(text, verbose=False)

    def _chat_template(self) -> Any:
        template = self._model.metadata.get("tokenizer.chat_template")
        if not template:
            return None
        model, vocab = self._model, self._vocab

        def word(token: int) -> str:
            text: bytes = llama_cpp.llama_vocab_get_text(vocab, token) if token >= 0 else b""
            return text.decode("utf-8", "replace")

        return llama_chat_format.Jinja2ChatFormatter(template, word(model.token_eos()), word(model.token_bos()))

    def _render(self, ask: Ask) -> str:
        if self._template is None:
            raise bad("this model has no chat template: it is a base model. Ask /v1/completions instead")
        try:
            text: str = self._template(messages=[dict(m) for m in ask.messages or ()]).prompt
        except (*STRANGE, TemplateError, MemoryError) as e:  # the template is a program of the model's
            raise bad(f"the model's chat template refuses these messages: {e}") from e
        # the tokenizer puts the first token there by itself, for models that want it
        return text.removeprefix(self._template.bos_token) if self._template.bos_token else text


def _ggml_type(name: str) -> int:
    number = getattr(llama_cpp, f"GGML_TYPE_{name.upper()}", None)
    if not isinstance(number, int):
        raise ValueError(f"{name!r} is no type of llama.cpp's KV cache")
    return number


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _errors_only(level: int, text: bytes, _: object) -> None:
    if level == 3:  # GGML_LOG_LEVEL_ERROR
        os.write(2, text)


def load_compute(folder: Path) -> None:
    """Make llama.cpp's own compute libraries known where they are separate files, as in its published builds."""
    ggml = _ggml(folder)
    if ggml is not None and devices() == 0:
        ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
        ggml.ggml_backend_load_all_from_path.restype = None
        ggml.ggml_backend_load_all_from_path(os.fsencode(folder))


def devices() -> int:
    """What llama.cpp can compute on: 0 means that it cannot load a model. 1 where this cannot be told."""
    ggml = _ggml(Path(llama_cpp.__file__).parent / "lib")
    if ggml is None:
        return 1  # an interpreter of the user's, with a layout of its own
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    return int(ggml.ggml_backend_dev_count())


def _ggml(folder: Path) -> ctypes.CDLL | None:
    found = next((p for p in (folder / "libggml.so", folder / "libggml.dylib") if p.exists()), None)
    return ctypes.CDLL(str(found)) if found else None


def physical_cores() -> int:
    """The cores this process may use, two threads of one core counted once, as llama-server does."""
    try:
        usable = os.sched_getaffinity(0)
        names = {
            Path(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list").read_text(encoding="ascii")
            for n in usable
        }
    except (AttributeError, OSError):
        return max(1, (os.cpu_count() or 1) // 2)
    return max(1, len(names))
