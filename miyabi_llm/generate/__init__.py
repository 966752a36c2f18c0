"""Write a server down as a service: for systemd, launchd, podman, compose or Kubernetes. Values in, text out; pure."""

from __future__ import annotations

from collections.abc import Callable

from miyabi_llm.generate import cluster, compose, kube, launchd, quadlet, systemd
from miyabi_llm.generate.images import image
from miyabi_llm.generate.values import Container, Generated, Image, Kind, Mount, Native
from miyabi_llm.generate.words import identifier

NATIVE: dict[str, Callable[[Native], Generated]] = {"systemd": systemd.unit, "launchd": launchd.agent}
CONTAINER: dict[str, Callable[[Container], Generated]] = {
    "quadlet": quadlet.unit,
    "compose": compose.project,
    "kube": kube.manifests,
}
KINDS = ("systemd", "quadlet", "compose", "kube", "launchd")

__all__ = [
    "CONTAINER",
    "KINDS",
    "NATIVE",
    "Container",
    "Generated",
    "Image",
    "Kind",
    "Mount",
    "Native",
    "cluster",
    "identifier",
    "image",
]
