"""The errors a person can act on: what went wrong, what to type next, and the exit code."""

from __future__ import annotations

from typing import Any


class MiyabiError(Exception):
    """An explained failure: one line that says what and where, a hint with the next command.

    `exit_code` follows the command line's contract: 1 failed, 2 wrong usage, 3 a needed program or model
    is missing, 4 the machine cannot do it, 5 a gate failed, 6 a measurement was inconclusive, 7 it was
    invalid. `code` is the stable machine-readable name printed by `--json`.
    """

    exit_code = 1
    code = "failed"

    def __init__(self, message: str, *, hint: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def as_dict(self) -> dict[str, Any]:
        """The error as `--json` prints it."""
        body = {"code": self.code, "message": self.message, "hint": self.hint, "exit_code": self.exit_code}
        return {"error": body | ({"details": self.details} if self.details else {})}


class BadUsage(MiyabiError):
    """The words of the command or of a configuration file are wrong."""

    exit_code = 2
    code = "usage"


class Missing(MiyabiError):
    """A needed program or model is not here."""

    exit_code = 3
    code = "missing"


class ModelMissing(Missing):
    """The named model is not in the store, or not at its source."""

    code = "model-missing"


class BackendMissing(Missing):
    """The program that should run the model is not installed, or too old."""

    code = "backend-missing"


class AccessDenied(MiyabiError):
    """The source wants a login or an accepted licence."""

    code = "access-denied"


class NetworkError(MiyabiError):
    """A remote end did not answer, or not as agreed."""

    code = "network"


class AnswerCut(NetworkError):
    """An answer ended before its end: what came is not the whole."""

    code = "answer-cut"


class Corrupt(MiyabiError):
    """Bytes are not what their hash, size or header says."""

    code = "corrupt"


class Unsafe(MiyabiError):
    """Refused: the file could run code, or the name leaves its place."""

    code = "unsafe"


class MachineLimit(MiyabiError):
    """The machine cannot do it: memory, disk, GPU."""

    exit_code = 4
    code = "machine-limit"


class DiskFull(MachineLimit):
    """Not enough disk for the bytes that are coming."""

    code = "disk-full"


class ServerFailed(MiyabiError):
    """A server did not start, died, or is not the one we started; carries its last log lines."""

    code = "server-failed"


class PortTaken(ServerFailed):
    """Somebody else listens on the wanted port."""

    code = "port-taken"


class PromptTooLong(MachineLimit):
    """The prompt does not fit the model's context."""

    code = "prompt-too-long"


class GateFailed(MiyabiError):
    """A measured gate was not met."""

    exit_code = 5
    code = "gate-failed"


class Inconclusive(MiyabiError):
    """A measurement could not decide."""

    exit_code = 6
    code = "inconclusive"


class InvalidMeasurement(MiyabiError):
    """A measurement was disturbed and must not be used."""

    exit_code = 7
    code = "invalid-measurement"
