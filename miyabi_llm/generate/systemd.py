"""A user unit of systemd that runs `miyabi-llm serve`. Pure."""

from __future__ import annotations

from miyabi_llm.generate.values import Generated, Native
from miyabi_llm.generate.words import comment, refuse_control, unit_line, unit_text, unit_word

STOP_S = 45  # seconds: requests get 10 to end, the server 10 more, and the supervisor its own

# What a unit of a user can have without privileges; what would make code at run time impossible is left out, because
# drivers of GPUs do that.
HARDENING = """\
NoNewPrivileges=yes
UMask=0077
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
"""


def unit(service: Native) -> Generated:
    """The unit. Raises BadUsage for words that cannot be written down."""
    refuse_control([service.model, *service.command, *service.env.values()])
    file = f"{service.name}.service"
    steps = (
        f"install -D -m 0644 {file} ~/.config/systemd/user/{file}",
        "systemctl --user daemon-reload",
        f"systemctl --user enable --now {file}",
        "loginctl enable-linger  # it runs while you are not logged in, too",
    )
    env = "".join(f"Environment={unit_word(f'{k}={v}', expands=False)}\n" for k, v in service.env.items())
    text = f"""\
{comment(steps)}
[Unit]
Description={unit_text(f"{service.model} served by miyabi-llm")}
StartLimitIntervalSec=600
StartLimitBurst=5

[Service]
Type=exec
ExecStart={unit_line(service.command)}
{env}\
Restart=on-failure
RestartSec=5
# wrong usage, a missing program or model, a machine too small: starting again would not help
RestartPreventExitStatus=2 3 4
TimeoutStopSec={STOP_S}
KillMode=mixed
# one process out of memory is told of and restarted by miyabi-llm itself
OOMPolicy=continue
{HARDENING}
[Install]
WantedBy=default.target
"""
    return Generated("systemd", file, text, steps)
