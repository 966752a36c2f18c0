"""One parser for every way to name a model."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, NewType
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from miyabi_llm.errors import BadUsage

Scheme = Literal["catalog", "hf", "ollama", "https", "file", "pypi"]
Digest = NewType("Digest", str)

SCHEMES: tuple[Scheme, ...] = ("hf", "ollama", "https", "file", "pypi")
LIMIT = 2048  # characters; a longer name is a mistake or an attack

_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_QUANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_VERSION = re.compile(r"[0-9][A-Za-z0-9.!+_-]{0,63}", re.ASCII)

_HINT = (
    "Names look like qwen2.5-coder:1.5b, hf:ORG/REPO:Q4_K_M, hf:ORG/REPO/file.gguf, ollama:NAME:TAG, "
    "https://HOST/file.gguf#sha256=HEX, file:PATH or pypi:DIST==VERSION."
)


def digest(text: str) -> Digest:
    """`text` as a sha256 in lower-case hex; accepts the `sha256:` and `sha256-` prefixes. Raises BadUsage."""
    bare = text.removeprefix("sha256:").removeprefix("sha256-").lower()
    if not _HEX.fullmatch(bare):
        raise BadUsage(f"not a sha256: {text[:80]!r}", hint="A sha256 is 64 hexadecimal digits.")
    return Digest(bare)


def is_safe_name(name: str) -> bool:
    """Whether `name` is a plain relative file path: no absolute, `..`, empty or hidden-control part."""
    if not name or len(name) > 1024 or "\\" in name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        return False
    parts = name.split("/")
    return all(p not in ("", ".", "..") and len(p.encode(errors="replace")) <= 255 and ":" not in p for p in parts)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model's name, parsed once: `str(ModelRef.parse(s))` is its canonical spelling.

    `name` is `ORG/REPO` (hf), `[NAMESPACE/]NAME` (ollama, catalog), a URL without fragment (https),
    a path (file) or a distribution (pypi). `revision` is a hub revision, an Ollama tag, a catalog tag
    or a package version. `quant` and `file` choose inside a repository; at most one is set.
    `sha256` pins a URL's bytes.
    """

    scheme: Scheme
    name: str
    revision: str | None = None
    quant: str | None = None
    file: str | None = None
    sha256: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Parse a name; raises BadUsage that says which part is wrong."""
        text = text.strip()
        if not text:
            raise BadUsage("a model's name is empty", hint=_HINT)
        if len(text) > LIMIT:
            raise BadUsage(f"a model's name has {len(text)} characters; {LIMIT} at most", hint=_HINT)
        bad = next((i for i, c in enumerate(text) if ord(c) < 32 or ord(c) == 127), None)
        if bad is not None:
            raise BadUsage(f"a model's name has a control character at position {bad}", hint=_HINT)
        if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
            raise BadUsage("a model's name is not valid text", hint=_HINT)
        return _parse(text)

    def __str__(self) -> str:
        match self.scheme:
            case "hf":
                head = f"hf:{self.name}" + (f"@{quote(self.revision, safe='')}" if self.revision else "")
                return head + (f":{self.quant}" if self.quant else f"/{self.file}" if self.file else "")
            case "ollama":
                return f"ollama:{self.name}:{self.revision}" if self.revision else f"ollama:{self.name}"
            case "catalog":
                return f"{self.name}:{self.revision}" if self.revision else self.name
            case "https":
                return f"{self.name}#sha256={self.sha256}" if self.sha256 else self.name
            case "file":
                return f"file:{self.name}"
            case "pypi":
                return f"pypi:{self.name}=={self.revision}" if self.revision else f"pypi:{self.name}"

    def pinned(self, revision: str) -> ModelRef:
        """The same name at a fixed revision."""
        return replace(self, revision=revision)


def _parse(text: str) -> ModelRef:
    if text.startswith(("https://", "http://")):
        return _parse_url(text)
    if text.startswith(("/", "./", "../", "~")) or (text.endswith(".gguf") and ":" not in text):
        return _parse_file(text)
    for alias in ("huggingface.co/", "hf.co/"):
        if text.startswith(alias):
            return _parse_hf(text.removeprefix(alias))
    head, colon, rest = text.partition(":")
    if colon and head in SCHEMES:
        rest = rest.removeprefix("//") if head != "file" else rest
        match head:
            case "hf":
                return _parse_hf(rest)
            case "ollama":
                return _parse_tagged("ollama", rest)
            case "file":
                return _parse_file(rest)
            case "pypi":
                return _parse_pypi(rest)
            case "https":
                return _parse_url("https://" + rest)
    if colon and "/" in rest and not any(c in head for c in "/@"):
        raise BadUsage(f"unknown scheme {head!r} in {text!r}", hint=_HINT)
    return _parse_tagged("catalog", text)


def _segment(part: str, what: str, whole: str) -> str:
    if not _SEGMENT.fullmatch(part) or ".." in part:
        raise BadUsage(f"{what} {part!r} in {whole!r} has characters that a name cannot have", hint=_HINT)
    return part


def _parse_hf(rest: str) -> ModelRef:
    parts = rest.split("/", 2)
    if len(parts) < 2:
        raise BadUsage(f"hf:{rest} lacks ORG/REPO", hint=_HINT)
    repo, quant, revision = parts[1], None, None
    file = parts[2] if len(parts) == 3 else None
    if ":" in repo:
        repo, quant = repo.split(":", 1)
    if "@" in repo:
        repo, revision = repo.split("@", 1)
        revision = unquote(revision)
        if not all(_REVISION.fullmatch(p) and ".." not in p for p in revision.split("/")):
            raise BadUsage(f"revision {revision!r} in 'hf:{rest}' is not a branch, tag or commit", hint=_HINT)
    if quant is not None and (file is not None or not _QUANT.fullmatch(quant)):
        raise BadUsage(f"{quant!r} in 'hf:{rest}' is not a quantization", hint=_HINT)
    if file is not None and not is_safe_name(file):
        raise BadUsage(f"file {file!r} in 'hf:{rest}' is not a plain path inside the repository", hint=_HINT)
    name = f"{_segment(parts[0], 'organisation', rest)}/{_segment(repo, 'repository', rest)}"
    return ModelRef("hf", name, revision, quant, file)


def _parse_tagged(scheme: Literal["ollama", "catalog"], rest: str) -> ModelRef:
    name, colon, tag = rest.partition(":")
    parts = name.split("/")
    if scheme == "catalog" and len(parts) == 2:
        raise BadUsage(f"{rest!r} is no short name", hint=f"Did you mean hf:{rest}?")
    if len(parts) > 2:
        raise BadUsage(f"{rest!r} is not a model's name", hint=_HINT)
    for part in parts:
        _segment(part, "name", rest)
    if colon:
        _segment(tag, "tag", rest)
    return ModelRef(scheme, name, tag or None)


def _parse_url(text: str) -> ModelRef:
    try:
        url = urlsplit(text)
        host, _ = url.hostname, url.port
    except ValueError as e:
        raise BadUsage(f"not a URL: {text[:200]!r}: {e}", hint=_HINT) from None
    if not host:
        raise BadUsage(f"{text!r} has no host", hint=_HINT)
    if url.username or url.password:
        raise BadUsage("a URL with a user or password in it is refused", hint="Use `hf auth login` or a header file.")
    if host in ("huggingface.co", "hf.co") and "/resolve/" not in url.path and not url.query:
        return _parse_hf(url.path.strip("/"))
    pin: Digest | None = None
    if url.fragment:
        key, _, value = url.fragment.partition("=")
        if key != "sha256":
            raise BadUsage(f"unknown fragment '#{url.fragment[:40]}'", hint="The only fragment is #sha256=HEX.")
        pin = digest(value)
    return ModelRef("https", urlunsplit(url._replace(fragment="")), sha256=pin)


def _parse_file(rest: str) -> ModelRef:
    if not rest:
        raise BadUsage("file: lacks a path", hint=_HINT)
    if rest.startswith("//"):
        rest = "/" + rest.lstrip("/")
    return ModelRef("file", rest)


def _parse_pypi(rest: str) -> ModelRef:
    name, eq, version = rest.partition("==")
    _segment(name, "distribution", rest)
    if eq and not _VERSION.fullmatch(version):
        raise BadUsage(f"{version!r} in 'pypi:{rest}' is not a version", hint=_HINT)
    return ModelRef("pypi", name, version or None)
