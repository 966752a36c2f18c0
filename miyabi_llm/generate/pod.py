"""The parts of a pod: the server with its probes, and the check of the model's bytes before it starts. Pure."""

from __future__ import annotations

import hashlib
import shlex
from typing import Any

from miyabi_llm.generate.values import Container, Mount
from miyabi_llm.generate.words import mebibytes, refuse_control

FOLDER = "/models"
LOAD_S = 3600  # seconds a server may take to load
GPU = "nvidia.com/gpu"


def check(service: Container) -> None:
    """Raise BadUsage for words that cannot be written down."""
    refuse_control([service.model, *service.args, *service.env.values(), *(m.inside for m in service.mounts)])


def secret(service: Container) -> str:
    """What the Secret with the key is called; it is made by a command, never written into a file."""
    return f"{service.name}-key"


def labels(service: Container) -> dict[str, str]:
    """The labels of everything that belongs to one server."""
    return {
        "app.kubernetes.io/name": service.name,
        "app.kubernetes.io/component": "server",
        "app.kubernetes.io/managed-by": "miyabi-llm",
    }


def verify_script(mounts: tuple[Mount, ...], folder: str = FOLDER) -> str:
    """A POSIX shell script that waits for the model's files, and ends well only when their sha256 are right.

    A mark beside the files spares the next start the hashing.
    """
    state = hashlib.sha256("".join(f"{m.inside}:{m.sha256}" for m in mounts).encode()).hexdigest()[:16]
    names = {m: m.inside.removeprefix(f"{FOLDER}/") for m in mounts}
    waits = "\n".join(f"wait_for {shlex.quote(name)} {m.size}" for m, name in names.items())
    checks = "\n".join(f"check {shlex.quote(name)} {m.sha256}" for m, name in names.items())
    return f"""\
set -eu
cd {shlex.quote(folder)}
mark=.verified-{state}
wait_for() {{
  until [ "$(wc -c 2>/dev/null < "$1" || true)" = "$2" ]; do echo "waiting for $1"; sleep 5; done
}}
check() {{
  found=$(sha256sum < "$1" | cut -c 1-64)
  [ "$found" = "$2" ] || {{ echo "$1: sha256 is $found, should be $2"; exit 1; }}
}}
{waits}
if [ -e "$mark" ]; then exit 0; fi
{checks}
: > "$mark"
echo verified
"""


def spec(service: Container, server: dict[str, Any], *, waits: bool = True) -> dict[str, Any]:
    """The pod's spec around the container of the server."""
    volumes: list[dict[str, Any]] = [
        {"name": "models", "persistentVolumeClaim": {"claimName": f"{service.name}-models"}}
    ]
    if service.image.shared_memory:
        volumes.append({"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}})
    body: dict[str, Any] = {
        "automountServiceAccountToken": False,
        # a variable NAME_PORT for each service would be read as an option by some servers
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 45,
        "initContainers": [_verifier(service)] if waits else [],
        "containers": [server],
        "volumes": volumes,
    }
    return body


def server(service: Container, *, name: str = "server") -> dict[str, Any]:
    """The container of the server: its command, its key from the Secret, its resources and its probes."""
    image = service.image
    body: dict[str, Any] = {"name": name, "image": image.name}
    if image.entry:
        body["command"] = list(image.entry)
    key = {"name": image.key_variable, "valueFrom": {"secretKeyRef": {"name": secret(service), "key": "key"}}}
    return body | {
        "args": [literal(word) for word in service.args],
        "env": [key, *({"name": k, "value": literal(v)} for k, v in service.env.items())],
        "ports": [{"name": "http", "containerPort": service.port}],
        "resources": resources(service),
        "securityContext": _confined(),
        "volumeMounts": mounts(service),
        **probes(service),
    }


def mounts(service: Container) -> list[dict[str, Any]]:
    """The model read-only, and shared memory for servers whose processes talk through it."""
    found: list[dict[str, Any]] = [{"name": "models", "mountPath": FOLDER, "readOnly": True}]
    return found + ([{"name": "dshm", "mountPath": "/dev/shm"}] if service.image.shared_memory else [])


def probes(service: Container) -> dict[str, Any]:
    """Loading may take an hour; after that three minutes of silence are its end."""
    http = {"httpGet": {"path": service.health, "port": "http"}}
    return {
        "startupProbe": http | {"periodSeconds": 10, "failureThreshold": LOAD_S // 10},
        "readinessProbe": http | {"periodSeconds": 5, "timeoutSeconds": 5},
        "livenessProbe": http | {"periodSeconds": 30, "timeoutSeconds": 10, "failureThreshold": 6},
    }


def resources(service: Container) -> dict[str, Any]:
    """What it needs: memory always, processors where their number was given, GPUs as a limit as Kubernetes wants it."""
    requests: dict[str, str] = {"memory": mebibytes(service.memory)}
    if service.threads:
        requests["cpu"] = str(service.threads)
    if not service.gpus:
        return {"requests": requests}
    return {"requests": requests | {GPU: str(service.gpus)}, "limits": {GPU: str(service.gpus)}}


def literal(word: str) -> str:
    """A word as Kubernetes hands it on unchanged: `$(` would start a variable, and `$$` is one `$`."""
    return word.replace("$", "$$")


def _verifier(service: Container) -> dict[str, Any]:
    return {
        "name": "model",
        "image": service.image.name,
        "command": ["/bin/sh", "-c", literal(verify_script(service.mounts))],
        "securityContext": _confined(),
        "volumeMounts": [{"name": "models", "mountPath": FOLDER}],
    }


def _confined() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
