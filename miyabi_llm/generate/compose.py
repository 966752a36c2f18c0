"""A compose project. Pure."""

from __future__ import annotations

import shlex
from typing import Any

from miyabi_llm.generate.images import PIN
from miyabi_llm.generate.values import Container, Generated
from miyabi_llm.generate.words import comment, published, refuse_control, yaml

SECRET = "api-key"


def project(service: Container) -> Generated:
    """`compose.yaml`. Raises BadUsage for words that cannot be written down."""
    paths = [str(m.host) for m in service.mounts]
    refuse_control([service.model, *service.args, *service.env.values(), *paths, str(service.key_file)])
    image = service.image
    body: dict[str, Any] = {"image": image.name, **_command(service)}
    if service.env:
        body["environment"] = dict(service.env)
    body |= {
        "ports": [published(service.address, service.port)],
        "volumes": [
            {
                "type": "bind",
                "source": str(m.host),
                "target": m.inside,
                "read_only": True,
                "bind": {"create_host_path": False},
            }
            for m in service.mounts
        ],
        "secrets": [SECRET],
        "healthcheck": {
            "test": ["CMD", *image.probe, f"http://127.0.0.1:{service.port}{service.health}"],
            "interval": "30s",
            "timeout": "10s",
            "retries": 3,
            "start_period": "600s",
        },
        "restart": "unless-stopped",
        "init": True,
        "stop_grace_period": "45s",
        "security_opt": ["no-new-privileges:true"],
        "cap_drop": ["ALL"],
        # the model's files and the key may be their owner's only
        "cap_add": ["DAC_OVERRIDE"],
    }
    if image.shared_memory:
        body["shm_size"] = "2gb"
    if service.gpus:
        devices = [{"driver": "nvidia", "count": service.gpus, "capabilities": ["gpu"]}]
        body["deploy"] = {"resources": {"reservations": {"devices": devices}}}
    whole = {
        "name": service.name,
        "services": {"server": body},
        "secrets": {SECRET: {"file": str(service.key_file)}},
    }
    steps = ("docker compose up -d --wait", f"curl http://127.0.0.1:{service.port}/v1/models{_auth(service)}")
    text = comment((*steps, "", PIN)) + yaml([_literal(whole)])
    return Generated("compose", "compose.yaml", text, steps, (PIN,))


def _command(service: Container) -> dict[str, Any]:
    """How the server finds its key in the secret's file: by its own option, else a shell puts it into a variable."""
    image, path = service.image, f"/run/secrets/{SECRET}"
    if image.key_option:
        command = [*service.args, image.key_option, path]
        return ({"entrypoint": list(image.entry)} if image.entry else {}) | {"command": command}
    script = f'{image.key_variable}="$(cat {path})" && export {image.key_variable} && exec "$@"'
    return {"entrypoint": ["/bin/sh", "-c", script, "sh"], "command": [*image.entry, *service.args]}


def _literal(value: Any) -> Any:
    """Every `$` doubled: compose replaces variables in all values."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, dict):
        return {k: _literal(v) for k, v in value.items()}
    return [_literal(v) for v in value] if isinstance(value, list) else value


def _auth(service: Container) -> str:
    return f' -H "Authorization: Bearer $(cat {shlex.quote(str(service.key_file))})"'
