"""llama.cpp's own converters of safetensors, from its pinned source, in an isolated environment of their own."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm import proc
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, Corrupt, DiskFull, MachineLimit, MiyabiError, NetworkError
from miyabi_llm.proc import logs
from miyabi_llm.tools import envs, installed, lock, sdist
from miyabi_llm.tools.alone import alone
from miyabi_llm.tools.running import Shell
from miyabi_llm.types import Event, OnEvent, silent

# What the scripts were run with here. llama.cpp itself pins transformers 4, which cannot read the tokenizers that
# transformers 5 writes.
PINS = (
    "torch==2.13.0",
    "transformers==5.17.0",
    "tokenizers==0.23.3",
    "safetensors==0.8.0",
    "numpy==2.4.6",
    "sentencepiece==0.2.3",
    "protobuf==7.36.2",
)
MODEL, ADAPTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
CHILD = Path(__file__).with_name("converting_child.py")
POLL = 0.1  # seconds between looks at what a child has written
Watch = Callable[[str], None]  # given all that a child has written so far
LOG_LIMIT = 16 << 20  # bytes
SAID = 6  # lines of a child that go into an error
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_PERCENT = re.compile(r"Writing: +(\d{1,3})%")
_UNSUPPORTED = re.compile(r"Model (\w+) is not supported|architecture '?(\w+)'? not supported")


@dataclass(frozen=True, slots=True)
class Look:
    """What the original itself says. `largest` is the largest absolute weight, `bad` names tensors with NaN or inf.

    `probes` are the token gate's texts, each with the token ids of the original's own tokenizer.
    """

    parameters: int
    largest: float
    bad: tuple[str, ...]
    probes: tuple[Mapping[str, Any], ...]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Converter:
    """The scripts and the interpreter that runs them. No child of it outlives us."""

    python: Path
    scripts: Path
    commit: str
    variables: Mapping[str, str]

    def knows(self, architecture: str) -> bool:
        """Whether the scripts name an architecture: asked before a minute is spent on a model they cannot convert."""
        word = f'"{architecture}"'
        return any(word in p.read_text("utf-8") for p in sorted((self.scripts / "conversion").glob("*.py")))

    @contextmanager
    def looking(
        self, folder: Path, probes: Sequence[Mapping[str, Any]], work: Path, on_event: OnEvent = silent
    ) -> Iterator[Callable[[], Look]]:
        """Have every weight read once, and the probes by the original's tokenizer, while the block does other work.

        What is yielded waits for the answer; it raises Corrupt, MiyabiError. With the block the child ends too.
        """
        order = {"job": "look", "folder": str(folder), "probes": list(probes)}
        with self._asking(order, work, on_event) as answer:

            def look() -> Look:
                said = answer()
                probes = tuple(said["probes"])
                return Look(said["parameters"], said["largest"], tuple(said["bad"]), probes, said["versions"])

            yield look

    def scale(self, source: Path, target: Path, factors: Mapping[str, float], work: Path) -> None:
        """Copy an adapter's tensors to `target`, those named multiplied by their factor, all as float32."""
        order = {"job": "scale", "source": str(source), "target": str(target), "factors": dict(factors)}
        with self._asking(order, work, silent) as answer:
            answer()

    def model(self, folder: Path, target: Path, outtype: str, work: Path, on_event: OnEvent = silent) -> None:
        """Write the model in `folder` to `target` as `outtype` (f16, bf16, f32).

        Raises BadUsage for an architecture or a tokenizer that the script does not know, DiskFull, MachineLimit.
        """
        args = [str(folder), "--outfile", str(target), "--outtype", outtype, "--model-name", folder.name]
        self._script(MODEL, args, work, on_event)

    def vocabulary(self, folder: Path, target: Path, work: Path) -> None:
        """Write the tokenizer of the model in `folder` to `target`, without weights: whether it can be converted.

        Raises BadUsage for an architecture or a tokenizer that the script does not know.
        """
        self._script(MODEL, [str(folder), "--outfile", str(target), "--vocab-only"], work, silent)

    def adapter(self, folder: Path, base: Path, target: Path, work: Path) -> None:
        """Write the LoRA adapter in `folder` to `target` in float32; of `base` only configuration and tokenizer."""
        args = [str(folder), "--base", str(base), "--outfile", str(target), "--outtype", "f32"]
        self._script(ADAPTER, args, work, silent)

    def _script(self, name: str, args: list[str], work: Path, on_event: OnEvent) -> None:
        seen = -1

        def watch(text: str) -> None:
            nonlocal seen
            if (found := _PERCENT.findall(text[-4096:])) and int(found[-1]) != seen:
                seen = int(found[-1])
                on_event(Event("progress", "convert", done=seen, total=100, unit="%"))

        # -E, -s: no variable and no package of the user's changes what the script imports; the script's own folder
        # has to stay on the path, so not -I.
        argv = (str(self.python), "-E", "-s", "-B", str(self.scripts / name), *args)
        ended, text = self._run(argv, work / f"{name}.log", watch)
        if ended.code or ended.signal or ended.errno or ended.lost:
            raise explain(name, ended, text)

    @contextmanager
    def _asking(
        self, order: Mapping[str, Any], work: Path, on_event: OnEvent
    ) -> Iterator[Callable[[], dict[str, Any]]]:
        """Our own child doing `order`; its answer can be waited for. Raises Corrupt with what it found wrong."""
        place, result = work / "order.json", work / "answer.json"
        result.unlink(missing_ok=True)
        place.write_text(json.dumps(dict(order) | {"answer": str(result)}), encoding="utf-8")
        argv = (str(self.python), "-I", "-B", str(CHILD), str(place))
        with self._running(argv, work / "child.log") as finish:

            def answer() -> dict[str, Any]:
                ended, text = finish(lambda _: None)
                if ended.code or ended.signal or ended.errno or ended.lost or not result.is_file():
                    raise explain(f"reading {Path(str(order.get('folder') or order.get('source'))).name}", ended, text)
                said: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
                if said.get("wrong"):
                    raise Corrupt(said["wrong"], hint="Nothing was published.")
                for line in said.get("notes", ()):
                    on_event(Event("warning", "convert", line))
                return said

            yield answer

    def _run(self, argv: tuple[str, ...], log: Path, watch: Watch) -> tuple[proc.Exit, str]:
        with self._running(argv, log) as finish:
            return finish(watch)

    @contextmanager
    def _running(self, argv: tuple[str, ...], log: Path) -> Iterator[Callable[[Watch], tuple[proc.Exit, str]]]:
        """A child that ends with the block at the latest; what is yielded waits for it, and tells how it ended."""
        log.unlink(missing_ok=True)
        child = proc.launch(argv, self.variables, QUIET, log, limit=LOG_LIMIT)

        def finish(watch: Watch) -> tuple[proc.Exit, str]:
            while child.wait(POLL) is None:
                watch(_text(log))
            return child.stop(2.0), _text(log)  # how it really ended

        try:
            yield finish
        finally:
            child.stop(2.0)


def get(settings: Settings, on_event: OnEvent = silent) -> Converter:
    """The converter, its environment and its source brought if they are not here.

    Raises Missing when the package index does not give them, NetworkError, also when offline by choice.
    """
    pins = lock.load()
    root = settings.cache / "envs"
    with alone(root, ".convert.lock", on_event) as held:
        shell = Shell(root / "convert.log", settings.env, on_event, held)
        if not any(p.joinpath(envs.MARKER).is_file() for p in root.glob("convert-*")):
            if settings.offline:
                raise NetworkError("the converter is not here, and you are offline", hint=settings.offline_hint)
            on_event(Event("phase", "environment", "the converter's: torch and transformers, about 1 GB on disk"))
        env = envs.make(root, "convert", PINS, shell)
        scripts = _scripts(settings, pins, env.python, shell)
    return Converter(env.python, scripts, pins.commit, settings.env)


def _scripts(settings: Settings, pins: lock.Lock, python: Path, shell: Shell) -> Path:
    """The folder with the pinned scripts: in a build of ours, else unpacked once from the pinned archive."""
    for kept in installed.all_of(settings):
        source = kept.folder / "source"
        same = kept.source.get("sha256") == pins.source.sha256
        if same and (source / MODEL).is_file() and (source / "gguf-py").is_dir() and (source / "conversion").is_dir():
            return source
    own = settings.cache / "converter" / pins.source.sha256[:16]
    if not (own / MODEL).is_file():  # it appears whole or not at all
        if settings.offline:
            raise NetworkError("llama.cpp's source is not here, and you are offline", hint=settings.offline_hint)
        own.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".sdist-", dir=own.parent) as place:
            found = sdist.download(pins.source, python, Path(place), shell)
            sdist.unpack(found, pins.source, own)
    return own


def explain(name: str, ended: proc.Exit, text: str) -> MiyabiError:
    """The error behind a converter's end. Pure."""
    if ended.out_of_memory:
        return MachineLimit(f"{name} was killed, most likely for lack of memory", hint="Close other programs.")
    if "No space left" in text:
        return DiskFull(f"{name} could not write all of its file", hint="Free some space, then run the command again.")
    if m := _UNSUPPORTED.search(text):
        return BadUsage(f"llama.cpp cannot convert {m[1] or m[2]}", hint="Pull a GGUF of this model instead.")
    if "BPE pre-tokenizer was not recognized" in text:
        return BadUsage("llama.cpp does not know this tokenizer", hint="Pull a GGUF of this model instead.")
    lines = [line[:300] for line in text.splitlines() if line.strip()][-SAID:]
    how = f"died of signal {ended.signal}" if ended.signal else f"failed ({ended.code or ended.errno})"
    return MiyabiError(f"{name} {how}", hint="\n".join(("Its last lines:", *(f"  | {line}" for line in lines))))


def _text(log: Path) -> str:
    try:
        return logs.clean(log.read_bytes())
    except OSError:
        return ""
