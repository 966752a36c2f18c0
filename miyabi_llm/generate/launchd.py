"""A user agent of launchd that runs `miyabi-llm serve`. Pure."""

from __future__ import annotations

import plistlib
import shlex

from miyabi_llm.generate.systemd import STOP_S
from miyabi_llm.generate.values import Generated, Native
from miyabi_llm.generate.words import refuse_control

PREFIX = "miyabi-llm"


def agent(service: Native) -> Generated:
    """The property list. Raises BadUsage for words that cannot be written down."""
    refuse_control([service.model, *service.command, *service.env.values(), str(service.log)])
    label = f"{PREFIX}.{service.name}"
    body = {
        "Label": label,
        "ProgramArguments": list(service.command),
        "EnvironmentVariables": dict(service.env),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 10,
        "ExitTimeOut": STOP_S,
        "ProcessType": "Interactive",  # a background process would be slowed down
        "Umask": 0o077,
        "StandardOutPath": str(service.log),
        "StandardErrorPath": str(service.log),
    }
    file = f"{label}.plist"
    steps = (
        f"mkdir -p {shlex.quote(str(service.log.parent))} ~/Library/LaunchAgents",
        f"cp {file} ~/Library/LaunchAgents/",
        f"launchctl bootstrap gui/$(id -u) ~/Library/LaunchAgents/{file}",
    )
    text = plistlib.dumps(body, sort_keys=False).decode("utf-8")
    return Generated("launchd", file, text, steps)
