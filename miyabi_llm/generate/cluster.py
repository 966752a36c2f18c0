"""vLLM on several machines of a Kubernetes cluster: a LeaderWorkerSet whose leader starts Ray and the server. Pure.

The shape follows vLLM's own page on LeaderWorkerSet: its script in the image starts Ray on both kinds of pod, and the
leader waits for all of them before it serves.
"""

from __future__ import annotations

import shlex
from typing import Any

from miyabi_llm.errors import BadUsage
from miyabi_llm.generate import pod
from miyabi_llm.generate.values import Container

# The script has moved between folders of the image from one release to the next.
SCRIPT = "/vllm-workspace/examples/*/multi-node-serving.sh"


def leader(service: Container) -> dict[str, str]:
    """The labels by which the Service finds the leader, the only one that answers."""
    return {"leaderworkerset.sigs.k8s.io/name": service.name, "role": "leader"}


def group(service: Container) -> dict[str, Any]:
    """The LeaderWorkerSet. Raises BadUsage for a backend that cannot share a model."""
    if service.image.entry[:1] != ("vllm",):
        raise BadUsage("several machines share a model with vLLM only", hint="Use --backend vllm, or one node.")
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": service.name, "labels": pod.labels(service)},
        "spec": {
            "replicas": 1,
            "leaderWorkerTemplate": {
                "size": service.nodes,
                # one machine less is no model: all start again together
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": {
                    "metadata": {"labels": pod.labels(service) | {"role": "leader"}},
                    "spec": pod.spec(service, _leader(service)),
                },
                "workerTemplate": {
                    "metadata": {"labels": pod.labels(service) | {"role": "worker"}},
                    "spec": pod.spec(service, _worker(service)),
                },
            },
        },
    }


def _leader(service: Container) -> dict[str, Any]:
    body = pod.server(service)
    serve = pod.literal(shlex.join((*service.image.entry, *service.args)))
    del body["args"]
    body["command"] = ["/bin/sh", "-c", f"bash {SCRIPT} leader --ray_cluster_size=$(LWS_GROUP_SIZE) && exec {serve}"]
    return body


def _worker(service: Container) -> dict[str, Any]:
    """A worker has no port and needs no key: it obeys Ray."""
    body = pod.server(service, name="worker")
    kept = {k: v for k, v in body.items() if k in ("name", "image", "resources", "securityContext", "volumeMounts")}
    kept["env"] = body["env"][1:]
    kept["command"] = ["/bin/sh", "-c", f"exec bash {SCRIPT} worker --ray_address=$(LWS_LEADER_ADDRESS)"]
    return kept
