"""Commands to a running Ollama: its models, and handing it one of ours without a second copy of the bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm import gguf, shards
from miyabi_llm.backends.base import ModelState, Unsupported
from miyabi_llm.backends.ollama_api import OllamaApi
from miyabi_llm.backends.ollama_values import Create, Shown, decode_params, elsewhere, host_of, refuse_cloud, same
from miyabi_llm.backends.ollama_words import alarms, check_adapters, differs, model_name, renders_gguf
from miyabi_llm.errors import BadUsage, MiyabiError, ModelMissing, ServerFailed
from miyabi_llm.gguf import Header
from miyabi_llm.proc.ports import is_loopback
from miyabi_llm.refs import Digest
from miyabi_llm.store.adopt import hash_file, share
from miyabi_llm.store.fs import Fs, nonce, write_atomic
from miyabi_llm.store.link import OURS, ollama_documents, ollama_role
from miyabi_llm.types import Event, OnEvent, ServeSpec, StoredFile

_BORROWED = "handover"  # the passing name under which a lent model is shown to the server
_TEXTS = ("template", "system", "license")


@dataclass(frozen=True, slots=True)
class Handed:
    """How the bytes came there, in bytes: `lent` cost no disk, `sent` went through the connection, `copied` the
    server wrote itself."""

    lent: int = 0
    sent: int = 0
    copied: int = 0


class OllamaControl(OllamaApi):
    """A model of our store gets there by a hard link where its folder is ours to write, else through the connection.

    `add` looks for the folder in `spec.work`: what our `plan` puts there for it.
    """

    def models(self) -> tuple[ModelState, ...]:
        """Every model whose weights it has; those that run elsewhere are none of ours to offer."""
        loaded = self.running()
        here = [row for row in self.tags() if not row.remote_host]
        return tuple(
            next((s for s in loaded if same(s.name, row.name)), ModelState(row.name, "unloaded")) for row in here
        )

    def load(self, name: str, *, ctx: int | None = None, keep_s: float | None = None) -> ModelState:
        """Load a model it has, with `ctx` tokens, for `keep_s` idle seconds (0: for ever).

        Raises ModelMissing, Unsupported for one that runs elsewhere. Clients of the OpenAI dialect say no context:
        the model's own `num_ctx` holds for them, and Ollama loads it anew where the two differ.
        """
        refuse_cloud(name)
        if (shown := self.show(name)) is None:
            raise ModelMissing(
                f"{self.endpoint.base_url} has no model {name!r}", hint="`ollama list` shows what it has."
            )
        if shown.remote_host:
            raise elsewhere(name, shown.remote_host)
        more: dict[str, Any] = {"options": {"num_ctx": ctx}} if ctx else {}
        if keep_s is not None:
            more["keep_alive"] = keep_s if keep_s > 0 else -1
        reason = self.generate_nothing(name, **more)
        state = next((s for s in self.running() if same(s.name, name)), None)
        if reason != "load" or state is None:
            raise ServerFailed(f"{name}: the server did not load it, it says {reason!r}", hint="Its log may say why.")
        return state

    def add(self, spec: ServeSpec, on_event: OnEvent) -> str:
        """Make the model known under the name `plan` gave it, loaded with its context; returns that name.

        What it got is compared with what we have: architecture, number of parameters, quantization. Raises Unsupported
        where a name of that spelling runs elsewhere, ServerFailed when the comparison fails (and removes the model).
        """
        name = model_name(spec)
        before = self.show(name)
        if before is not None and before.remote_host:
            raise elsewhere(name, before.remote_host)
        if before is not None and _is_it(before, spec):
            on_event(
                Event("phase", "handed over", f"{name} is there already", data={"lent": 0, "sent": 0, "copied": 0})
            )
        else:
            handed = self._hand(name, spec, on_event)
            self._check(name, spec, handed, on_event)
        state = self.load(name, ctx=spec.ctx, keep_s=spec.keep_s)
        for text in alarms(state, spec):
            on_event(Event("warning", "ollama", text))
        return name

    def _hand(self, name: str, spec: ServeSpec, on_event: OnEvent) -> Handed:
        """The bytes, then the model: by reference where we can, else as Ollama imports any file."""
        paths = {f: spec.files[f.name].resolve(strict=True) for f in spec.artifact.files if ollama_role(f)}
        adapters = _adapters(spec)
        folder = self._folder(spec)
        lent = sent = 0
        blobs = [(f.sha256, path) for f, path in paths.items() if f.name.lower().endswith(".gguf")]
        for sha, path in [*blobs, *((sha, path) for path, sha in adapters.values())]:
            if self.has_blob(sha) or (folder is not None and self._lend(path, folder, sha)):
                lent += path.stat().st_size
            else:
                on_event(Event("phase", "upload", f"{path.name}: its folder cannot be shared, the bytes are sent"))
                sent += self.upload(sha, path, on_event)
        digests = {name: sha for name, (_, sha) in adapters.items()}
        parameters = _parameters(spec)
        by_file = _import(name, spec, paths, digests, parameters)
        source = self._introduce(spec, paths, folder) if folder and renders_gguf(self.version()) is not False else None
        if source is None:
            self.create(by_file, on_event)
            return Handed(lent, sent)
        try:
            self.create(Create(name, source, adapters=digests, parameters=parameters), on_event)
        except ServerFailed as e:
            on_event(Event("warning", "ollama", f"{e.message}; trying the import that copies the file"))
            self.create(by_file, on_event)
        finally:
            with suppress(MiyabiError):  # a name too many is no reason to fail
                self.delete(source)
        return Handed(lent, sent)

    def _folder(self, spec: ServeSpec) -> Path | None:
        """The server's models folder where it may be ours to write: a guess until the server shows what we put in."""
        folder = spec.work
        if folder is None or not is_loopback(host_of(self.endpoint.base_url)):
            return None
        with suppress(OSError):
            if (folder / "blobs").stat().st_uid == os.getuid():
                return folder
        return None

    def _lend(self, path: Path, folder: Path, sha256: str) -> bool:
        """A second name for the file among the server's blobs; False, and nothing left, where it does not see it."""
        target = folder / "blobs" / f"sha256-{sha256}"
        if target.exists() or not lend(path, target):
            return False  # the name is there and the server does not know it: another server's folder
        if self.has_blob(sha256):
            return True
        target.unlink(missing_ok=True)
        return False

    def _introduce(self, spec: ServeSpec, paths: Mapping[StoredFile, Path], folder: Path) -> str | None:
        """Write a manifest of the lent blobs beside the server's own; its name, None when the server does not see it.

        A model made from this name keeps our very bytes: only files given to /api/create are rewritten.
        """
        small = [(f, p) for f, p in paths.items() if not f.name.lower().endswith(".gguf")]
        try:
            config, manifest = ollama_documents(spec.artifact, paths)
        except BadUsage:
            return None  # in parts: Ollama has to merge them
        tag = hashlib.sha256(manifest).hexdigest()[:12]
        shown = folder / "manifests/registry.ollama.ai" / OURS / _BORROWED / tag
        sha = hashlib.sha256(config).hexdigest()
        try:
            for digest, data in [(sha, config), *((str(f.sha256), p.read_bytes()) for f, p in small)]:
                if not (blob := folder / "blobs" / f"sha256-{digest}").exists():
                    write_atomic(Fs(), blob, data)
            shown.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(Fs(), shown, manifest)
        except OSError:
            return None
        name = f"{OURS}/{_BORROWED}:{tag}"
        if self.show(name) is None:  # it would ask its registry for a name it does not know
            shown.unlink(missing_ok=True)
            return None
        return name

    def _check(self, name: str, spec: ServeSpec, handed: Handed, on_event: OnEvent) -> None:
        """What the server says it has now, against the header of the file we gave."""
        shown = self.show(name)
        header = _header(spec.files)
        if shown is None or (why := differs(shown, header)):
            with suppress(MiyabiError):
                self.delete(name)
            raise ServerFailed(
                f"{name}: what the server made of it is not what it was given: {why if shown else 'it is not there'}",
                hint="The model was removed there. Update Ollama, or serve it with llama-cpp.",
            )
        copied = 0
        if shown.digest and shown.digest not in {f.sha256 for f in spec.artifact.files}:
            copied = next((row.size for row in self.tags() if same(row.name, name)), 0)
        done = Handed(handed.lent, handed.sent, copied)
        text = f"{name}: {done.lent:,} bytes shared, {done.sent:,} sent, {done.copied:,} written again by the server"
        on_event(
            Event("phase", "handed over", text, data={"lent": done.lent, "sent": done.sent, "copied": done.copied})
        )
        if renders_gguf(self.version()) is False:
            old = f"this Ollama ({self.version()}) does not use the chat template in the file: answers may be wrong"
            on_event(Event("warning", "ollama", f"{old}; update it to 0.30 or later"))


def lend(source: Path, target: Path) -> bool:
    """Give `source`'s bytes the name `target`, whole or not at all, at no cost in disk; False where that cannot be.

    Never a symbolic link: a server in a container, or of another user, would follow it to nothing.
    """
    draft = target.with_name(f".miyabi-{nonce()}")
    try:
        share(source, draft)
        os.replace(draft, target)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)  # two names of one file: the replace above does nothing then
    return True


def _header(files: Mapping[str, Path]) -> Header:
    headers = {}
    for name, path in files.items():
        if name.lower().endswith(".gguf"):
            with path.open("rb") as f:
                headers[name] = gguf.read(f, path.stat().st_size)
    return shards.join(shards.own(headers) or headers)


def _parameters(spec: ServeSpec) -> dict[str, Any]:
    """What is written into the model: the context above all, since clients of the OpenAI dialect cannot say it."""
    found: dict[str, Any] = {"num_ctx": spec.ctx} if spec.ctx else {}
    if spec.threads and not spec.attach:  # on a server that is not ours its owner decides
        found["num_thread"] = spec.threads
    return found


def _import(
    name: str,
    spec: ServeSpec,
    paths: Mapping[StoredFile, Path],
    adapters: Mapping[str, Digest],
    parameters: Mapping[str, Any],
) -> Create:
    """A model from files: every shard is named; template, system and license only where the model came with them."""
    ggufs = {f: p for f, p in paths.items() if f.name.lower().endswith(".gguf")}
    texts = {f.name: p.read_text("utf-8", "replace") for f, p in paths.items() if f.name in _TEXTS}
    params = [decode_params(p.read_text(encoding="utf-8")) for f, p in paths.items() if f.name == "params.json"]
    own = {f.name: f.sha256 for f in ggufs if ollama_role(f) == "adapter"}
    files = {f.name.rsplit("/", 1)[-1]: f.sha256 for f in ggufs if ollama_role(f) != "adapter"}
    return Create(
        name,
        files=files,
        adapters={**own, **adapters},
        parameters={**(params[0] if params else {}), **parameters},
        texts=texts,
    )


def _adapters(spec: ServeSpec) -> dict[str, tuple[Path, Digest]]:
    """The adapter's file and hash by its name. Raises Unsupported for several, or one that is no GGUF file."""
    own = [f for f in spec.artifact.files if ollama_role(f) == "adapter"]
    check_adapters(len(spec.adapters) + len(own))
    found = {}
    for adapter in spec.adapters:
        path = adapter.path.resolve(strict=True)
        if path.is_dir():
            hint = "Convert it with llama.cpp's convert_lora_to_gguf.py, or merge it into the model."
            raise Unsupported(
                f"{adapter.path} is no GGUF file: Ollama reads other adapters of two families only", hint=hint
            )
        found[path.name] = (path, hash_file(path))
    return found


def _is_it(shown: Shown, spec: ServeSpec) -> bool:
    """Whether the model there runs from our very bytes, without an adapter, with the context we want."""
    ours = {str(f.sha256) for f in spec.artifact.files if f.name.lower().endswith(".gguf")}
    return not (spec.adapters or shown.adapted) and shown.digest in ours and shown.num_ctx == spec.ctx
