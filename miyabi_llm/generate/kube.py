"""Manifests for Kubernetes: a volume for the model, a Deployment with probes, and a Service. Pure."""

from __future__ import annotations

import shlex
from typing import Any

from miyabi_llm.generate import cluster, pod
from miyabi_llm.generate.images import PIN
from miyabi_llm.generate.values import Container, Generated
from miyabi_llm.generate.words import comment, mebibytes, yaml

ROOM = 1 << 30  # bytes of the volume beside the model


def manifests(service: Container) -> Generated:
    """The manifests; on several machines a group of pods in place of the Deployment. Raises BadUsage."""
    pod.check(service)
    if service.nodes > 1:
        workload, selector, first = cluster.group(service), cluster.leader(service), f"pod/{service.name}-0"
    else:
        workload, selector, first = _deployment(service), pod.labels(service), f"deployment/{service.name}"
    file = f"{service.name}.yaml"
    steps = (
        f"tr -d '\\n' < {shlex.quote(str(service.key_file))}"
        f" | kubectl create secret generic {pod.secret(service)} --from-file=key=/dev/stdin",
        f"kubectl apply -f {file}",
        f"{_tar(service)} | kubectl exec -i {first} -c model -- tar -C {pod.FOLDER} --no-same-owner -xf -",
        f"kubectl port-forward service/{service.name} {service.port}:{service.port}",
    )
    notes = [PIN]
    if service.nodes > 1:
        notes.append("the cluster needs the LeaderWorkerSet controller, and a volume several machines can mount")
    text = comment((*steps, "", *notes)) + yaml([_claim(service), workload, _service(service, selector)])
    return Generated("kube", file, text, steps, tuple(notes))


def _claim(service: Container) -> dict[str, Any]:
    size = sum(m.size for m in service.mounts) + ROOM
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": f"{service.name}-models", "labels": pod.labels(service)},
        "spec": {
            "accessModes": ["ReadWriteMany" if service.nodes > 1 else "ReadWriteOnce"],
            "resources": {"requests": {"storage": mebibytes(size)}},
        },
    }


def _deployment(service: Container) -> dict[str, Any]:
    labels = pod.labels(service)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": service.name, "labels": labels},
        "spec": {
            "replicas": 1,
            # the old one must let go of the GPU and the volume first
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod.spec(service, pod.server(service))},
        },
    }


def _service(service: Container, selector: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service.name, "labels": pod.labels(service)},
        "spec": {
            "type": "ClusterIP",
            "selector": selector,
            "ports": [{"name": "http", "port": service.port, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def _tar(service: Container) -> str:
    """Pack the model's files under the names they have in the pod, wherever they lie here."""
    folders = {m.host.parent for m in service.mounts}
    if len(folders) == 1 and all(m.inside == f"{pod.FOLDER}/{m.host.name}" for m in service.mounts):
        names = shlex.join(m.host.name for m in service.mounts)
        return f"tar -C {shlex.quote(str(folders.pop()))} -chf - {names}"
    root = service.mounts[0].host
    for _ in service.mounts[0].inside.removeprefix(f"{pod.FOLDER}/").split("/"):
        root = root.parent
    names = shlex.join(m.inside.removeprefix(f"{pod.FOLDER}/") for m in service.mounts)
    return f"tar -C {shlex.quote(str(root))} -chf - {names}"
