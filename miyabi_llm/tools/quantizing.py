"""Running llama-quantize, llama-perplexity and llama-bench: guarded children whose output is read as it comes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm import proc
from miyabi_llm.errors import BadUsage, Corrupt, DiskFull, InvalidMeasurement, MachineLimit, MiyabiError
from miyabi_llm.proc import logs
from miyabi_llm.tools import quantize_output as output
from miyabi_llm.tools.program import Program, run_briefly
from miyabi_llm.types import Event, OnEvent, silent

QUANTIZE, PERPLEXITY, BENCH = "llama-quantize", "llama-perplexity", "llama-bench"
EXPORT, IMATRIX, SPLIT = "llama-export-lora", "llama-imatrix", "llama-gguf-split"
PROGRAMS = (QUANTIZE, PERPLEXITY, BENCH)
POLL = 0.1  # seconds between looks at what a program has written
LOG_LIMIT = 64 << 20  # bytes; a model of many thousand tensors prints about one
SAID = 6  # lines of a program that go into an error

# A program is started in the work's folder: what it writes down of a file's name then says nothing of this machine.
_CHDIR = "import os,sys;os.chdir(sys.argv[1]);os.execv(sys.argv[2],sys.argv[2:])"
WITHIN = (sys.executable, "-I", "-S", "-c", _CHDIR)

Watch = Callable[[str], bool]  # given all the text so far; True ends the program


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended: all it printed, and whether `watch` ended it."""

    text: str
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """How text is fed to a model: windows of `ctx` tokens, at most `chunks` of them, the second half scored.

    `batch` tokens go in at a time: the running table grows by `batch / ctx` lines.
    """

    ctx: int = 256
    chunks: int = 16
    batch: int = 512


@dataclass(frozen=True, slots=True)
class Tools:
    """The programs and where they write. `threads` None leaves the number to the programs.

    `extra` are words for llama-quantize, in which files of `folder` go by their bare names: it writes them into its
    result. No program outlives us: each runs under the same guard as a server, and dies when we are killed.
    """

    programs: Mapping[str, Program]
    env: Mapping[str, str]
    folder: Path
    threads: int | None = None
    extra: tuple[str, ...] = ()

    @property
    def version(self) -> tuple[str, int | None, str | None]:
        """Version, build and commit, by the first of the programs that says them: llama-quantize itself does not."""
        said = next((p for p in self.programs.values() if p.version or p.commit), self.programs[QUANTIZE])
        return said.version, said.build, said.commit

    def types(self) -> dict[str, str]:
        """The types that this llama-quantize knows, by every word it takes for them. Raises MiyabiError."""
        said = run_briefly((*self.programs[QUANTIZE].argv, "--help"), env=self.env, timeout=20)
        known = output.parse_types(said.text)
        if not known:
            raise MiyabiError(
                f"{self.programs[QUANTIZE].path} lists no quantization types: {said.trouble or said.text[:200]}"
            )
        return known

    def dry_run(self, model: Path, kind: str) -> output.DryRun:
        """What quantizing `model` to `kind` would give, tensor by tensor. Raises MiyabiError."""
        args = ["--allow-requantize", "--dry-run", *self.extra, str(model), kind]
        try:
            ended = self._run(QUANTIZE, args)
        except MiyabiError as e:
            if not self.extra or type(e) is not MiyabiError:
                raise
            raise BadUsage(f"{QUANTIZE} does not take {' '.join(self.extra)} for {kind}", hint=e.hint) from e
        plan = output.parse_dry_run(ended.text)
        if plan is None:
            raise MiyabiError(f"the plan of {QUANTIZE} for {kind} cannot be read", hint=_last(ended.text))
        return plan

    def quantize(
        self, model: Path, target: Path, kind: str, *, requantize: bool, on_event: OnEvent = silent
    ) -> tuple[str, ...]:
        """Write `model` as `kind` to `target`; the command. Raises BadUsage, Corrupt, MachineLimit, MiyabiError."""
        args = [*(["--allow-requantize"] if requantize else []), *self.extra, str(model), str(target), kind]
        args += [str(self.threads)] if self.threads else []

        def watch(text: str) -> bool:
            if at := output.tensors_done(text[-8192:]):
                on_event(Event("progress", kind, done=at[0] - 1, total=at[1], unit="tensors"))
            return False

        self._run(QUANTIZE, args, watch)
        return (QUANTIZE, *args)

    def record(self, model: Path, text: Path, logits: Path, window: Window, on_event: OnEvent = silent) -> Ended:
        """Write the base's probabilities to `logits`. Whether they are whole is the caller's to see."""

        def watch(said: str) -> bool:
            if at := output.chunks_done(said):
                on_event(Event("progress", "base", done=at[0], total=at[1], unit="chunks"))
            return False

        args = [*self._reading(model, window), "-f", str(text), "--chunks", str(window.chunks)]
        args += ["--kl-divergence-base", str(logits)]
        try:
            return self._run(PERPLEXITY, args, watch)
        except MiyabiError as e:
            if type(e) is not MiyabiError:
                raise
            return self._run(PERPLEXITY, args, watch)  # the lines that say why are lost at times: once more

    def compare(
        self,
        model: Path,
        logits: Path,
        window: Window,
        hopeless: Callable[[output.Row], bool],
        on_event: OnEvent = silent,
    ) -> Ended:
        """Compare `model` with the recorded base; ended early when a line of the table is `hopeless`."""

        def watch(said: str) -> bool:
            rows = output.parse_rows(said)
            if rows:
                on_event(Event("progress", "compare", done=rows[-1].chunk, unit="chunks"))
            return bool(rows) and hopeless(rows[-1])

        args = [*self._reading(model, window), "--kl-divergence-base", str(logits), "--kl-divergence"]
        return self._run(PERPLEXITY, args, watch)

    def bench(self, model: Path, prompt: int = 128, generated: int = 32) -> output.Bench | None:
        """Speed of `model`: two short runs of each kind. None when the program's answer cannot be read."""
        args = ["-m", str(model), "-p", str(prompt), "-n", str(generated), "-r", "2", "-o", "json"]
        return output.parse_bench(self._run(BENCH, [*args, *self._threads()]).text)

    def imatrix(self, model: Path, text: str, target: str, on_event: OnEvent = silent) -> None:
        """Write an importance matrix of `model` on a text to `target`; both are names in `folder`.

        Raises BadUsage for a text that is too short, MiyabiError.
        """

        def watch(said: str) -> bool:
            if at := output.chunks_done(said):
                on_event(Event("progress", "imatrix", done=at[0], total=at[1], unit="chunks"))
            return False

        args = ["-m", str(model), "-f", text, "-o", target, "-c", "512", "--parse-special", *self._threads()]
        self._run(IMATRIX, args, watch)

    def split(self, model: Path, prefix: Path, most: int) -> None:
        """Cut `model` into files of at most `most` tensors, PREFIX-00001-of-0000N.gguf. Raises MiyabiError."""
        self._run(SPLIT, ["--split", "--split-max-tensors", str(most), str(model), str(prefix)])

    def merge(self, model: Path, adapter: Path, target: Path) -> None:
        """Write `model` with the LoRA adapter merged into it to `target`. Raises MiyabiError."""
        self._run(EXPORT, ["-m", str(model), "--lora", str(adapter), "-o", str(target), *self._threads()])

    def _reading(self, model: Path, window: Window) -> list[str]:
        sizes = ["-c", str(window.ctx), "-b", str(window.batch), "-ub", str(window.batch), "--seed", "0"]
        return ["-m", str(model), "--check-tensors", *sizes, *self._threads()]

    def _threads(self) -> list[str]:
        return ["-t", str(self.threads)] if self.threads else []

    def _run(self, name: str, args: list[str], watch: Watch = lambda _: False) -> Ended:
        """Run one program to its end, or to `watch`'s. Raises the explained error of a failure."""
        program = self.programs[name]
        log = self.folder / f"{name}.log"
        log.unlink(missing_ok=True)
        # LLAMA_ARG_*: a variable set for a server must not change a measurement
        env = {k: v for k, v in self.env.items() if not k.startswith("LLAMA_ARG_")}
        child = proc.launch((*WITHIN, str(self.folder), *program.argv, *args), env, {}, log, limit=LOG_LIMIT)
        seen, stopped, ended = -1, False, None
        try:
            while ended is None and not stopped:
                ended = child.wait(POLL)
                if (size := logs.size(log)[1]) != seen:
                    seen, stopped = size, watch(_text(log))
        finally:
            ended = child.stop(2.0)  # how it really ended, when it has; else it ends here
        text = _text(log)
        if stopped or (ended.code == 0 and ended.signal == 0 and not ended.errno and not ended.lost):
            return Ended(text, stopped)
        raise explain(name, ended, text)


def explain(name: str, ended: proc.Exit, text: str, *, short: bool = False) -> MiyabiError:
    """The error behind a program's end; `short` says that its file is not whole. Pure."""
    if ended.out_of_memory:
        return MachineLimit(
            f"{name} was killed, most likely for lack of memory", hint="Close other programs, then try again."
        )
    if "requires an imatrix" in text:
        return BadUsage(
            "this type needs an importance matrix", hint="`--imatrix auto` makes one; larger types need none: Q3_K_S."
        )
    if "you need at least" in text:
        return too_short(text)
    if "iostream error" in text or "No space left" in text:
        return DiskFull(f"{name} could not write all of its file", hint="Free some space, then run the command again.")
    if "requantizing from type" in text:
        return InvalidMeasurement("the source is quantized already", hint="Go on with --requantize.")
    if "has invalid data" in text or "invalid data" in text or "nan" in _last(text).lower():
        return Corrupt(
            f"{name} found numbers that are none: {_line(text, 'invalid')}",
            hint="The source is damaged; pull it again.",
        )
    how = (
        f"died of signal {ended.signal}"
        if ended.signal
        else f"could not be started (errno {ended.errno})"
        if ended.errno
        else f"failed ({ended.code})"
    )
    if short:
        return DiskFull(f"{name} did not write all of its file", hint="Free some space, then run the command again.")
    return MiyabiError(f"{name} {how}", hint=_last(text), exit=ended.code, signal=ended.signal)


def too_short(text: str) -> BadUsage:
    """The error for an evaluation text that fills no window; `text` is what the program said of it, if anything."""
    said = _line(text, "tokenizes to only")
    return BadUsage(f"the evaluation text is too short{said and f': {said}'}", hint="Give a longer --eval FILE.")


def _line(text: str, word: str) -> str:
    """The first line with `word`, without the time and the function that the programs put before it."""
    found = next((line.strip()[:200] for line in text.splitlines() if word in line), "")
    return re.sub(r"^[\d.]+ [A-Z] (\w+: *)?", "", found)


def _last(text: str) -> str:
    lines = [line.rstrip()[:300] for line in text.splitlines() if line.strip()]
    return "Its last lines:\n" + "\n".join(f"  | {line}" for line in lines[-SAID:])


def _text(log: Path) -> str:
    try:
        return logs.clean(log.read_bytes())
    except OSError:
        return ""
