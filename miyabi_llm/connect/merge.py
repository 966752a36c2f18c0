"""Merge settings into a client's own file: nothing else in it changes, and what it was stays beside it."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from miyabi_llm.connect import envtext, jsontext, tomltext, yamltext
from miyabi_llm.connect.values import FileSettings, Form, Keys, Written
from miyabi_llm.errors import AccessDenied, BadUsage
from miyabi_llm.types import Secret

BACKUP = ".before-miyabi-llm"


class Editor(Protocol):
    """How one form of text is changed."""

    def edit(self, text: str, values: dict[Keys, Any], unset: tuple[Keys, ...] = ()) -> str:
        """The text with settings set and taken out. Raises ValueError when it is not of this form."""

    def has(self, text: str, keys: Keys) -> bool:
        """Whether a setting stands in the text. Raises ValueError."""


_EDITORS: dict[Form, Editor] = {"json": jsontext, "toml": tomltext, "yaml": yamltext, "env": envtext}


def preview(settings: FileSettings) -> str:
    """The settings as a file of their own would say them; keys are masked."""
    return _EDITORS[settings.form].edit("", leaves(settings, reveal=False))


def apply(settings: FileSettings) -> Written:
    """Merge into the file, made if it is missing; the file before is kept beside it when anything changes.

    Raises BadUsage when the file is not of its form, and AccessDenied when it may not be written; nothing is
    touched then.
    """
    path = settings.path.resolve()  # a link into a folder of dotfiles stays a link
    try:
        before = path.read_bytes() if path.exists() else None
        old = (before or b"").decode("utf-8")
        editor = _EDITORS[settings.form]
        removed = tuple(k for k in settings.unset if old.strip() and editor.has(old, k))
        # a text stream would turn \r\n into \n: the file's own line ends are kept
        new = _line_ends(old, editor.edit(old, leaves(settings), removed))
    except PermissionError as e:
        raise AccessDenied(f"{path}: {e.strerror}", hint="Run the command as the user it belongs to.") from e
    except (OSError, ValueError) as e:
        what = f"{path} is no {settings.form} we can change: {e}"
        raise BadUsage(what, hint=f"Mend {path}; it was not touched.") from e
    if before is not None and new == old:
        return Written(settings.path, False)
    try:
        return _replace(settings, path, before, new, removed)
    except OSError as e:
        raise AccessDenied(f"{path}: {e.strerror}", hint="The file was not changed.") from e


def leaves(settings: FileSettings, *, reveal: bool = True) -> dict[Keys, Any]:
    """The settings one by one, by where they stand."""
    found = dict(_flat(settings.values, (), settings.owned))
    return {keys: _text(value, reveal=reveal) for keys, value in found.items()}


def _flat(values: Mapping[str, Any], above: Keys, owned: tuple[Keys, ...]) -> Iterator[tuple[Keys, Any]]:
    for key, value in values.items():
        keys = (*above, key)
        if isinstance(value, Mapping) and keys not in owned:
            yield from _flat(value, keys, owned)
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            yield from (((*keys, str(item["name"])), item) for item in value)
        else:
            yield keys, value


def _text(value: Any, *, reveal: bool) -> Any:
    if isinstance(value, Secret):
        return value.reveal() if reveal else str(value)
    return value


def _line_ends(old: str, new: str) -> str:
    if "\r\n" not in old:
        return new
    return new.replace("\r\n", "\n").replace("\n", "\r\n")


def _replace(settings: FileSettings, path: Path, before: bytes | None, new: str, removed: tuple[Keys, ...]) -> Written:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = stat.S_IMODE(path.stat().st_mode) if before is not None else 0o600
    mode = mode & 0o600 if settings.private else mode
    backup = None
    if before is not None:
        backup = _free(path)
        _write(backup, before, mode)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        _write(draft, new.encode("utf-8"), mode)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    return Written(settings.path, True, backup, tuple(".".join(k) for k in removed))


def _free(path: Path) -> Path:
    """A name for the backup that nothing has yet."""
    backup, number = path.with_name(path.name + BACKUP), 1
    while os.path.lexists(backup):
        number += 1
        backup = path.with_name(f"{path.name}{BACKUP}.{number}")
    return backup


def _write(path: Path, data: bytes, mode: int) -> None:
    """A new file, never readable by more people than `mode` says, on the disk when this returns."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), mode)
