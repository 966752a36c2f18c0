"""vLLM on several machines: the commands to type on each of them, in order. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

from miyabi_llm.backends.base import Detected
from miyabi_llm.backends.vllm import KEY_VARIABLE, Vllm, loopback, sizes
from miyabi_llm.errors import BadUsage
from miyabi_llm.types import ServeSpec

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


def cluster(spec: ServeSpec, found: Detected) -> tuple[Step, ...]:
    """How `spec.nodes` machines come to serve one model: packages, Ray's head, its workers, the server.

    Raises BadUsage for fewer than two machines or a head that the others cannot reach, and what the plan raises.
    """
    if spec.nodes < 2:
        raise BadUsage("a cluster has two machines or more", hint="Give --nodes 2.")
    if loopback(spec.host):
        raise BadUsage(
            f"the other machines cannot reach the head at {spec.host}",
            hint="Give --host the head's address on a private network, with --key.",
        )
    plan = Vllm().plan(spec, found)
    assert plan.argv is not None
    assert found.program is not None
    python = plan.argv[0]
    ray = f"{python.rsplit('/', 1)[0]}/ray"
    head = HEAD if spec.host in WILD else spec.host
    at = f"[{head}]:{RAY_PORT}" if ":" in head else f"{head}:{RAY_PORT}"
    tensor, pipeline = sizes(spec)
    env = [f"VLLM_HOST_IP={head}"]
    env += [f'{KEY_VARIABLE}="$(cat KEY_FILE)"'] if spec.key else []
    env += [f"{name}={value}" for name, value in plan.env.items() if name != KEY_VARIABLE]
    return (
        Step("every machine", ("miyabi-llm", "backend", "install", "vllm"), "the same version everywhere"),
        Step("every machine", (python, "-m", "pip", "install", "ray[cgraph]"), "Ray is not part of the environment"),
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
        Step("head", plan.argv, f"tensor parallel {tensor}, pipeline parallel {pipeline}", tuple(env)),
    )
