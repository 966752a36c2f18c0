"""Proof that a prompt stays on this machine: the address is loopback, and Ollama itself runs the model here."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from miyabi_llm.errors import ModelMissing, NetworkError, Unsafe
from miyabi_llm.types import Endpoint


def refuse_remote(base_url: str) -> None:
    """Raise Unsafe unless every address of the host is this machine's loopback, NetworkError when it has none."""
    host = urlsplit(base_url).hostname or ""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as e:
        raise NetworkError(f"{host or base_url} has no address: {e}", hint="`miyabi-llm ps` lists what runs.") from e
    far = sorted(text for text in found if not _loopback(text))
    if far or not found:
        raise Unsafe(
            f"{base_url} is not this machine ({', '.join(far)}): these tools ask nobody else",
            hint="Serve the model here: `miyabi-llm serve MODEL --detach`.",
        )


def refuse_remote_model(endpoint: Endpoint) -> None:
    """Raise Unsupported when the Ollama on `endpoint` would hand its model's prompts on, ModelMissing without it.

    The name proves nothing (`ollama cp` gives a cloud model any name): what the server shows of the model does.
    """
    from miyabi_llm.backends.ollama_api import OllamaApi
    from miyabi_llm.backends.ollama_values import elsewhere, refuse_cloud, same

    refuse_cloud(endpoint.model)
    with OllamaApi(endpoint) as api:
        shown = api.show(endpoint.model)
        if shown is None:
            raise missing_in_ollama(endpoint.model, tuple(row.name for row in api.tags() if not row.remote_host))
        if shown.remote_host:
            raise elsewhere(endpoint.model, shown.remote_host)
        for row in api.tags():
            if same(row.name, endpoint.model) and row.remote_host:
                raise elsewhere(endpoint.model, row.remote_host)


def missing_in_ollama(name: str, known: tuple[str, ...]) -> ModelMissing:
    """The error for a model Ollama does not have. Pure."""
    here = f"It has {', '.join(known[:8])}. " if known else ""
    return ModelMissing(f"Ollama has no model {name!r}", hint=f"{here}`ollama pull {name}` brings it.")


def _loopback(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
