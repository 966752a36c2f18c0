"""What the stand-in for Ollama keeps: the models folder in its real layout, what is loaded, and its faults."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from miyabi_llm import gguf

DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
PREFIX = "application/vnd.ollama.image."
TEXTS = ("template", "system", "license")


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


def seconds(value: Any) -> float:
    """api.Duration: a number of seconds or `5m`; negative is for ever."""
    if isinstance(value, str):
        units = {"ns": 1e-9, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
        found = re.findall(r"(-?[\d.]+)(ns|ms|s|m|h)", value)
        if not found:
            raise Refused(400, f'time: invalid duration "{value}"')
        value = sum(float(n) * units[u] for n, u in found)
    if not isinstance(value, int | float):
        raise Refused(400, f"Unsupported type: '{type(value).__name__}'")
    return float("inf") if value < 0 else float(value)


class Store:
    """The models folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs").mkdir(parents=True, exist_ok=True)

    def blob(self, digest: str) -> Path:
        found = DIGEST.fullmatch(digest)
        if not found:
            raise Refused(400, "invalid digest format")
        return self.root / "blobs" / f"sha256-{found[1]}"

    def put(self, data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        path = self.blob(f"sha256:{sha}")
        if not path.exists():
            draft = path.with_name(f"sha256-{os.urandom(4).hex()}")
            draft.write_bytes(data)
            draft.rename(path)
        return f"sha256:{sha}"

    def names(self) -> dict[str, Path]:
        found = {}
        for path in sorted(self.root.glob("manifests/*/*/*/*")):
            host, space, model, tag = path.parts[-4:]
            lead = [] if host == "registry.ollama.ai" else [host, space]
            lead = lead or ([] if space == "library" else [space])
            found["/".join([*lead, f"{model}:{tag}"])] = path
        return found

    def path(self, name: str) -> Path:
        """Where the manifest of a name lies: letter case does not count for what is there."""
        base, tag = name, "latest"
        if name.rfind(":") > name.rfind("/"):
            base, _, tag = name.rpartition(":")
        parts = base.split("/")
        whole = [*["registry.ollama.ai", "library"][: 3 - len(parts)], *parts, tag]
        if len(whole) != 4 or not all(PART.fullmatch(p) for p in whole[1:]) or "." in whole[1]:
            raise Refused(400, "invalid model name")
        shown = f"{'' if whole[1] == 'library' else whole[1] + '/'}{whole[2]}:{tag}"
        known = {n.lower(): p for n, p in self.names().items()}
        return known.get(shown.lower(), self.root.joinpath("manifests", *whole))

    def manifest(self, name: str) -> dict[str, Any]:
        try:
            return json.loads(self.path(name).read_bytes())  # type: ignore[no-any-return]
        except FileNotFoundError:
            raise Refused(404, f"model '{name}' not found") from None

    def layers(self, name: str, kind: str) -> list[Path]:
        return [self.blob(x["digest"]) for x in self.manifest(name)["layers"] if x["mediaType"] == PREFIX + kind]

    def config(self, name: str) -> dict[str, Any]:
        return json.loads(self.blob(self.manifest(name)["config"]["digest"]).read_bytes())  # type: ignore[no-any-return]

    def params(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in self.layers(name, "params"):
            found |= json.loads(path.read_bytes())
        return found

    def remove(self, name: str) -> None:
        gone = self.manifest(name)
        self.path(name).unlink()
        used = {x["digest"] for p in self.names().values() for x in _all(json.loads(p.read_bytes()))}
        for layer in _all(gone):
            if layer["digest"] not in used:
                self.blob(layer["digest"]).unlink(missing_ok=True)


def _all(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [*manifest["layers"], manifest["config"]]


def header(path: Path) -> gguf.Header:
    with path.open("rb") as f:
        return gguf.read(f, path.stat().st_size)


class State:
    """One server's state: the folder, and what is loaded. `heard` holds the requests it got."""

    def __init__(self, root: Path, env: dict[str, str] | None = None) -> None:
        self.store, self.env = Store(root), env or {}
        self.loaded: dict[str, dict[str, Any]] = {}
        self.faults: set[str] = set()
        self.heard: list[tuple[str, str, Any]] = []
        self.pulls: dict[str, bytes] = {}
        self.remote: dict[str, str] = {}
        self.lock = threading.RLock()

    def fault(self, name: str) -> bool:
        """Whether it is told to fail in this way."""
        file = self.store.root / "faults"
        return name in self.faults or (file.exists() and name in file.read_text().split())

    # what it knows

    def tags(self) -> list[dict[str, Any]]:
        rows = []
        for name, path in self.store.names().items():
            manifest, config = json.loads(path.read_bytes()), self.store.config(name)
            row = {"name": name, "model": name, "size": sum(x["size"] for x in _all(manifest))}
            row |= {"digest": hashlib.sha256(path.read_bytes()).hexdigest(), "modified_at": "2026-01-01T00:00:00Z"}
            row["details"] = {"format": "gguf", "family": config.get("model_family", "")}
            rows.append(row | ({"remote_host": config["remote_host"]} if config.get("remote_host") else {}))
        return rows

    def ps(self) -> list[dict[str, Any]]:
        now = datetime.now(UTC)
        with self.lock:
            self.loaded = {n: m for n, m in self.loaded.items() if m["until"] > now}
            return [
                {"name": n, "model": n, "size": m["size"], "size_vram": m["vram"], "context_length": m["ctx"]}
                | {"expires_at": m["until"].isoformat(), "details": {}, "digest": ""}
                for n, m in self.loaded.items()
            ]

    def show(self, name: str) -> dict[str, Any]:
        config = self.store.config(name)
        if config.get("remote_host"):
            return {"remote_host": config["remote_host"], "remote_model": "x", "model_info": {}, "details": {}}
        path = self.store.layers(name, "model")[0]
        head = header(path)
        count = head.parameters - (1 if self.fault("wrong-model") else 0)
        lines = ['# Modelfile generated by "ollama show"', f"# FROM {name}", "", f"FROM {path}"]
        lines += [f"ADAPTER {p}" for p in self.store.layers(name, "adapter")]
        templates = [p.read_text() for p in self.store.layers(name, "template")]
        template = templates[0] if templates else head.text("tokenizer.chat_template")
        quantization = head.file_type or "unknown"
        return {
            "modelfile": "\n".join(lines) + "\n",
            "parameters": "\n".join(f"{k:<30} {v}" for k, v in self.store.params(name).items()),
            "template": template or "",
            "details": {
                "format": "gguf",
                "family": head.architecture,
                "quantization_level": quantization,
            },
            "model_info": {"general.architecture": head.architecture, "general.parameter_count": count},
            "capabilities": ["completion"],
        }

    # what it does

    def create(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The lines of /api/create; errors are lines, as the real one's."""
        name, files = body.get("model") or "", body.get("files")
        for file, digest in (files or {}).items():
            if file.startswith("/") or ".." in file.split("/"):
                raise Refused(400, "file path must be relative")
            if not digest:
                raise Refused(400, "invalid digest format")
        target = self.store.path(name)
        if self.fault("early-error"):
            raise Refused(500, "no space left on device")
        layers: list[dict[str, Any]] = []
        if source := body.get("from"):
            if self.fault("from-fails"):
                raise Refused(500, "chtimes: operation not permitted")
            if not self.store.path(source).exists():
                yield {"status": "pulling manifest"}
                yield {"error": f"pull model manifest: {source}: file does not exist"}
                return
            layers = [x | {"from": source} for x in self.store.manifest(source)["layers"]]
        elif files is not None:
            if not files:
                raise Refused(400, "no files provided to convert")
            yield {"status": "parsing GGUF"}
            layers = yield from self._imported(files)
        else:
            raise Refused(400, "neither 'from' or 'files' was specified")
        adapters = body.get("adapters") or {}
        if len(adapters) > 1:
            yield {"error": "only one adapter is currently supported", "status": 400}
            return
        layers += [self._layer("adapter", digest) for digest in adapters.values()]
        if self.fault("late-error"):
            yield {"error": "llama-quantize failed: tensor out of bounds"}
            return
        for kind in TEXTS:
            if body.get(kind):
                layers = [x for x in layers if x["mediaType"] != PREFIX + kind]
                layers.append(self._layer(kind, self.store.put(body[kind].encode())))
        if parameters := self._merged(layers, body.get("parameters") or {}):
            layers = [x for x in layers if x["mediaType"] != PREFIX + "params"]
            layers.append(self._layer("params", self.store.put(json.dumps(parameters).encode())))
        yield {"status": "writing manifest"}
        self._write(target, layers)
        if not self.fault("no-success"):
            yield {"status": "success"}

    def _imported(self, files: dict[str, str]) -> Iterator[Any]:
        """GGUF files given by digest: each is written anew, so that its digest changes; parts are merged."""
        parts, layers = b"", []
        for file in sorted(files):
            path = self.store.blob(files[file])
            if not path.exists():
                yield {"error": f"open {path}: no such file or directory"}
                return []
            if path.read_bytes()[:4] != b"GGUF":
                yield {"error": "supplied file was not in GGUF format", "status": 400}
                return []
            if header(path).architecture == "clip":
                layers.append(self._layer("projector", files[file]))
                continue
            total = path.stat().st_size
            yield {"status": "validating GGUF model", "digest": "0" * 19, "total": total, "completed": total}
            parts = parts or path.read_bytes()
        yield {"status": "verifying conversion"}
        return [self._layer("model", self.store.put(parts + bytes(32))), *layers]

    def _layer(self, kind: str, digest: str) -> dict[str, Any]:
        path = self.store.blob(digest)
        os.utime(path)  # the real one touches every layer it uses
        return {"mediaType": PREFIX + kind, "digest": digest, "size": path.stat().st_size}

    def _merged(self, layers: list[dict[str, Any]], parameters: dict[str, Any]) -> dict[str, Any]:
        old: dict[str, Any] = {}
        for layer in layers:
            if layer["mediaType"] == PREFIX + "params":
                old |= json.loads(self.store.blob(layer["digest"]).read_bytes())
        return old | parameters

    def _write(self, target: Path, layers: list[dict[str, Any]], **config: Any) -> None:
        model = next((x for x in layers if x["mediaType"] == PREFIX + "model"), None)
        family = header(self.store.blob(model["digest"])).architecture if model else ""
        digest = self.store.put(json.dumps({"model_format": "gguf", "model_family": family, **config}).encode())
        entry = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": digest}
        entry["size"] = str(self.store.blob(digest).stat().st_size)
        body = {"schemaVersion": 2, "config": entry | {"size": int(entry["size"])}, "layers": layers}
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(body))

    def stub(self, name: str, host: str) -> None:
        """A model that runs elsewhere."""
        self._write(self.store.path(name), [], remote_host=host)

    def pull(self, name: str) -> Iterator[dict[str, Any]]:
        yield {"status": "pulling manifest"}
        if name in self.remote:
            self.stub(name, self.remote[name])
        elif name not in self.pulls or self.fault("pull-error"):
            yield {"error": "pull model manifest: file does not exist"}
            return
        else:
            data = self.pulls[name]
            digest = self.store.put(data)
            yield {"status": f"pulling {digest[7:19]}", "digest": digest, "total": len(data)}
            yield {"status": f"pulling {digest[7:19]}", "digest": digest, "total": len(data), "completed": len(data)}
            yield {"status": "verifying sha256 digest"}
            yield {"status": "writing manifest"}
            self._write(self.store.path(name), [self._layer("model", digest)])
        if not self.fault("no-success"):
            yield {"status": "success"}

    def ready(self, name: str, options: dict[str, Any], keep: Any) -> str:
        """Have a model loaded; its name as shown."""
        path = self.store.path(name)
        shown = next((n for n, p in self.store.names().items() if p == path), None)
        if shown is None:
            raise Refused(404, f"model '{name}' not found")
        if host := self.store.config(shown).get("remote_host"):
            raise Refused(400, f"this server cannot run this remote model of {host}")
        usual = int(self.env.get("OLLAMA_CONTEXT_LENGTH") or 4096)
        ctx = int((self.store.params(shown) | options).get("num_ctx") or usual)
        if self.fault("small-ctx"):
            ctx //= 2
        size = self.store.layers(shown, "model")[0].stat().st_size + ctx * 1024
        with self.lock:
            old = self.loaded.get(shown)
            default = self.env.get("OLLAMA_KEEP_ALIVE") or "5m"
            idle = old["idle"] if old else seconds(int(default) if default.lstrip("-").isdigit() else default)
            idle = idle if keep is None else seconds(keep)
            until = datetime.now(UTC) + timedelta(seconds=min(idle, 3e9))
            vram = size // 2 if self.fault("half-gpu") else 0
            self.loaded[shown] = {"ctx": ctx, "size": size, "vram": vram, "idle": idle, "until": until}
        return shown
