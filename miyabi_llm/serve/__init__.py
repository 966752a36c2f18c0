"""Serve a model: start a backend, prove that it is ours and works, keep it alive, stop it, and know what runs."""

from miyabi_llm.serve.run import forever, running
from miyabi_llm.serve.values import Limits, ServerInfo

__all__ = ["Limits", "ServerInfo", "forever", "running"]
