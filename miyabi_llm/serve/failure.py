"""Why a server died, in words that say what to do: read from its exit and its last words."""

from __future__ import annotations

import errno
import re
import signal

from miyabi_llm.errors import BackendMissing, MachineLimit, MiyabiError, PortTaken, ServerFailed
from miyabi_llm.proc import Exit
from miyabi_llm.types import LaunchPlan

LINES = 12  # of the log, in the message; all 8 KiB are in the details

_SMALLER = "Use a smaller --ctx or a smaller quantization; `miyabi-llm fit REF` says what fits."
_INSTALL = "Run `miyabi-llm backend install {tool}`."

# What a log says -> (what that means, what to do). The first that matches decides.
_KNOWN: tuple[tuple[str, str, str], ...] = (
    (r"couldn't bind|[Aa]ddress already in use|bind\(\) failed", "port", ""),
    (
        r"cudaMalloc failed: out of memory|ErrorOutOfDeviceMemory|CUDA error: out of memory|HIP error: out of memory",
        "the GPU has too little memory",
        _SMALLER,
    ),
    (
        r"out of memory|insufficient memory|bad_alloc|failed to allocate|unable to allocate|"
        r"cannot allocate memory|alloc_buffer.*failed",
        "there is too little memory",
        _SMALLER,
    ),
    (r"unknown model architecture: '?(?P<it>[\w.-]+)", "it does not know this model's architecture ({it})", _INSTALL),
    (r"unknown pre-tokenizer type: '?(?P<it>[\w.-]+)", "it does not know this model's tokenizer ({it})", _INSTALL),
    (
        r"(?:error: )?(?:invalid|unknown|unrecognized) (?:argument|option)s?:? +(?P<it>\S+)",
        "it does not know the option {it}",
        "Look at its own --help; what you gave after -- goes to it unchanged.",
    ),
    (
        r"error while loading shared libraries: (?P<it>[^\s:]+)|Library not loaded: (?P<it2>\S+)",
        "a library it needs is missing ({it})",
        _INSTALL,
    ),
    (
        r"invalid magic|failed to read magic|file bounds|corrupted or incomplete|tensor '.+' data is not within",
        "the model's file is damaged, or is no model",
        "Run `miyabi-llm verify REF`.",
    ),
)


def explain(plan: LaunchPlan, ended: Exit, said: str, *, ready: bool) -> MiyabiError:
    """The error for a server that ended by itself. `said` is the end of its log; `ready` whether it had been. Pure."""
    program = plan.argv[0] if plan.argv else plan.backend
    if ended.errno:
        return _cannot_start(program, plan.backend, ended.errno)
    head = f"{plan.endpoint.model}: {plan.backend} {'died' if ready else 'did not start'}"
    details = {"log": said, "exit_code": ended.code, "signal": ended.signal}
    meaning, hint = _meaning(said, plan.backend)
    if meaning == "port":
        port = plan.endpoint.base_url.rpartition(":")[2]
        return PortTaken(f"{head}: port {port} is taken", hint="Give another one with --port.", **details)
    if ended.out_of_memory and meaning is None:
        sure = "killed by the kernel: out of memory" if ended.memory_kills else "killed, most likely for lack of memory"
        return _with_log(MachineLimit, f"{head}: {sure}", _SMALLER.replace("REF", plan.endpoint.model), said, details)
    if ended.signal == signal.SIGILL:
        why = "it uses instructions this processor does not have"
        return _with_log(ServerFailed, f"{head}: {why}", _INSTALL.format(tool=plan.backend), said, details)
    hint = (hint or _LOOK).replace("REF", plan.endpoint.model)
    kind = MachineLimit if meaning and "memory" in meaning else ServerFailed
    return _with_log(kind, f"{head}: {meaning or how(ended)}", hint, said, details)


_LOOK = "`miyabi-llm doctor` judges this machine."


def how(ended: Exit) -> str:
    """How a process ended: `exit code 3`, `killed by SIGSEGV`."""
    if ended.lost:
        return "its guard was killed"
    if ended.signal:
        try:
            return f"killed by {signal.Signals(ended.signal).name}"
        except ValueError:
            return f"killed by signal {ended.signal}"
    return f"exit code {ended.code}"


# What a debugger that the program called on itself says: where it died, not why.
_DEBUGGER = re.compile(r"#\d+ |\[(?:New|Inferior|Thread)\b|Using host libthread_db|\d+\t\S+: No such file")


def last_words(said: str) -> str:
    """The last lines of a log, indented, for the end of a message; empty when it is silent."""
    lines = [line.rstrip()[:500] for line in said.splitlines() if line.strip() and not _DEBUGGER.match(line)]
    return "".join(f"\n  | {line}" for line in lines[-LINES:])


def _with_log(kind: type[MiyabiError], message: str, hint: str, said: str, details: dict[str, object]) -> MiyabiError:
    return kind(message + last_words(said), hint=hint, **details)


def _meaning(said: str, backend: str) -> tuple[str | None, str | None]:
    for pattern, meaning, hint in _KNOWN:
        if m := re.search(pattern, said):
            found = next((v for v in m.groupdict().values() if v), "")
            return meaning.format(it=found), hint.format(tool=backend)
    return None, None


def _cannot_start(program: str, backend: str, number: int) -> MiyabiError:
    why = {
        errno.ENOENT: "it, or the interpreter or loader it names, is missing",
        errno.ENOEXEC: "it is not a program of this machine",
        errno.EACCES: "it is not executable",
    }.get(number, errno.errorcode.get(number, str(number)))
    return BackendMissing(f"{program} cannot be started: {why}", hint=_INSTALL.format(tool=backend))
