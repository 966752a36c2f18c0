"""A model at any https address, pinned by `#sha256=HEX` or trusted on first use."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, NetworkError, Unsafe
from miyabi_llm.refs import ModelRef, is_safe_name
from miyabi_llm.sources import answers
from miyabi_llm.sources.answers import Restart
from miyabi_llm.sources.base import Part, runs_code
from miyabi_llm.sources.net import Session
from miyabi_llm.sources.transfer import download
from miyabi_llm.sources.tries import Limits, retried
from miyabi_llm.types import Format, Listing, OnEvent, RemoteFile

PARTS_MOST = 1000

_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)", re.ASCII)


class HttpSource:
    """Plain URLs: https, or http on this machine."""

    scheme = "https"

    def __init__(self, settings: Settings, limits: Limits | None = None) -> None:
        self._settings = settings
        self._limits = limits

    def list(self, ref: ModelRef) -> Listing:
        """The file at the URL, or all parts of a GGUF in parts; sizes as the server gives them.

        Raises BadUsage (no model's ending), Unsafe (code, plain http), ModelMissing, AccessDenied, NetworkError.
        """
        urls = _urls(ref)
        with Session(self._settings, wire=(self._limits or Limits()).wire) as session:
            files = tuple(self._ask(session, RemoteFile(name, None, ref.sha256, (url,))) for name, url in urls)
        kind: Format = "gguf" if files[0].name.lower().endswith(".gguf") else "safetensors"
        notes = (f"one of {len(files)} parts was named: all are taken",) if len(files) > 1 else ()
        return Listing(ref=ref, resolved=ref, format=kind, files=files, notes=notes, card={"url": ref.name})

    def fetch(self, file: RemoteFile, part: Part, on_event: OnEvent) -> None:
        """Write the file into `part`."""
        download(file, part, self._settings, on_event, limits=self._limits)

    def _ask(self, session: Session, file: RemoteFile) -> RemoteFile:
        """The file with its size, from the answer to a request for its first byte: HEAD is refused by too many."""

        def once() -> int | None:
            with session.open(file.urls[0], headers={"Range": "bytes=0-0"}) as response:
                try:
                    answers.check_status(response, file)
                except Restart:  # 416: an empty file
                    raise NetworkError(f"{answers.place(file)} is empty") from None
                return answers.total(response)

        size = retried(once, file, self._limits or Limits())
        return RemoteFile(file.name, size, file.sha256, file.urls)


def _urls(ref: ModelRef) -> list[tuple[str, str]]:
    """File name and URL of everything that `ref` means."""
    url = urlsplit(ref.name)
    name = unquote(posixpath.basename(url.path))
    if not is_safe_name(name) or "/" in name or name.startswith("."):
        raise BadUsage(f"{ref.name}: the address does not end in a file's name", hint="It ends in .../model.gguf.")
    if runs_code(name):
        raise Unsafe(f"{name} can run code when it is loaded", hint="Use a .gguf or .safetensors file.")
    if not name.lower().endswith((".gguf", ".safetensors")):
        raise BadUsage(f"{name} is no model file", hint="The address must end in .gguf or .safetensors.")
    match = _SHARD.fullmatch(name)
    if not match or ref.sha256 or url.query:
        return [(name, ref.name)]
    count = int(match["count"])
    if not 1 <= int(match["index"]) <= count <= PARTS_MOST:
        raise BadUsage(f"{name}: its number makes no sense")
    names = [f"{match['stem']}-{i:05d}-of-{match['count']}{match['end']}" for i in range(1, count + 1)]
    folder = posixpath.dirname(url.path)
    return [(n, urlunsplit(url._replace(path=f"{folder}/{quote(n)}"))) for n in names]
