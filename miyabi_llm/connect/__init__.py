"""Point a client program at a running server: what to set where, printed, or merged into the client's own file."""

from miyabi_llm.connect.clients import CLIENTS, connection
from miyabi_llm.connect.hosts import HOSTS, host_settings, passed
from miyabi_llm.connect.merge import apply, preview
from miyabi_llm.connect.values import GATEWAY, Connection, FileSettings, KeySource, Target, Written

__all__ = [
    "CLIENTS",
    "GATEWAY",
    "HOSTS",
    "Connection",
    "FileSettings",
    "KeySource",
    "Target",
    "Written",
    "apply",
    "connection",
    "host_settings",
    "passed",
    "preview",
]
