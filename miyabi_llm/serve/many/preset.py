"""A preset for llama-server's router, made from the command lines our plans would run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from miyabi_llm.errors import BadUsage
from miyabi_llm.types import LaunchPlan

# The router says these itself for every server it starts.
_ROUTERS = frozenset(("host", "port", "alias", "a", "api-key", "api-key-file", "models-dir", "models-preset"))
_VALUE = re.compile(r"-\.?\d")  # a negative number is a value, not an option
_UNSAFE = re.compile(r"[;#\r\n]|^\s|\s$")  # its reader takes them for a comment or the end of a line
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


class Unpresentable(BadUsage):
    """A command line that the preset's format cannot hold: such a model gets a process of its own."""


def sections(plans: Mapping[str, LaunchPlan]) -> dict[str, str]:
    """For each alias the name of its section: the alias itself where the router leaves it alone.

    It rewrites what follows a colon (`gemma3:270m` becomes `gemma3:270M`), so such a name loses its colon. Pure.
    """
    names: dict[str, str] = {}
    for alias in plans:
        name, number = plain(alias), 2
        while name in names.values() or (name != alias and name in plans):
            name, number = f"{plain(alias)}-{number}", number + 1
        names[alias] = name
    return names


def plain(alias: str) -> str:
    """An alias in letters that the router leaves alone. Pure."""
    return _NAME.sub("-", alias).strip("-") or "model"


def text(plans: Mapping[str, LaunchPlan], program: tuple[str, ...], names: Mapping[str, str]) -> str:
    """The preset for `plans`, whose command lines all begin with `program`. Raises Unpresentable. Pure."""
    lines = ["version = 1", ""]
    for alias, plan in plans.items():
        if _UNSAFE.search(alias) or "," in alias or "]" in alias:
            raise Unpresentable(f"{alias!r} is no name for llama-server's router")
        lines.append(f"[{names[alias]}]")
        if names[alias] != alias:
            lines.append(f"alias = {alias}")
        lines += [f"{key} = {value}" for key, value in options(plan, program).items()]
        lines.append("")
    return "\n".join(lines)


def options(plan: LaunchPlan, program: tuple[str, ...]) -> dict[str, str]:
    """The options of a plan's command line by their names without dashes; a flag is `true`. Raises Unpresentable."""
    argv = plan.argv or ()
    if argv[: len(program)] != program:
        raise Unpresentable(f"{plan.endpoint.model}: another program than the router's")
    found: dict[str, str] = {}
    for key, value in _pairs(argv[len(program) :]):
        if key in _ROUTERS:
            continue
        if key in found and key in ("lora", "lora-scaled", "override-kv", "override-tensor", "control-vector"):
            raise Unpresentable(f"{plan.endpoint.model}: --{key} more than once")
        if _UNSAFE.search(value):
            raise Unpresentable(f"{plan.endpoint.model}: --{key} {value!r} does not fit into a preset")
        found[key] = value  # the last one wins, as on a command line
    return found


def _pairs(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or _VALUE.match(word):
            raise Unpresentable(f"{word!r} belongs to no option")
        key, equals, value = word.lstrip("-").partition("=")
        if not equals:
            takes = rest and (not rest[0].startswith("-") or _VALUE.match(rest[0]))
            value = rest.pop(0) if takes else "true"
        yield key, value
