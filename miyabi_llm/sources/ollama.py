"""Models of an Ollama registry: a bounded manifest, layers by digest, no Ollama needed."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from miyabi_llm.config import Settings
from miyabi_llm.errors import AccessDenied, Corrupt, ModelMissing, Unsafe
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.sources import answers
from miyabi_llm.sources.base import Part
from miyabi_llm.sources.net import Credential, Session, origin
from miyabi_llm.sources.transfer import download
from miyabi_llm.sources.tries import Limits, get, retried
from miyabi_llm.types import Listing, OnEvent, RemoteFile

MANIFEST_MOST = 1 << 20  # bytes
LAYERS_MOST = 256
SIZE_MOST = 1 << 43  # bytes, 8 TiB
TOKEN_MOST = 1 << 16  # bytes of a token answer
ACCEPT = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"

_PREFIX = "application/vnd.ollama.image."
# layer kind -> the file's name in the artifact
MEDIA_TYPES = {
    "model": "model.gguf",
    "projector": "projector.gguf",
    "adapter": "adapter.gguf",
    "template": "template",
    "system": "system",
    "params": "params.json",
    "messages": "messages.json",
    "license": "license",
}
_ONE = ("model", "template", "params")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_CHALLENGE = re.compile(r'([a-z]+)="([^"\x00-\x1f]{0,1024})"', re.ASCII)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a manifest, checked."""

    kind: str
    digest: Digest
    size: int


class OllamaSource:
    """The registry at `settings.ollama_registry`."""

    scheme = "ollama"

    def __init__(self, settings: Settings, limits: Limits | None = None) -> None:
        self._settings, self._limits = settings, limits or Limits(connections=max(1, settings.connections))
        self._registry = settings.ollama_registry.rstrip("/")
        self._credentials: dict[str, Credential] = {}

    def list(self, ref: ModelRef) -> Listing:
        """The layers of `ref` (tag `latest` when it has none).

        Raises ModelMissing, AccessDenied, NetworkError, Corrupt (a manifest that is none), Unsafe (a bad realm).
        """
        tag, repo = ref.revision or "latest", _repo(ref)
        file = RemoteFile(str(ref), None, None, (f"{self._registry}/v2/{repo}/manifests/{tag}",))
        with Session(self._settings, wire=self._limits.wire) as session, _explained(ref):
            body = self._manifest(session, file, repo)
        layers, notes = parse_manifest(body, str(ref))
        files = tuple(
            RemoteFile(name, layer.size, layer.digest, (f"{self._registry}/v2/{repo}/blobs/sha256:{layer.digest}",))
            for name, layer in _named(layers)
        )
        card = {"registry": self._registry, "manifest_sha256": hashlib.sha256(body).hexdigest()}
        return Listing(ref=ref, resolved=ref.pinned(tag), format="gguf", files=files, notes=notes, card=card)

    def fetch(self, file: RemoteFile, part: Part, on_event: OnEvent) -> None:
        """Write one layer into `part`."""
        repo = file.urls[0].removeprefix(f"{self._registry}/v2/").partition("/blobs/")[0]
        download(file, part, self._settings, on_event, credential=self._credentials.get(repo), limits=self._limits)

    def _manifest(self, session: Session, file: RemoteFile, repo: str) -> bytes:
        """The manifest's bytes; when the registry asks for a token first, with one."""
        headers = {"Accept": ACCEPT}

        def ask() -> tuple[bytes, str]:
            with session.open(file.urls[0], headers=headers) as response:
                if response.status == 401:
                    return b"", response.headers.get("www-authenticate", "")[:8192]
                answers.check_status(response, file)
                return response.read(MANIFEST_MOST), ""

        body, challenge = retried(ask, file, self._limits)
        if not challenge:
            return body
        credential = self._credentials[repo] = self._token(session, challenge)
        return get(session, file, MANIFEST_MOST, headers=headers, credential=credential, limits=self._limits)

    def _token(self, session: Session, challenge: str) -> Credential:
        """An anonymous token from the realm of the challenge, which must be the registry itself."""
        fields = dict(_CHALLENGE.findall(challenge))
        try:
            realm, home = httpx.URL(fields.pop("realm", "")), httpx.URL(self._registry)
        except httpx.InvalidURL as e:
            raise Unsafe(f"{self._registry} names no place for its login: {e}") from e
        if not challenge.lower().startswith("bearer ") or origin(realm) != origin(home):
            raise Unsafe(f"{self._registry} wants a login at {realm.host or 'nowhere'}, which is not itself: refused")
        params = {k: v for k, v in fields.items() if k in ("service", "scope")}
        file = RemoteFile("token", None, None, (str(realm.copy_merge_params(params)),))
        document = _json(get(session, file, TOKEN_MOST, limits=self._limits), "the registry's token")
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str):
            raise AccessDenied(f"{self._registry} gives no token")
        return Credential.bearer(self._registry, token)


def parse_manifest(body: bytes, what: str) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """The layers we know of a manifest, and notes on those left out. Raises Corrupt; pure."""
    entries = _json(body, f"the manifest of {what}").get("layers")
    if not isinstance(entries, list) or not 0 < len(entries) <= LAYERS_MOST:
        raise Corrupt(f"the manifest of {what} has no sensible number of layers")
    layers: dict[Digest, Layer] = {}
    notes = []
    for number, entry in enumerate(entries):
        layer = _layer(entry, f"layer {number} of {what}")
        if layers.setdefault(layer.digest, layer) != layer:
            raise Corrupt(f"layer {number} of {what} contradicts another layer of the same digest")
    known = tuple(layer for layer in layers.values() if layer.kind in MEDIA_TYPES)
    counts = Counter(layer.kind for layer in known)
    unknown = sorted({layer.kind for layer in layers.values()} - set(MEDIA_TYPES))
    if not counts["model"]:
        raise Corrupt(
            f"{what} has no GGUF layer, only {', '.join(unknown) or 'others'}",
            hint="It is made for another engine; choose another tag.",
        )
    if crowd := [k for k in _ONE if counts[k] > 1]:
        raise Corrupt(f"{what} has {counts[crowd[0]]} {crowd[0]} layers")
    if unknown:
        notes.append(f"layers not taken: {', '.join(unknown)}")
    return known, tuple(notes)


def _layer(entry: Any, what: str) -> Layer:
    if not isinstance(entry, dict):
        raise Corrupt(f"{what} is no object")
    media, text, size = entry.get("mediaType"), entry.get("digest"), entry.get("size")
    if not isinstance(media, str) or len(media) > 200:
        raise Corrupt(f"{what} has no media type")
    match = _DIGEST.fullmatch(text) if isinstance(text, str) else None
    if not match:
        raise Corrupt(f"{what} has no sha256 digest: {str(text)[:90]!r}")
    if type(size) is not int or not 0 < size <= SIZE_MOST:
        raise Corrupt(f"{what} has the size {str(size)[:40]}")
    kind = media.removeprefix(_PREFIX) if media.startswith(_PREFIX) else "?"
    return Layer(kind if re.fullmatch(r"[a-z.]{1,40}", kind, re.ASCII) else "?", Digest(match[1]), size)


def _named(layers: tuple[Layer, ...]) -> Iterator[tuple[str, Layer]]:
    """Each layer with its file name; the second licence is `license-2`."""
    seen: Counter[str] = Counter()
    for layer in layers:
        seen[layer.kind] += 1
        stem, dot, end = MEDIA_TYPES[layer.kind].partition(".")
        yield (f"{stem}-{seen[layer.kind]}{dot}{end}" if seen[layer.kind] > 1 else stem + dot + end), layer


def _repo(ref: ModelRef) -> str:
    return ref.name if "/" in ref.name else f"library/{ref.name}"


def _json(body: bytes, what: str) -> Mapping[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise Corrupt(f"{what} is not JSON: {type(e).__name__}") from e
    if not isinstance(document, dict):
        raise Corrupt(f"{what} is not a JSON object")
    return document


@contextmanager
def _explained(ref: ModelRef) -> Iterator[None]:
    try:
        yield
    except ModelMissing as e:
        raise ModelMissing(f"{ref} is not in the registry", hint="Check name and tag on the model's page.") from e
    except AccessDenied as e:
        raise AccessDenied(f"{ref}: the registry refuses it", hint="Only public models can be pulled.") from e
