"""Words in other programs' files: names they accept, and quoting as they read it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from miyabi_llm.errors import BadUsage

LONGEST = 50  # characters of a name: Kubernetes adds its own to it, up to 63
WIDTH = 1 << 20  # characters of a YAML line: a long path is not folded
_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+", re.ASCII)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]|[\ud800-\udfff]")


def identifier(text: str) -> str:
    """A name for a service that all kinds accept: `qwen2.5-coder:1.5b` becomes `qwen2-5-coder-1-5b`."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    name = name if name[:1].isalpha() else f"model-{name}"
    return name[:LONGEST].strip("-")


def refuse_control(words: Iterable[str]) -> None:
    """Raise BadUsage for a word with a line break or another character that text files cannot hold."""
    for word in words:
        if found := _CONTROL.search(word):
            what = f"{word!r} has the character U+{ord(found[0]):04X}, which cannot be written down"
            raise BadUsage(what, hint="Rename it without.")


def unit_word(word: str, *, expands: bool = True) -> str:
    """One word of a systemd setting. `expands` where systemd would replace variables ($) too: in commands."""
    word = word.replace("%", "%%")
    if expands:
        word = word.replace("$", "$$")
    if _PLAIN.fullmatch(word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def unit_line(words: Iterable[str]) -> str:
    """A command line as systemd reads it."""
    return " ".join(unit_word(word) for word in words)


def unit_text(text: str) -> str:
    """Free text in a systemd setting, such as a description."""
    return text.replace("%", "%%").replace("\\", "\\\\")


def yaml(documents: Iterable[Any]) -> str:
    """Documents in block style, keys in the order given, scripts as they are written."""
    from yaml import SafeDumper, ScalarNode, dump_all

    class Dumper(SafeDumper):
        """Says everything where it belongs: no anchors."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: SafeDumper, value: str) -> ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, "|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return str(dump_all(documents, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=WIDTH))


def comment(lines: Iterable[str]) -> str:
    """Lines as a comment, in every form but a property list."""
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def published(address: str, port: int) -> str:
    """A port of a container at the same port of this machine's `address`."""
    return f"[{address}]:{port}:{port}" if ":" in address else f"{address}:{port}:{port}"


def mebibytes(size: int) -> str:
    """Bytes as Kubernetes and compose write them, rounded up to whole MiB."""
    return f"{-(-size // (1 << 20))}Mi"
