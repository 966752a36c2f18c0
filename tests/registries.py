"""The hub's API and the Ollama registry, as small as their clients need them, on a fault server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.faultd import Answer, Faultd, Request, json_answer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Hub:
    """A hub with repositories; `cdn` is where `resolve` redirects to, the same server when None."""

    server: Faultd
    cdn: Faultd | None = None
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server.route(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self._info)
        self.server.route(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", self._tree)
        self.server.route(r"/api/models/([^/]+/[^/]+)/paths-info/(.+)", self._paths)
        self.server.route(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve)

    def add(
        self, repo: str, files: Mapping[str, bytes], lfs: tuple[str, ...] = (".gguf", ".safetensors"), **more: Any
    ) -> None:
        """A repository. `more`: token (needed to see it), gated, license, siblings (raw, instead of the files)."""
        self.repos[repo] = {"files": dict(files), "lfs": lfs, **more}

    def _guard(self, request: Request, repo: str) -> Answer | dict[str, Any]:
        found = self.repos.get(repo)
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if found is None or (found.get("token") and token != found["token"] and not found.get("gated")):
            status = 404 if token else 401  # what the hub says of repositories one cannot see
            return json_answer(
                {"error": "Repository not found"}, status, **{"X-Error-Code": "RepoNotFound", "X-Error-Message": "x"}
            )
        return found

    def _info(self, request: Request, match: Any) -> Answer:
        found = self._guard(request, match[1])
        if isinstance(found, Answer):
            return found
        if match[2] not in (None, "main", COMMIT, "v1"):
            return json_answer({"error": "Invalid rev id"}, 404, **{"X-Error-Code": "RevisionNotFound"})
        siblings = found.get("siblings") or [self._sibling(n, d, found["lfs"]) for n, d in found["files"].items()]
        body = {"_id": "1", "id": match[1], "modelId": match[1], "sha": COMMIT, "private": bool(found.get("token"))}
        body |= {"gated": found.get("gated", False), "tags": [], "siblings": siblings, "downloads": 0, "likes": 0}
        return json_answer(body | {"cardData": {"license": found.get("license", "apache-2.0")}})

    @staticmethod
    def _sibling(name: str, data: bytes, lfs: tuple[str, ...]) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_blob(data)}
        if name.endswith(lfs):
            entry["lfs"] = {"sha256": sha(data), "size": len(data), "pointerSize": 134}
        return entry

    def _tree(self, request: Request, match: Any) -> Answer:
        found = self._guard(request, match[1])
        if isinstance(found, Answer):
            return found
        return json_answer([self._path(n, d, found["lfs"]) for n, d in found["files"].items()])

    def _paths(self, request: Request, match: Any) -> Answer:
        found = self._guard(request, match[1])
        if isinstance(found, Answer):
            return found
        wanted = request.query.get("paths") or json.loads(request.body or b"{}").get("paths", [])
        return json_answer([self._path(n, d, found["lfs"]) for n, d in found["files"].items() if n in wanted])

    @staticmethod
    def _path(name: str, data: bytes, lfs: tuple[str, ...]) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git_blob(data)}
        if name.endswith(lfs):
            entry["lfs"] = {"oid": sha(data), "size": len(data), "pointerSize": 134}
        return entry

    def _resolve(self, request: Request, match: Any) -> Answer:
        found = self._guard(request, match[1])
        if isinstance(found, Answer):
            return found
        if found.get("gated") and request.headers.get("authorization") != f"Bearer {found.get('token')}":
            text = f"Access to model {match[1]} is restricted. You must have access to it and be authenticated."
            return json_answer({"error": text}, 403, **{"X-Error-Code": "GatedRepo", "X-Error-Message": text})
        data = found["files"].get(match[3])
        if data is None:
            return json_answer({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
        if not match[3].endswith(found["lfs"]):
            return Answer(data, headers={"X-Repo-Commit": COMMIT}, etag=f'"{git_blob(data)}"', ranges=True)
        target = (self.cdn or self.server).put(f"/cdn/{sha(data)}", data)
        linked = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{sha(data)}"', "X-Linked-Size": str(len(data))}
        return Answer(b"moved", 302, {"Location": f"{target}?Expires=1&Signature=s", **linked})


MEDIA = "application/vnd.ollama.image."


def layer(server: Faultd, name: str, kind: str, data: bytes) -> dict[str, Any]:
    """Put a blob of the Ollama repository `name` up; gives its layer entry."""
    digest = f"sha256:{sha(data)}"
    server.put(f"/v2/{name}/blobs/{digest}", data)
    return {"mediaType": MEDIA + kind, "digest": digest, "size": len(data)}


def manifest(server: Faultd, name: str, tag: str, layers: list[dict[str, Any]], **more: Any) -> None:
    """Put an Ollama manifest up."""
    body = {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "layers": layers}
    server.put(f"/v2/{name}/manifests/{tag}", json.dumps(body | more).encode())
