"""A GGUF file copied into a folder of safetensors, by transformers in a child, checked against the file's header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm import proc
from miyabi_llm.errors import BadUsage, Corrupt, DiskFull, MachineLimit, MiyabiError
from miyabi_llm.gguf import Array, Header
from miyabi_llm.proc import logs
from miyabi_llm.tools.envs import Env
from miyabi_llm.types import Event, OnEvent, silent

CHILD = Path(__file__).with_name("hf_copy_child.py")
# Architectures whose copy was compared with the original: tokens, weights, answers. The reader of transformers takes
# many more, and is wrong for some without an error (for Gemma 3 it gives other token ids).
VERIFIED = ("qwen2",)
NORMALIZED = ("qwen2",)  # pre-tokenizers whose publisher normalizes text to NFC, which a GGUF file cannot say
# Tokens that end an answer, by name: llama.cpp takes them for ends too, whatever eos says.
ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "<eos>", "</s>")
CONTROL = 3  # llama_token_type
POLL = 0.1  # seconds between looks at what the child has said
SAID = 6  # lines of the child that go into an error
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True, slots=True)
class Copied:
    """A finished copy: the versions of what made it, what it says after a prompt, and how it reads probe texts."""

    versions: Mapping[str, str]
    greedy: Mapping[str, str]
    probes: Mapping[str, tuple[int, ...]]


def vocabulary(header: Header) -> dict[str, Any]:
    """What the child must know of the file's header, which is read with whole arrays. Pure.

    Raises BadUsage for an architecture whose copy was never verified, Corrupt when the vocabulary is not whole.
    """
    if header.architecture not in VERIFIED:
        raise BadUsage(
            f"a copy of a {header.architecture or 'nameless'} model was never verified; {', '.join(VERIFIED)} were",
            hint="Pull the publisher's own safetensors instead: `miyabi-llm pull hf:ORG/REPO`.",
        )
    tokens, types = header.kv.get("tokenizer.ggml.tokens"), header.kv.get("tokenizer.ggml.token_type")
    if not (isinstance(tokens, Array) and isinstance(types, Array) and tokens.whole and types.whole):
        raise Corrupt("the file has no whole vocabulary", hint="Pull the model again.")
    if tokens.length != types.length or len(set(tokens.items)) != tokens.length:
        raise Corrupt("the file's vocabulary has gaps or repeats itself", hint="Pull the model again.")
    named = {text: i for i, text in enumerate(tokens.items) if types.items[i] == CONTROL and text in ENDS}
    ends = [header.number(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    found = dict.fromkeys([*(e for e in ends if e is not None), *named.values()])
    if any(not 0 <= end < tokens.length for end in found):
        raise Corrupt("the file's end of an answer is no token of it", hint="Pull the model again.")
    return {
        "tokens": tokens.items,
        "types": types.items,
        "bos": header.number("tokenizer.ggml.bos_token_id") if header.kv.get("tokenizer.ggml.add_bos_token") else None,
        "eos": header.eos,
        "pad": header.number("tokenizer.ggml.padding_token_id"),
        "ends": list(found),
        "normalize": header.text("tokenizer.ggml.pre") in NORMALIZED,
        "template": header.chat_template,
        "context_length": header.context_length,
    }


def copy(
    source: Path, header: Header, folder: Path, env: Env, variables: Mapping[str, str], on_event: OnEvent = silent
) -> Copied:
    """Copy the GGUF file `source` into `folder/model`; the child dies with us, whatever kills us.

    `variables` are the environment of which the child sees the harmless part. Raises BadUsage, Corrupt when the copy
    is not what the header says, MachineLimit, DiskFull, MiyabiError.
    """
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary(header)), encoding="utf-8")
    order = {
        "source": str(source.absolute()),
        "target": str(folder / "model"),
        "vocabulary": str(folder / "vocabulary.json"),
        "parameters": header.parameters,
    }
    (folder / "order.json").write_text(json.dumps(order), encoding="utf-8")
    log = folder / "log"
    child = proc.launch((str(env.python), "-I", str(CHILD), str(folder / "order.json")), variables, OFFLINE, log)
    heard = _Heard(log, on_event)
    try:
        while child.wait(POLL) is None:
            heard.listen()
    finally:
        ended = child.stop(2.0)  # how it really ended, when it has; else it ends here
    heard.listen()
    if heard.failed is not None:
        raise Corrupt(f"the copy is not the model: {heard.failed}", hint="Nothing was published.")
    if heard.done is None or ended.code or ended.signal:
        raise _explain(ended, child.tail())
    said = heard.done
    probes = {text: tuple(ids) for text, ids in said["probes"].items()}
    return Copied(said["versions"], said["greedy"], probes)


class _Heard:
    """Reads the events out of the child's log, in which libraries write too."""

    def __init__(self, log: Path, on_event: OnEvent) -> None:
        self._log, self._on_event, self._seen = log, on_event, 0
        self.done: dict[str, Any] | None = None
        self.failed: str | None = None

    def listen(self) -> None:
        """Pass on what was said since the last time; only whole lines count."""
        try:
            data = self._log.read_bytes()[self._seen :]
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._seen += len(whole)
        for line in logs.clean(whole).splitlines():
            if line.startswith('{"kind"'):
                self._hear(json.loads(line))

    def _hear(self, said: Mapping[str, Any]) -> None:
        if said["kind"] == "done":
            self.done = said["data"]
        elif said["kind"] == "failed":
            self.failed = said["message"]
        else:
            self._on_event(Event("phase", said["name"], said["message"]))


def _explain(ended: proc.Exit, text: str) -> MiyabiError:
    if ended.out_of_memory:
        return MachineLimit("the copy was killed, most likely for lack of memory", hint="Close other programs.")
    if "No space left" in text:
        return DiskFull("the copy could not be written whole", hint="Free some space, then run the command again.")
    lines = [line[:300] for line in text.splitlines() if line.strip()][-SAID:]
    how = f"died of signal {ended.signal}" if ended.signal else f"failed ({ended.code or ended.errno})"
    return MiyabiError(f"reading the GGUF file {how}", hint="\n".join(("Its last lines:", *lines)))
