"""A container unit for podman's quadlet. Pure."""

from __future__ import annotations

import shlex

from miyabi_llm.errors import BadUsage
from miyabi_llm.generate.images import PIN
from miyabi_llm.generate.values import Container, Generated
from miyabi_llm.generate.words import comment, published, refuse_control, unit_line, unit_text, unit_word


def unit(service: Container) -> Generated:
    """The `.container` file. Raises BadUsage for words or paths that cannot be written down in it."""
    paths = [str(m.host) for m in service.mounts]
    refuse_control([service.model, *service.args, *service.env.values(), *paths])
    if bad := next((p for p in paths if ":" in p), None):
        raise BadUsage(f"{bad} has a ':', which ends a path in a quadlet's Volume=", hint="Use --generate compose.")
    file = f"{service.name}.container"
    steps = (
        f"tr -d '\\n' < {shlex.quote(str(service.key_file))} | podman secret create {service.name}-key -",
        f"install -D -m 0644 {file} ~/.config/containers/systemd/{file}",
        "systemctl --user daemon-reload",
        f"systemctl --user start {service.name}",
        "loginctl enable-linger  # it runs while you are not logged in, too",
    )
    lines = [
        f"ContainerName={service.name}",
        f"Image={unit_word(service.image.name, expands=False)}",
        *_entry(service),
        f"Exec={unit_line((*service.image.entry[1:], *service.args))}",
        f"PublishPort={published(service.address, service.port)}",
        *(f"Volume={unit_word(f'{m.host}:{m.inside}:ro')}" for m in service.mounts),
        f"Secret={service.name}-key,type=env,target={service.image.key_variable}",
        *(f"Environment={unit_word(f'{k}={v}', expands=False)}" for k, v in service.env.items()),
        f"HealthCmd={unit_line([shlex.join((*service.image.probe, _url(service)))])}",
        "HealthInterval=30s",
        "HealthStartPeriod=600s",
        "NoNewPrivileges=true",
        "DropCapability=all",
        # the model's files may be their owner's only
        "AddCapability=DAC_OVERRIDE",
        *(["ShmSize=2g"] if service.image.shared_memory else []),
        *(["AddDevice=nvidia.com/gpu=all"] if service.gpus else []),
    ]
    text = f"""\
{comment((*steps, "", PIN))}
[Unit]
Description={unit_text(f"{service.model} in a container")}
StartLimitIntervalSec=600
StartLimitBurst=5

[Container]
{chr(10).join(lines)}

[Service]
Restart=on-failure
RestartSec=5
# the first start fetches the image
TimeoutStartSec=1800
TimeoutStopSec=45

[Install]
WantedBy=default.target
"""
    return Generated("quadlet", file, text, steps, (PIN,))


def _entry(service: Container) -> list[str]:
    entry = service.image.entry
    return [f"PodmanArgs=--entrypoint={unit_word(entry[0])}"] if entry else []


def _url(service: Container) -> str:
    return f"http://127.0.0.1:{service.port}{service.health}"
