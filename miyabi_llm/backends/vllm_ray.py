"""vLLM on several machines: the commands to type on each of them, in order. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from miyabi_llm.types import Secret, ServeSpec

RAY_PORT = 6379
HEAD = "HEAD_ADDRESS"  # what a person replaces when the spec does not say where the head listens
WILD = ("0.0.0.0", "::", "")


@dataclass(frozen=True, slots=True)
class Step:
    """One command: on which machine, and why. `environment` are the variables that must be set; a key by name only."""

    where: Literal["every machine", "head", "each worker"]
    argv: tuple[str, ...]
    note: str
    environment: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"# {self.where}: {self.note}\n{' '.join((*self.environment, shlex.join(self.argv)))}"


def steps(spec: ServeSpec, argv: tuple[str, ...], env: Mapping[str, str | Secret], split: str) -> tuple[Step, ...]:
    """How `spec.nodes` machines come to serve one model: packages, Ray's head, its workers, the server.

    `argv` and `env` are the server's, `split` says how the model is shared. A key stands there by its variable only.
    """
    ray = f"{argv[0].rpartition('/')[0]}/ray"
    head = HEAD if spec.host in WILD else spec.host
    at = f"[{head}]:{RAY_PORT}" if ":" in head else f"{head}:{RAY_PORT}"
    variables = [f"VLLM_HOST_IP={head}"]
    variables += [f'{n}="$(cat KEY_FILE)"' if isinstance(v, Secret) else f"{n}={v}" for n, v in env.items()]
    return (
        Step("every machine", ("miyabi-llm", "backend", "install", "vllm"), "the same version everywhere"),
        Step("every machine", (argv[0], "-m", "pip", "install", "ray[cgraph]"), "Ray is not part of the environment"),
        Step(
            "head",
            (ray, "start", "--head", f"--node-ip-address={head}", f"--port={RAY_PORT}", "--disable-usage-stats"),
            "Ray asks nobody who he is: only on a network where you trust everybody",
        ),
        Step(
            "each worker",
            (ray, "start", f"--address={at}", "--disable-usage-stats"),
            f"{spec.nodes - 1} of them; the model's files must lie at the same path on each",
            ("VLLM_HOST_IP=WORKER_ADDRESS",),
        ),
        Step("head", (ray, "status"), f"must show {spec.nodes} nodes before the next step"),
        Step("head", argv, split, tuple(variables)),
    )
