"""Serve a model: start a backend, prove that it is ours and works, keep it alive, stop it, and know what runs."""

from miyabi_llm.serve.attach import attach
from miyabi_llm.serve.detach import detach
from miyabi_llm.serve.keys import check_exposure, new_key, read_key
from miyabi_llm.serve.manage import find_running, follow, last_lines, promised, ps, running_as, stop
from miyabi_llm.serve.run import forever, running
from miyabi_llm.serve.state import Running, name_for
from miyabi_llm.serve.values import Limits, ServerInfo

__all__ = [
    "Limits",
    "Running",
    "ServerInfo",
    "attach",
    "check_exposure",
    "detach",
    "find_running",
    "follow",
    "forever",
    "last_lines",
    "name_for",
    "new_key",
    "promised",
    "ps",
    "read_key",
    "running",
    "running_as",
    "stop",
]
