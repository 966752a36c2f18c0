"""A first policy, with a comment for every line one may want to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CLOUD = "https://api.anthropic.com"
LOCAL = "http://127.0.0.1:8080"


@dataclass(frozen=True, slots=True)
class Here:
    """A local server to write down: its target's name, base URL, model and backend (empty: not said)."""

    name: str = "local"
    url: str = LOCAL
    model: str = ""
    backend: str = ""


def write(mode: str, locals_: Sequence[Here] = (), cloud: str = CLOUD) -> str:
    """The text of a policy in TOML. Pure."""
    here = tuple(locals_) or (Here(),)
    return _HEAD.format(mode=mode, cloud=cloud) + "".join(_local(h, i == 0) for i, h in enumerate(here)) + _REST.format(
        first=here[0].name
    )  # fmt: skip


def _local(here: Here, first: bool) -> str:
    lines = [f"[targets.{here.name}]", 'kind = "local"', f'url = "{here.url}"']
    lines.append(
        f'model = "{here.model}"' if here.model else '# model = "NAME"   # without it, the client\'s name for it'
    )
    lines += [f'backend = "{here.backend}"'] if here.backend and here.backend != "gateway" else []
    if first:
        lines += [
            '# aliases = ["small"]         # a client that asks for the model "small" gets this target, and no other',
            "# context = 32768             # longer requests pass it by",
            '# hosts = ["192.168.1.0/24"]  # when it is not on this machine: the network in which it counts as local',
        ]
    return "\n".join(lines) + "\n\n"


_HEAD = """\
# Where requests go, and what may never leave. All keys: miyabi-llm route schema
# Try it without sending anything: miyabi-llm route explain FILE
version = 1
mode = "{mode}"   # claude: the cloud first, local when it fails; hybrid: local first; local: never a cloud

[targets.claude]
kind = "claude"
url = "{cloud}"
key_env = "ANTHROPIC_API_KEY"   # the NAME of a variable; keys do not belong in files
# model = "claude-sonnet-5-5"   # without it, the model that the client asks for

"""

_REST = """\
# Rules choose; the first whose `when` holds. Privacy comes before every rule.
[[rules]]
name = "bulk"
when = {{ hint = ["bulk", "cheap"] }}   # header x-miyabi-hint
use = "{first}"
fallback = ["claude"]

[privacy]
# A request in which nothing private is found: "public" may go to the cloud, "internal" stays.
default_verdict = "public"
# A request that names such a path stays. With a folder: coding agents name a bare `.env` in their own instructions,
# and with "**/.env" no request of theirs would ever reach the cloud.
deny_globs = ["**/secrets/**", "*/.env", "*/.env.*", "*/*.pem", "*/*.key", "*/.ssh/*", "*.kdbx"]
# Kinds of findings that do not count: miyabi-llm route explain names them.
ignore = ["ip-private"]
# Text that is found and does not count, such as your own public address.
allow = []
# projects = [{{ match = "customer-*", verdict = "confidential" }}]   # header x-miyabi-project

[budget]
# monthly_usd = 50        # reserved before a request is sent, at its worst
# per_request_usd = 2

[electricity]             # for honest savings
# watts = 60              # of this machine at work, beyond idle
# price_per_kwh = 31
# currency = "JPY"
# per_usd = 155

# end of policy
"""
