"""The small file beside the output that says whose answers it holds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from miyabi_llm.batch.disk import explained
from miyabi_llm.batch.reading import Input
from miyabi_llm.errors import BadUsage
from miyabi_llm.store.fs import Fs, write_atomic

VERSION = 1
_ANEW = "or begin anew with --restart, which drops the answers that are there"


@dataclass(frozen=True, slots=True)
class State:
    """Of which input (`sha256`, `path` for a person), asked how (`asked`), of which model (None: not asked yet)."""

    sha256: str
    path: str
    asked: str
    model: str | None = None

    @classmethod
    def of(cls, found: Input) -> State:
        """The state of a batch that begins."""
        return cls(found.sha256, str(found.path), found.asked)


def beside(target: Path) -> Path:
    """Where the state of an output file lies."""
    return target.with_name(target.name + ".state.json")


def load(target: Path) -> State | None:
    """The state of `target`; None when there is none. Raises BadUsage on a file that is no state of ours."""
    path = beside(target)
    try:
        value = json.loads(path.read_bytes())
        if value.pop("version") != VERSION:
            raise BadUsage(f"{path} is of another version of this program", hint=f"Finish it there, {_ANEW}.")
        return State(**value)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}") from e
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise BadUsage(f"{path} is not the state of a batch", hint=f"Name another output file, {_ANEW}.") from e


def save(target: Path, state: State) -> None:
    """Replace the state of `target`, durably. Raises DiskFull, MiyabiError."""
    path = beside(target)
    with explained(path):
        write_atomic(Fs(), path, json.dumps({"version": VERSION, **asdict(state)}, indent=1).encode() + b"\n")


def check(target: Path, state: State, found: Input) -> None:
    """Raise BadUsage unless `target` holds answers to these requests."""
    if state.sha256 != found.sha256:
        raise BadUsage(
            f"{target} holds answers to another input: {found.path} was changed since, or is another file",
            hint=f"Put the old input back, write to another file with -o, {_ANEW}.",
        )
    if state.asked != found.asked:
        raise BadUsage(
            f"{target} was begun with other options for its requests (--to, --system, --schema, ...)",
            hint=f"Give the same options again, write to another file with -o, {_ANEW}.",
        )


def bind(target: Path, state: State, model: str) -> State:
    """The state with the model that is asked, saved. Raises BadUsage when another one was asked before."""
    if state.model == model:
        return state
    if state.model is not None:
        raise BadUsage(
            f"{target} holds answers of {state.model or 'the models that the rows name'}, "
            f"not of {model or 'the models that the rows name'}",
            hint=f"Ask the same model again, write to another file with -o, {_ANEW}.",
        )
    bound = replace(state, model=model)
    save(target, bound)
    return bound
