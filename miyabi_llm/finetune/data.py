"""The data of a run: read, judged, split, measured in tokens and written, or refused with the numbers of its rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miyabi_llm.dataset import NEEDED, Problem, Read, Reading, Row, alike, files, lint, read, split
from miyabi_llm.dataset.facts import Facts
from miyabi_llm.engines.base import Job
from miyabi_llm.errors import BadUsage
from miyabi_llm.types import Event, OnEvent, counted, plain, silent

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.engines.base import Engine
    from miyabi_llm.finetune.load import Loaded

GOLDEN = 16  # rows of each side whose tokens are named, so that the next run sees whether they changed
BUILTIN = "builtin"  # the name of our own forgetting set
SURE = 0.7  # confidence from which a secret is reported; shapes that others share are not
NAMED = 5  # rows named in an error


@dataclass(frozen=True, slots=True)
class Tools:
    """What reads and renders: the engine, and the folder of the model whose tokenizer counts; None: no tokens."""

    engine: Engine
    settings: Settings
    model: Path | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """The rows of each side as they go into a run, and what is known of them.

    `long` are those left out as too long. `golden` maps ids of rows to names of their tokens; `kept` are whole rendered
    rows for people; `special` and `template` (sha256) say what the tokenizer is like.
    """

    learn: tuple[Row, ...]
    held: tuple[Row, ...]
    forget: tuple[Row, ...]
    long: tuple[Row, ...]
    problems: tuple[Problem, ...]
    report: lint.Report
    golden: Mapping[str, str] = field(default_factory=dict)
    kept: Sequence[Mapping[str, Any]] = ()
    special: Mapping[str, Any] = field(default_factory=dict)
    template: str = ""


@dataclass(frozen=True, slots=True)
class _Tokens:
    facts: tuple[Facts, ...]
    told: Mapping[str, Any]


def look(loaded: Loaded, work: Path, tools: Tools, on_event: OnEvent = silent, *, keep: int = 0) -> Prepared:
    """Read, split, render and judge; nothing is refused that can be read. `keep` rows are given back rendered.

    `work` takes files in between. Raises BadUsage for files that are no data, and what the engine raises.
    """
    data, method = loaded.recipe.data, loaded.recipe.train.method
    reading = Reading(data.format, data.roles, data.system, data.group, data.thinking)
    on_event(Event("phase", "data", data.train))
    train = _checked(_read(loaded, data.train, reading, work, tools, on_event), data.train, method)
    held_read = None
    if data.eval is not None:
        held_read = _checked(_read(loaded, data.eval, reading, work, tools, on_event), data.eval, method)
    everything = [*train.rows, *(held_read.rows if held_read else ())]
    near = lint.near(everything)
    if held_read is not None:
        learn, held = train.rows, held_read.rows
    else:
        alike_ids = alike.clusters((a.id, b.id) for a, b in near)
        learn, held = split(train.rows, data.eval_fraction, data.seed, alike_ids)
    forget = _forgetting(loaded, reading, work, tools, on_event)
    tokens = _render([*learn, *held, *forget], work, tools, on_event, keep)
    ours = {r.id for r in everything}
    looked = lint.Looked(
        train, learn, held, eval=held_read, near=near,
        facts=None if tokens is None else tuple(f for f in tokens.facts if f.id in ours),
        special=tokens.told["special"] if tokens else {},
        max_length=data.max_length, over_length=data.over_length,
    )  # fmt: skip
    report = lint.judge(looked, _scanner())
    long = {f.id for f in (tokens.facts if tokens else ()) if f.tokens > data.max_length}
    golden = {}
    if tokens is not None:
        named = {r.id for r in (*learn[:GOLDEN], *held[:GOLDEN])}
        golden = {f.id: f.sha for f in tokens.facts if f.id in named}
    return Prepared(
        _short(learn, long), _short(held, long), _short(forget, long),
        tuple(r for r in (*learn, *held) if r.id in long),
        (*train.problems, *(held_read.problems if held_read else ())), report, golden,
        tokens.told["kept"] if tokens else (), tokens.told["special"] if tokens else {},
        tokens.told["template"] if tokens else "",
    )  # fmt: skip


def prepare(loaded: Loaded, folder: Path, tools: Tools, on_event: OnEvent = silent) -> Prepared:
    """The data of a run, written to train.jsonl, eval.jsonl and forget.jsonl in `folder` beside lint.json.

    Raises BadUsage when rows cannot be read, lose text, would train nothing or no end, or when too many are too long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = look(loaded, folder, tools, on_event)
    refuse(loaded, found)
    for one in found.report.findings:
        if one.level == "warning":
            on_event(Event("warning", "data", shown(one)))
    bad = {p.number for p in found.problems}
    if bad:
        files.write(
            folder / "bad.jsonl", ({"row": p.number, "message": p.message, "fix": p.fix} for p in found.problems)
        )
    for name, rows in (("train", found.learn), ("eval", found.held), ("forget", found.forget)):
        if rows or name != "forget":
            files.write(folder / f"{name}.jsonl", (r.json() for r in rows))
    body = json.dumps(plain(found.report), ensure_ascii=False, indent=1)
    (folder / "lint.json").write_text(body + "\n", encoding="utf-8")
    told = f"{counted(len(found.learn), 'row')} to learn from, {len(found.held):,} held out"
    on_event(Event("done", "data", told + (f", {len(found.long):,} too long" if found.long else "")))
    return found


def refuse(loaded: Loaded, found: Prepared) -> None:
    """Raise BadUsage for data that must not be trained on; what may be left out by the recipe's own words is not."""
    data = loaded.recipe.data
    stop = [f for f in found.report.errors if not (f.check == "unreadable" and data.bad_rows == "skip")]
    if stop:
        hint = next((f.fix for f in stop if f.fix), "")
        where = f"`miyabi-llm data lint {loaded.path.name}` shows all of it."
        raise BadUsage(
            "the data cannot be trained on:\n" + "\n".join(f"  {shown(f)}" for f in stop[:10]),
            hint=f"{hint[:1].upper()}{hint[1:]}. {where}" if hint else where,
            findings=plain(stop),
        )
    if not found.learn or not found.held:
        what = "learn from" if not found.learn else "measure on"
        raise BadUsage(
            f"{data.train}: no row is left to {what}",
            hint="Give more rows, a larger data.eval_fraction or data.eval, or a larger data.max_length.",
        )
    rows = len(found.learn) + len(found.held) + len(found.long)
    if len(found.long) > data.max_dropped * rows:
        raise BadUsage(
            f"{len(found.long):,} of {rows:,} rows have more than data.max_length = {data.max_length:,} tokens",
            hint=f"Raise data.max_length (the longest has {found.report.tokens['longest']:,}), or data.max_dropped.",
            rows=[r.number for r in found.long[:100]],
        )


def shown(one: lint.Finding) -> str:
    """A finding in one line, with the first rows it is about."""
    numbers = ", ".join(map(str, one.rows[:NAMED])) + (", ..." if one.count > NAMED else "")
    return f"{one.message} [{'row' if one.count == 1 else 'rows'} {numbers}]" if one.rows else one.message


def figures(found: Prepared) -> dict[str, Any]:
    """What a run's card says of its data."""
    return {
        "rows": found.report.rows, "learn": len(found.learn), "held": len(found.held), "forget": len(found.forget),
        "bad": found.report.bad, "too_long": len(found.long), "format": found.report.format,
        "tokens": dict(found.report.tokens), "template": found.template, "special": dict(found.special),
        "golden": dict(found.golden),
        "warnings": [shown(f) for f in found.report.findings if f.level == "warning"],
    }  # fmt: skip


def _checked(found: Read, source: str, method: str) -> Read:
    """Raises BadUsage for a file without rows, or with rows of another kind than the method learns from."""
    if not found.total:
        raise BadUsage(f"{source}: no rows", hint="A row is one line of JSON, or one record below a line of names.")
    kinds = {r.kind for r in found.rows}
    if found.rows and kinds != {NEEDED[method]}:
        raise BadUsage(
            f"{source}: its rows are {found.format}, and train.method {method} learns from {NEEDED[method]} rows",
            hint="sft: messages or prompt/completion; dpo, orpo: chosen/rejected; kto: prompt/completion/label.",
        )
    return found


def _read(loaded: Loaded, source: str, reading: Reading, work: Path, tools: Tools, on_event: OnEvent) -> Read:
    hub = files.HUB.fullmatch(source)
    path = loaded.file(source)
    if not hub and not files.needs_engine(str(path)):
        return read(path, reading, name=source)
    work.mkdir(parents=True, exist_ok=True)
    target = work / ".read.jsonl"
    order = {"target": str(target), "cache": str(work / ".datasets"), "shown": source}
    order |= {"name": hub["name"], "split": hub["split"]} if hub else {"source": str(path)}
    env = {} if tools.settings.offline else {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    try:
        tools.engine.run(Job("read", order, env=env if hub else None), work, tools.settings, on_event)
        return read(target, reading, name=source)
    finally:
        target.unlink(missing_ok=True)


def _forgetting(loaded: Loaded, reading: Reading, work: Path, tools: Tools, on_event: OnEvent) -> tuple[Row, ...]:
    """The rows it should still know; they are always messages with an answer, whatever is learned."""
    source = loaded.recipe.evaluate.forgetting
    if source is None:
        return ()
    plain_reading = Reading(roles=reading.roles)
    if source == BUILTIN:
        from importlib import resources

        with resources.as_file(resources.files("miyabi_llm") / "data" / "forgetting.jsonl") as path:
            found = read(path, plain_reading, name=BUILTIN)
    else:
        found = _read(loaded, source, plain_reading, work, tools, on_event)
    if found.problems:
        raise BadUsage(f"{source} (evaluate.forgetting): {found.problems[0]}")
    return _checked(found, source, "sft").rows


def _render(rows: Sequence[Row], work: Path, tools: Tools, on_event: OnEvent, keep: int) -> _Tokens | None:
    if tools.model is None or not rows:
        return None
    work.mkdir(parents=True, exist_ok=True)
    source, target = work / ".rows.jsonl", work / ".facts.jsonl"
    try:
        files.write(source, (r.json() for r in rows))
        order = {"model": str(tools.model), "rows": str(source), "target": str(target), "keep": keep}
        told = tools.engine.run(Job("render", order), work, tools.settings, on_event)
        facts = tuple(Facts.of(line) for line in files.lines(target))
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    return _Tokens(_longest(facts), told)


def _longest(facts: Iterable[Facts]) -> tuple[Facts, ...]:
    """One fact a row: of a pair the chosen answer's, with the length of the longer one and the faults of both."""
    found: dict[tuple[str, int], Facts] = {}
    for one in facts:
        first = found.setdefault((one.id, one.number), one)
        if first is not one:
            found[one.id, one.number] = replace(
                first,
                tokens=max(first.tokens, one.tokens),
                trained=min(first.trained, one.trained),
                lost=first.lost or one.lost,
                ends=first.ends and one.ends,
                error=first.error or one.error,
            )
    return tuple(found.values())


def _short(rows: Iterable[Row], long: set[str]) -> tuple[Row, ...]:
    return tuple(r for r in rows if r.id not in long)


def _scanner() -> lint.Scan:
    from miyabi_llm import detect

    def scan(text: str) -> Iterable[str]:
        return (hit.kind for hit in detect.scan(text) if hit.confidence >= SURE)

    return scan
