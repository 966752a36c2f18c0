"""Models of the Hugging Face hub: listed by the hub's own library, downloaded by our engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from miyabi_llm import __version__
from miyabi_llm.config import Settings
from miyabi_llm.errors import AccessDenied, Corrupt, MiyabiError, ModelMissing, NetworkError, Unsafe
from miyabi_llm.refs import ModelRef, digest, is_safe_name
from miyabi_llm.sources import answers
from miyabi_llm.sources.base import Part
from miyabi_llm.sources.hf_files import HubFile, Variant, choose, variants
from miyabi_llm.sources.net import Credential, Hiccup, Session, Unreachable, check_endpoint
from miyabi_llm.sources.transfer import download
from miyabi_llm.sources.tries import Limits, get, retried
from miyabi_llm.types import Listing, OnEvent, RemoteFile

INDEX_MOST = 64 * 2**20  # bytes of a shard index
FILES_MOST = 20_000
CONNECT, TIMEOUT = 3.0, 30.0  # seconds for the hub to be reached, and to answer a question

_LOGIN = "Run `hf auth login`."


class HfSource:
    """The hub at `settings.hf_endpoint`; the token goes there and nowhere else."""

    scheme = "hf"

    def __init__(self, settings: Settings, limits: Limits | None = None) -> None:
        self._settings = settings
        self._limits = limits
        self._git: dict[str, tuple[str, str | None, int]] = {}  # URL -> (repository, git blob id, size)

    def list(self, ref: ModelRef) -> Listing:
        """The files that `ref` means, at the commit its revision stands at now.

        Raises ModelMissing, AccessDenied (private, gated), NetworkError, Unsafe, Corrupt, BadUsage (which file?).
        """
        info = self._info(ref)
        commit = str(info.sha or "")
        if not commit.isalnum():
            raise NetworkError(f"{ref}: the hub gives no commit")
        files = _files(ref, info.siblings or [])
        choice = choose(ref, files, lambda name: self._read_json(ref, commit, name))
        remote = tuple(self._remote(ref.name, commit, f) for f in choice.files)
        card = {"repo": str(info.id), "commit": commit, "gated": bool(getattr(info, "gated", False))}
        return Listing(
            ref=ref,
            resolved=ref.pinned(commit),
            format=choice.format,
            files=remote,
            license=_license(info),
            notes=choice.notes,
            card=card,
        )

    def variants(self, ref: ModelRef) -> tuple[tuple[Variant, tuple[RemoteFile, ...]], ...]:
        """Every GGUF model of the repository, each with its files as `fetch` takes them. Raises as `list` does."""
        info = self._info(ref)
        commit = str(info.sha or "")
        if not commit.isalnum():
            raise NetworkError(f"{ref}: the hub gives no commit")
        found = variants(_files(ref, info.siblings or []))
        return tuple((v, tuple(self._remote(ref.name, commit, f) for f in v.files)) for v in found)

    def fetch(self, file: RemoteFile, part: Part, on_event: OnEvent) -> None:
        """Write `file` into `part`. A small file without sha256 is checked against its git blob id."""
        repo, blob, size = self._git.get(file.urls[0] if file.urls else "", ("", None, 0))
        target: Part = part
        checked: _GitPart | None = None
        if blob and file.sha256 is None:
            target = checked = _GitPart(part, size)
            part.reset(None, file.size)  # the check needs every byte
        with self._explained(repo or file.name):
            download(file, target, self._settings, on_event, credential=self._credential(), limits=self._limits)
        if checked and checked.hexdigest() != blob:
            part.reset(None, file.size)
            raise Corrupt(f"{file.name}: the bytes are not those of the hub's git blob {blob}")

    def _info(self, ref: ModelRef) -> Any:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        if self._settings.offline:
            raise _offline(ref, self._settings)
        check_endpoint(self._settings.hf_endpoint)
        self._credential()  # a token that no header can carry is refused before any library prints it
        # Else the library reports which coding agent runs us, and first asks for the list of agents: at the public
        # hub, even when `hf_endpoint` is a mirror inside the house.
        constants.HF_HUB_DISABLE_TELEMETRY = True
        api = HfApi(
            endpoint=self._settings.hf_endpoint,
            token=self._token() or False,
            library_name="miyabi-llm",
            library_version=__version__,
        )

        patience: Any = (CONNECT, TIMEOUT, TIMEOUT, TIMEOUT)  # connect, read, write, pool, as the HTTP library has it

        def ask() -> Any:
            try:
                return api.model_info(ref.name, revision=ref.revision, files_metadata=True, timeout=patience)
            except HfHubHTTPError as e:
                if e.response.status_code in (408, 429) or e.response.status_code >= 500:
                    wait = answers.retry_after(e.response.headers.get("retry-after", ""))
                    raise Hiccup(f"{self._settings.hf_endpoint} answered {e.response.status_code}", wait) from e
                raise self._refused(ref, e) from e
            except _http_error(HfHubHTTPError) as e:
                # by name: the library below the hub's own has changed before
                absent = type(e).__name__ in ("ConnectError", "ConnectTimeout")
                reason = f"{self._settings.hf_endpoint} does not answer: {e or type(e).__name__}"
                raise (Unreachable if absent else Hiccup)(reason) from e

        try:
            return retried(ask, RemoteFile(str(ref), None, None), self._limits or Limits())
        except OfflineModeIsEnabled:
            raise _offline(ref, self._settings) from None
        except HFValidationError as e:
            raise ModelMissing(f"{ref}: {e}", hint="Check the spelling.") from e
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise NetworkError(f"{ref}: the hub's answer cannot be read: {e}") from e

    def _refused(self, ref: ModelRef, e: Any) -> MiyabiError:
        """What the hub's refusal means to a person."""
        from huggingface_hub.errors import DisabledRepoError, GatedRepoError, RepositoryNotFoundError
        from huggingface_hub.errors import RevisionNotFoundError as NoRevision

        status = e.response.status_code
        page = f"{self._settings.hf_endpoint}/{ref.name}"
        if isinstance(e, GatedRepoError):
            return AccessDenied(
                f"{ref.name} is gated: its licence must be accepted first",
                hint=f"Accept the licence at {page}, then run `hf auth login`.",
            )
        if isinstance(e, RepositoryNotFoundError):
            known = "the token that is used does not show it" if self._token() else "it may be private"
            return ModelMissing(
                f"{page} is not there, or {known}", hint=f"Check the spelling; if it is yours: {_LOGIN}"
            )
        if isinstance(e, NoRevision):
            return ModelMissing(f"{ref.name} has no revision {ref.revision}", hint=f"See {page}/commits/main.")
        if isinstance(e, DisabledRepoError) or status in (401, 403):
            return AccessDenied(f"{page}: {status}, the hub refuses", hint=_LOGIN)
        if status in (404, 410):
            return ModelMissing(f"{page} is not there", hint="Check the spelling.")
        return NetworkError(f"{page}: the hub answered {status}")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except AccessDenied as e:
            page = f"{self._settings.hf_endpoint}/{what}"
            raise AccessDenied(
                e.message, hint=f"Accept the licence at {page}, if it has one, then run `hf auth login`."
            ) from e

    def _read_json(self, ref: ModelRef, commit: str, name: str) -> Mapping[str, object]:
        with Session(self._settings, wire=(self._limits or Limits()).wire) as session, self._explained(ref.name):
            file = RemoteFile(name, None, None, (self._url(ref.name, commit, name),))
            body = get(session, file, INDEX_MOST, credential=self._credential(), limits=self._limits)
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as e:
            raise Corrupt(f"{ref.name}: {name} is not JSON: {type(e).__name__}") from e
        if not isinstance(document, dict):
            raise Corrupt(f"{ref.name}: {name} is not a JSON object")
        return document

    def _remote(self, repo: str, commit: str, file: HubFile) -> RemoteFile:
        url = self._url(repo, commit, file.name)
        self._git[url] = (repo, file.git, file.size or 0)
        return RemoteFile(file.name, file.size, file.sha256, (url,))

    def _url(self, repo: str, commit: str, name: str) -> str:
        return f"{self._settings.hf_endpoint.rstrip('/')}/{repo}/resolve/{commit}/{quote(name)}"

    def _token(self) -> str | None:
        """HF_TOKEN, else what `hf auth login` stored; None when neither, or when the user forbids the implicit one."""
        env = self._settings.env
        if env.get("HF_TOKEN"):
            return env["HF_TOKEN"].strip() or None
        if (env.get("HF_HUB_DISABLE_IMPLICIT_TOKEN") or "").lower() in ("1", "true", "yes", "on"):
            return None
        from huggingface_hub import get_token

        return get_token()

    def _credential(self) -> Credential | None:
        token = self._token()
        return Credential.bearer(self._settings.hf_endpoint, token) if token else None


class _GitPart:
    """A part that takes bytes in order and computes the git blob id of what passes."""

    def __init__(self, part: Part, size: int) -> None:
        self._part, self._length = part, size
        self._hash, self._at = self._start(), 0

    @property
    def size(self) -> int | None:
        return self._part.size

    @property
    def done(self) -> Sequence[tuple[int, int]]:
        return ()  # never continued: the check needs every byte

    @property
    def validator(self) -> str | None:
        return None

    def reset(self, validator: str | None, size: int | None) -> None:
        self._hash, self._at = self._start(), 0
        self._part.reset(None, size)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        assert offset == self._at, "without a validator, bytes come in order"
        self._hash.update(data)
        self._at += len(data)
        self._part.write(offset, data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def _start(self) -> hashlib._Hash:
        return hashlib.sha1(b"blob %d\0" % self._length, usedforsecurity=False)


def _http_error(refusal: type[Exception]) -> type[Exception]:
    """The base error of the HTTP library below the hub's own, which library that may be."""
    base = refusal.__bases__[0]
    assert issubclass(base, Exception)
    return base


def _files(ref: ModelRef, siblings: Sequence[Any]) -> list[HubFile]:
    """The hub's list as our values; every name, size and hash is checked before it is believed."""
    if len(siblings) > FILES_MOST:
        raise Unsafe(f"{ref}: {len(siblings)} files in one repository are refused")
    files = []
    for entry in siblings:
        name, size, lfs = entry.rfilename, entry.size, entry.lfs
        if not isinstance(name, str) or not is_safe_name(name):
            continue
        if lfs is not None:
            size = lfs.get("size", size)
        if size is not None and (not isinstance(size, int) or not 0 <= size < 1 << 46):
            raise Unsafe(f"{ref}: {name} has the size {size!r:.40}")
        blob = entry.blob_id if isinstance(entry.blob_id, str) and len(entry.blob_id) == 40 else None
        files.append(HubFile(name, size, digest(str(lfs["sha256"])) if lfs else None, None if lfs else blob))
    return files


def _license(info: Any) -> str | None:
    card = getattr(info, "card_data", None)
    value = card.get("license") if card is not None else None
    return value if isinstance(value, str) else None


def _offline(ref: ModelRef, settings: Settings) -> NetworkError:
    return NetworkError(
        f"offline: the hub was not asked for {ref}",
        hint=f"{settings.offline_hint} Or name a model that is here (`miyabi-llm list`).",
    )
