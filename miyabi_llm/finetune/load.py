"""From YAML and `key.path=value` overrides to a Recipe, or to an error that names the line and the way out."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from miyabi_llm.errors import BadUsage
from miyabi_llm.finetune import rules, yamltext
from miyabi_llm.finetune.recipe import KNOWN_ELSEWHERE, Recipe
from miyabi_llm.finetune.yamltext import MOST_BYTES, Document, Place

SCHEMA_HINT = "`miyabi-llm finetune schema` prints every key; docs/reference/recipe.md says what they mean."


@dataclass(frozen=True, slots=True)
class Loaded:
    """A recipe as it was found: `path` is its file, `text` what stands there, `overrides` what was set besides."""

    recipe: Recipe
    path: Path
    text: str
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name: `export.name`, or the file's own."""
        return self.recipe.export.name or self.path.stem

    @property
    def sha256(self) -> str:
        """The hash of what it says in full, defaults and overrides included: two spellings of it are one recipe."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()

    def file(self, name: str) -> Path:
        """A path of the recipe: relative ones begin where the recipe lies."""
        return (self.path.parent / Path(name).expanduser()).absolute()

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, as JSON."""
        return self.recipe.model_dump(mode="json", by_alias=True)


def load(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """The recipe in `path` with `overrides` (`key.path=value`) on top. Raises BadUsage."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES * 4 + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError as e:
        raise BadUsage(f"{path}: no such file", hint="`miyabi-llm finetune new` writes a recipe for your data.") from e
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise BadUsage(f"{path}:{line}: not UTF-8", hint="Save the recipe as UTF-8.") from e
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}") from e
    return Loaded(parse(text, str(path), overrides), path.absolute(), text, tuple(overrides))


def parse(text: str, where: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that `text` is; `where` names it in errors. Raises BadUsage with all that is wrong. Pure."""
    document = yamltext.read(text, where)
    if not isinstance(document.value, dict):
        at = document.places.get((), Place(where))
        raise BadUsage(f"{at}: a recipe is a set of sections, beginning with `base:` and `data:`", hint=SCHEMA_HINT)
    for override in overrides:
        _set(document, override)
    try:
        recipe = Recipe.model_validate_json(json.dumps(document.value))
    except ValidationError as e:
        raise _explained(e, document, where) from e
    wrong = [(_place(document, path, where), path, why) for path, why in rules.judge(recipe)]
    if wrong:
        raise _joined([f"{at}: {'.'.join(path)}: {why}" for at, path, why in wrong], SCHEMA_HINT)
    return recipe


def _set(document: Document, override: str) -> None:
    """Put one `key.path=value` into the document."""
    where = f"--set {override[:120]}"
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise BadUsage(f"{where}: not of the form key.path=value", hint="For example --set train.max_steps=20.")
    value = yamltext.read(text, where)
    node = document.value
    for i, part in enumerate(path[:-1]):
        below = node.setdefault(part, {})
        if below is None:
            below = node[part] = {}
        if not isinstance(below, dict):
            raise BadUsage(f"{where}: {'.'.join(path[: i + 1])} is no section", hint=SCHEMA_HINT)
        document.places.setdefault(path[: i + 1], Place(where))
        node = below
    node[path[-1]] = value.value
    for known in [p for p in document.places if p[: len(path)] == path]:
        del document.places[known]
    document.places[path] = Place(where)


def _explained(error: ValidationError, document: Document, where: str) -> BadUsage:
    found: dict[tuple[str | int, ...], tuple[list[str], str | None]] = {}
    for one in error.errors(include_url=False):
        path = _real_path(one["loc"], document.value, missing=one["type"] == "missing")
        why, hint = _why(one, path)
        said, _ = found.setdefault(path, ([], hint))
        if why not in said:
            said.append(why)
    shown = [(f"{_place(document, p, where)}: {_dotted(p)}: {' or '.join(why)}", h) for p, (why, h) in found.items()]
    if len(shown) == 1:
        return _joined([shown[0][0]], shown[0][1] or SCHEMA_HINT)
    return _joined([f"{line}. {hint}" if hint else line for line, hint in shown], SCHEMA_HINT)


def _joined(lines: Sequence[str], hint: str) -> BadUsage:
    return BadUsage("\n".join(lines), hint=hint, problems=list(lines))


def _dotted(path: Sequence[str | int]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")[:200] or "recipe"


def _place(document: Document, path: Sequence[str | int], where: str) -> Place:
    """The place of `path`, or of the nearest thing above it that stands in the file."""
    found = tuple(path)
    while found and found not in document.places:
        found = found[:-1]
    return document.places.get(found, Place(where))


def _real_path(loc: Sequence[str | int], value: Any, *, missing: bool) -> tuple[str | int, ...]:
    """`loc` without the names of a union's members, which pydantic puts in."""
    path: list[str | int] = []
    for i, part in enumerate(loc):
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            if missing and i == len(loc) - 1:
                path.append(part)
            break
        path.append(part)
    return tuple(path)


def _why(one: Any, path: Sequence[str | int]) -> tuple[str, str | None]:
    """What is wrong, and what to type instead."""
    given = one.get("input")
    if one["type"] == "extra_forbidden":
        return "unknown key", belongs(path)
    if one["type"] == "missing":
        return "missing", f"Add `{path[-1]}:` under `{_dotted(path[:-1])}`." if len(path) > 1 else None
    if one["type"] == "literal_error":
        known = [str(v) for v in _literals(_field(path))]
        near = difflib.get_close_matches(str(given).lower(), known, n=1, cutoff=0.5)
        return f"{given!r:.80} is none of {', '.join(known)}", f"Did you mean {near[0]}?" if near else None
    text = str(one["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{given!r:.80} is not {text}" if one["msg"].startswith("Input should be") else text, None


def belongs(path: Sequence[str | int]) -> str:
    """For a key nobody knows: where it belongs, or what it may have meant."""
    key = str(path[-1])
    above = ".".join(str(p) for p in path[:-1])
    known = dict(keys(Recipe))
    places = [full for full in known if full.rpartition(".")[2] == key]
    if places:
        section = places[0].rpartition(".")[0]
        return f"It belongs under `{section}`: {places[0]}." if section else f"`{key}` is a section of its own."
    ours = KNOWN_ELSEWHERE.get(key.replace("-", "_"))
    if ours:
        return f"Here it is called {ours}."
    beside = {full.rpartition(".")[2]: full for full in known if full.rpartition(".")[0] == above}
    near = difflib.get_close_matches(key.lower(), beside, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]}?"
    everywhere = {full.rpartition(".")[2]: full for full in known}
    near = difflib.get_close_matches(key.lower(), everywhere, n=1, cutoff=0.75)
    if near:
        return f"Did you mean {everywhere[near[0]]}?"
    return f"Known under `{above or 'recipe'}`: {', '.join(beside)}."


def keys(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the schema by its full name, sections included, with pydantic's field of it."""
    for name, info in model.model_fields.items():
        full = f"{above}.{info.alias or name}" if above else (info.alias or name)
        yield full, info
        for inner in _models(info.annotation):
            yield from keys(inner, full)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _models(part)


def _field(path: Sequence[str | int]) -> Any:
    named: Mapping[str, Any] = dict(keys(Recipe))
    words = [p for p in path if isinstance(p, str)]
    while words and ".".join(words) not in named:
        words.pop()
    return named[".".join(words)].annotation if words else None


def _literals(annotation: Any) -> Iterator[Any]:
    for part in get_args(annotation):
        if isinstance(part, str):
            yield part
        else:
            yield from _literals(part)
