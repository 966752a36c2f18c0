"""Lists of Japanese names, from an optional package: for names that nothing in a text says to be names."""

from __future__ import annotations

from functools import cache

from miyabi_llm.detect import Names
from miyabi_llm.errors import Missing

_PACKAGE = "japanese_personal_name_dataset"
_FAMILY = ("last_name_org.csv",)
_GIVEN = ("first_name_man_org.csv", "first_name_woman_org.csv")


class NamesMissing(Missing):
    """The policy wants names to be looked for, and the lists are not installed."""

    code = "names-missing"


@cache
def names() -> Names:
    """Family and given names in kanji. Raises NamesMissing."""
    from importlib.resources import files

    try:
        folder = files(_PACKAGE) / "dataset"
        rows = {file: (folder / file).read_text(encoding="utf-8").splitlines() for file in (*_FAMILY, *_GIVEN)}
    except (ModuleNotFoundError, OSError, UnicodeDecodeError) as e:
        raise NamesMissing(
            "names cannot be looked for: the lists are not installed", hint="pip install 'miyabi-llm[names]'"
        ) from e
    family = frozenset(row.split(",")[0] for file in _FAMILY for row in rows[file])
    given = frozenset(name for file in _GIVEN for row in rows[file] for name in row.split(",")[2:])
    return Names(family, given)
