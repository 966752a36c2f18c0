"""What Ollama says and is told: names, addresses, rows, and the lines of its streams; pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from miyabi_llm.backends.base import ModelState, Unsupported
from miyabi_llm.errors import ServerFailed

LINE_MOST = 8 << 20  # bytes of one line of a stream: what Ollama's own client takes at most

_FROM = re.compile(r"^FROM .*sha256-([0-9a-f]{64})\s*$", re.M)
_ADAPTER = re.compile(r"^ADAPTER ", re.M)
_NUM_CTX = re.compile(r"^num_ctx\s+(\d{1,12})\s*$", re.M)


class Ndjson:
    """Takes bytes as they come, gives the JSON objects of whole lines. Raises ServerFailed on anything else."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """The objects that `piece` completes."""
        self._rest += piece
        *lines, rest = self._rest.split(b"\n")
        if len(rest) > LINE_MOST:
            raise ServerFailed(f"a line of more than {LINE_MOST >> 20} MiB in an answer that comes in lines")
        self._rest = rest
        for line in lines:
            yield from _object(bytes(line))

    def finish(self) -> Iterator[dict[str, Any]]:
        """The object of a last line without an end."""
        rest, self._rest = bytes(self._rest), bytearray()
        yield from _object(rest)


def _object(line: bytes) -> Iterator[dict[str, Any]]:
    if not line.strip():
        return
    value = _json(line)
    if not isinstance(value, dict):
        said = line[:200].decode("utf-8", "replace")
        raise ServerFailed(f"an answer that comes in lines of JSON holds {said!r}", hint="Is it Ollama that answers?")
    yield value


@dataclass(frozen=True, slots=True)
class Shown:
    """What `/api/show` says of a model, as far as we look. `digest` is the sha256 of the weights it runs from.

    `parameters` is a count; None and empty where the server is silent. `remote_host` is set for models that run
    elsewhere.
    """

    architecture: str = ""
    parameters: int | None = None
    quantization: str = ""
    digest: str = ""
    num_ctx: int | None = None
    template: str = ""
    remote_host: str = ""
    adapted: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One model of `/api/tags`. `size` in bytes, of all its layers."""

    name: str
    size: int
    remote_host: str = ""


@dataclass(frozen=True, slots=True)
class Create:
    """The body of `/api/create`: `files` and `adapters` map names to sha256; `source` names a model that is there."""

    model: str
    source: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """As it goes over the wire; `texts` are template, system and license."""
        said: dict[str, Any] = {"model": self.model, "stream": True}
        if self.source:
            said["from"] = self.source
        for key, digests in (("files", self.files), ("adapters", self.adapters)):
            if digests:
                said[key] = {name: f"sha256:{sha}" for name, sha in digests.items()}
        if self.parameters:
            said["parameters"] = dict(self.parameters)
        return said | {k: v for k, v in self.texts.items() if v}


def same(one: str, other: str) -> bool:
    """Whether two names mean the same model: letter case does not count, no tag means `latest`. Pure."""
    return tagged(one).lower() == tagged(other).lower()


def tagged(name: str) -> str:
    """The name with its tag. Pure."""
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def is_cloud(name: str) -> bool:
    """Whether the name alone says that the model runs at Ollama's own service. Pure."""
    tag = tagged(name).rsplit(":", 1)[-1].lower()
    return tag == "cloud" or tag.endswith("-cloud")


def refuse_cloud(name: str) -> None:
    """Raise Unsupported for a name of a model that runs elsewhere."""
    if is_cloud(name):
        raise elsewhere(name, "ollama.com")


def elsewhere(name: str, host: str) -> Unsupported:
    """The error for a model that would send what you say to `host`."""
    return Unsupported(
        f"{name} does not run on this machine but at {host}: refused", hint="Choose a model with weights."
    )


def address(text: str) -> str:
    """The address a client uses for a value of OLLAMA_HOST, by Ollama's own rules; wildcards become loopback. Pure."""
    text = text.strip().strip("\"'")
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "http", text
    usual = {"http": 80, "https": 443}.get(scheme, 11434) if found else 11434
    if not found and text == "ollama.com":
        scheme, usual = "https", 443
    hostport = rest.partition("/")[0]
    bare = hostport.strip("[]")
    host, port = hostport, ""
    if hostport.startswith("[") and "]:" in hostport:
        host, _, port = hostport[1:].partition("]:")
    elif hostport.count(":") == 1:
        host, _, port = hostport.partition(":")
    else:
        host = bare  # a plain name, or an IPv6 address without a port
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 and int(port) <= 65535 else usual
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{number}" if ":" in host else f"{scheme}://{host}:{number}"


def host_of(url: str) -> str:
    """The host in an address, without brackets. Pure."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def go_seconds(seconds: float) -> str:
    """A duration for OLLAMA_KEEP_ALIVE: 0 and less mean for ever, which is -1 there. Pure."""
    return "-1" if seconds <= 0 else f"{seconds:g}s"


def read_rows(said: object) -> list[dict[str, Any]]:
    rows = said.get("models") if isinstance(said, dict) else None
    return [r for r in rows if isinstance(r, dict)] if isinstance(rows, list) else []


def read_row(row: Mapping[str, Any]) -> Row | None:
    name = row.get("model") or row.get("name")
    remote = row.get("remote_host")
    if not isinstance(name, str):
        return None
    return Row(name, count(row.get("size")) or 0, remote if isinstance(remote, str) else "")


def read_state(row: Mapping[str, Any]) -> ModelState | None:
    name = row.get("model") or row.get("name")
    if not isinstance(name, str):
        return None
    expires = row.get("expires_at")
    return ModelState(
        name,
        "loaded",
        memory=count(row.get("size")),
        gpu_memory=count(row.get("size_vram")) or 0,
        ctx=count(row.get("context_length")) or None,
        expires=expires if isinstance(expires, str) else None,
    )


def read_shown(said: object) -> Shown:
    if not isinstance(said, dict):
        raise ServerFailed("/api/show answers with something else than a model")
    info, details = (v if isinstance(v, dict) else {} for v in (said.get("model_info"), said.get("details")))
    origin = _FROM.search(_text(said.get("modelfile")))
    ctx = _NUM_CTX.search(_text(said.get("parameters")))
    return Shown(
        architecture=_text(info.get("general.architecture")),
        parameters=count(info.get("general.parameter_count")) or None,
        quantization=_text(details.get("quantization_level")),
        digest=origin[1] if origin else "",
        num_ctx=int(ctx[1]) if ctx else None,
        template=_text(said.get("template")),
        remote_host=_text(said.get("remote_host")),
        adapted=bool(_ADAPTER.search(_text(said.get("modelfile")))),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def count(value: object) -> int | None:
    """A whole number of things; what is none of that is None."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return value


def _json(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def decode_params(text: str) -> dict[str, Any]:
    """Ollama's own `params.json` of a pulled model; empty when it is not an object. Pure."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
