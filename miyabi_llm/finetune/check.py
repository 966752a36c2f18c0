"""`finetune check`: in seconds and without torch, everything that would stop a run or spoil it later."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miyabi_llm import engines
from miyabi_llm.engines import environment
from miyabi_llm.engines.base import Engine, Job
from miyabi_llm.errors import BackendMissing, BadUsage, MiyabiError
from miyabi_llm.finetune import estimate as estimating
from miyabi_llm.finetune import peek as peeking
from miyabi_llm.finetune import speed
from miyabi_llm.finetune.context import precision
from miyabi_llm.finetune.estimate import Estimate
from miyabi_llm.finetune.training import cannot_share
from miyabi_llm.hardware import Hardware
from miyabi_llm.memory import MARGIN
from miyabi_llm.tools import converting, installed, llama_cpp, lock, quantizing
from miyabi_llm.types import Finding, OnEvent, silent

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.finetune.load import Loaded
    from miyabi_llm.store import Store

LETTERS = 3.3  # bytes of JSON a token, where no tokenizer has counted: the rows of our recipes have 3 to 4
_CHECK_TEXT = re.compile(r"^ +chktxt = (.+)$", re.MULTILINE)
_KNOWN = re.compile(r'if chkhsh == "([0-9a-f]{64})":(?:\s*#[^\n]*)*\s*res = "([^"]+)"')


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look: settings, store, machine, and a folder for a child's private files."""

    settings: Settings
    store: Store
    machine: Hardware
    work: Path


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, what it will need, and in how many seconds that was known."""

    findings: tuple[Finding, ...]
    engine: str
    precision: str
    estimate: Estimate | None
    seconds: float

    @property
    def level(self) -> str:
        """fail when anything would stop the run."""
        levels = [f.level for f in self.findings]
        return "fail" if "fail" in levels else "warn" if "warn" in levels else "ok"


def check(loaded: Loaded, place: Place, on_event: OnEvent = silent, *, full: bool = False) -> Report:
    """Look at everything a run depends on. With `full` the tokenizer is really converted to GGUF, in ten seconds.

    Raises MachineLimit when the recipe's engine cannot be used here.
    """
    started = time.monotonic()
    recipe = loaded.recipe
    launch = recipe.train.launch
    engine = engines.choose(recipe.train.engine, place.machine, recipe.train.method, launch.processes * launch.nodes)
    kind = precision(recipe, place.machine)
    seen = peeking.peek(loaded, place.store, place.settings, engine)
    rows = count_rows(loaded)
    told = needs(loaded, place, seen, rows, kind)
    findings = [
        Finding("recipe", "ok", f"{loaded.path.name}: every key is known"),
        *_engine(engine, kind, recipe.lora.method, place),
        _base(seen),
        *_rows(loaded, rows),
        *_template(seen, engine, place, on_event),
        *_programs(place),
        *_shared(loaded, place),
        *(_converted(seen, place, on_event) if full else _converted_before(seen, place)),
        *(_judged(told, loaded, place) if told else ()),
    ]
    return Report(tuple(findings), engine.name, kind, told, round(time.monotonic() - started, 2))


def needs(
    loaded: Loaded, place: Place, seen: peeking.Peek, rows: tuple[int, int, int] | None, kind: str
) -> Estimate | None:
    """Memory, disk and time, when the base's shape is known. `rows`: how many, tokens of a mean and a longest one."""
    if seen.config is None:
        return None
    recipe = loaded.recipe
    form = estimating.shape(seen.config)
    way = speed.way(recipe.lora.method, kind, form.parameters)
    fast = speed.known(place.machine, way, place.settings)
    count, mean, longest = rows or (0, recipe.data.max_length // 2, recipe.data.max_length)
    given = estimating.Given(
        rows=max(1, int(count * (1 if recipe.data.eval else 1 - recipe.data.eval_fraction))),
        mean=mean,
        longest=longest,
        speed=fast.flops if fast else None,
        measured=fast.measured if fast else False,
        cuda=any(g.kind == "cuda" for g in place.machine.gpus),
        copy=seen.folder is None,
    )
    return estimating.estimate(form, recipe, kind, given)


def count_rows(loaded: Loaded) -> tuple[int, int, int] | None:
    """Rows of the training file with about how many tokens, by its bytes; None for what is not a JSONL file here."""
    path = loaded.file(loaded.recipe.data.train)
    if path.suffix not in (".jsonl", ".ndjson") or not path.is_file():
        return None
    count = total = longest = 0
    with path.open("rb") as f:
        for line in f:
            if line.strip():
                count, total, longest = count + 1, total + len(line), max(longest, len(line))
    most = loaded.recipe.data.max_length
    return (
        (count, min(most, int(total / count / LETTERS) + 1), min(most, int(longest / LETTERS) + 1)) if count else None
    )


def _engine(engine: Engine, kind: str, method: str, place: Place) -> Iterator[Finding]:
    from miyabi_llm.engines import trl, unsloth

    env = engine.find(place.settings)
    if env is None:
        fix = f"miyabi-llm finetune install --engine {engine.name}"
        yield Finding("engine", "warn", f"{engine.name}: its environment is made by the run", fix)
        return
    pins = {"trl": trl.PINS, "unsloth": unsloth.PINS}[engine.name].versions
    here = environment.installed(env)
    wrong = {
        n: here.get(re.sub(r"[-_.]+", "-", n).lower(), "missing")
        for n, v in pins.items()
        if here.get(re.sub(r"[-_.]+", "-", n).lower(), "").split("+")[0] != v
    }
    if wrong:
        said = ", ".join(f"{n} is {v}, pinned {pins[n]}" for n, v in wrong.items())
        yield Finding("engine", "fail", f"{engine.name}: {said}", f"rm -r {env.folder}")
    else:
        names = ", ".join(f"{n} {pins[n]}" for n in ("torch", "transformers", "trl", "peft") if n in pins)
        yield Finding("engine", "ok", f"{engine.name}, {kind}: {names}, as pinned")
    if method == "qlora" and kind == "fp32":
        yield Finding("precision", "ok", "qlora in fp32: resumed runs end alike, not bit for bit (its adapter is bf16)")


def _shared(loaded: Loaded, place: Place) -> Iterator[Finding]:
    why = cannot_share(loaded.recipe, place.machine)
    if why is not None:
        yield Finding("launch", "fail", why, "--set train.launch.strategy=ddp")


def _base(seen: peeking.Peek) -> Finding:
    if seen.trouble:
        return Finding("base", "fail", seen.trouble)
    if seen.missing:
        return Finding("base", "warn", seen.missing)
    return Finding("base", "ok", f"{(seen.config or {}).get('model_type', 'a model')} in {seen.folder}")


def _rows(loaded: Loaded, rows: tuple[int, int, int] | None) -> Iterator[Finding]:
    data = loaded.recipe.data
    for key, source in (("data.train", data.train), ("data.eval", data.eval)):
        if source is None:
            continue
        path = loaded.file(source)
        if source.startswith("hf:"):
            yield Finding(key, "unknown", f"{source} is looked at in the run")
        elif not path.is_file():
            yield Finding(key, "fail", f"{source}: no such file", f"ls {path.parent}")
        elif rows is not None and key == "data.train":
            yield Finding(key, "ok", f"{rows[0]:,} rows of about {rows[1]} tokens, the longest about {rows[2]}")
        else:
            yield Finding(key, "ok", source)


def _template(seen: peeking.Peek, engine: Engine, place: Place, on_event: OnEvent) -> Iterator[Finding]:
    """The probes of tokenizer and template, and whether llama.cpp's converter knows the tokenizer."""
    if seen.folder is None or engine.find(place.settings) is None:
        yield Finding("template", "unknown", "is looked at once the base and the engine are here")
        return
    text, known = pretokenizers(place.settings)
    try:
        told = engine.run(Job("probe", {"model": str(seen.folder), "text": text}), place.work, place.settings, on_event)
    except MiyabiError as e:
        yield Finding("template", "fail", e.message, e.hint)
        return
    for line in told["wrong"]:
        yield Finding("template", "fail", line, "Start from a model with a chat template that trains its end.")
    for line in told["odd"]:
        yield Finding("template", "warn", line)
    if not told["wrong"] and not told["odd"]:
        yield Finding("template", "ok", "keeps every text, and ends an answer with a token that ends answers")
    if told["pre"] is None or text is None:
        return
    if (name := known.get(told["pre"])) is not None:
        yield Finding("tokenizer", "ok", f"llama.cpp's converter knows it as {name}")
    else:
        fix = "Train on a base whose tokenizer llama.cpp knows, or convert by hand."
        yield Finding("tokenizer", "fail", "llama.cpp's converter does not know this tokenizer: no GGUF", fix)


def pretokenizers(settings: Settings) -> tuple[str | None, Mapping[str, str]]:
    """The text by whose tokens llama.cpp's converter knows a tokenizer, and name by hash: read from its source."""
    source = scripts(settings)
    if source is None:
        return None, {}
    body = (source / "conversion" / "base.py").read_text(encoding="utf-8")
    found = _CHECK_TEXT.search(body)
    if found is None:
        return None, {}
    import ast

    return str(ast.literal_eval(found[1])), dict(_KNOWN.findall(body))


def scripts(settings: Settings) -> Path | None:
    """The folder of the pinned converter, when it is here. Nothing is brought."""
    pins = lock.load()
    places = [kept.folder / "source" for kept in installed.all_of(settings)]
    places.append(settings.cache / "converter" / pins.source.sha256[:16])
    return next((p for p in places if (p / converting.MODEL).is_file() and (p / "conversion").is_dir()), None)


def _programs(place: Place) -> Iterator[Finding]:
    """Everything the last stages need, so that a run of hours does not end for want of a program."""
    for name in (quantizing.QUANTIZE, llama_cpp.SERVER):
        try:
            program = llama_cpp.find(name, place.settings)
            yield Finding(name, "ok", f"{program.version} ({program.how})")
        except BackendMissing as e:
            yield Finding(name, "fail", e.message, "miyabi-llm backend install llama-cpp --tools")
    has = any(p.joinpath("complete").is_file() for p in (place.settings.cache / "envs").glob("convert-*"))
    if scripts(place.settings) is not None and has:
        yield Finding("converter", "ok", f"llama.cpp's own, {lock.load().commit[:9]}")
    elif place.settings.offline:
        yield Finding("converter", "fail", "is not here, and you are offline", place.settings.offline_hint)
    else:
        yield Finding("converter", "warn", "is not here: the run brings it")


def _key(folder: Path) -> str:
    """What decides whether a tokenizer converts: its files and the converter's commit."""
    hashed = hashlib.sha256(lock.load().commit.encode())
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "config.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
    ):
        path = folder / name
        hashed.update(name.encode() + (path.read_bytes() if path.is_file() else b""))
    return hashed.hexdigest()[:16]


def _converted_before(seen: peeking.Peek, place: Place) -> Iterator[Finding]:
    if seen.folder is None:
        return
    if _key(seen.folder) in _known_good(place.settings):
        yield Finding("GGUF", "ok", "this tokenizer was converted to GGUF before")
    else:
        yield Finding("GGUF", "unknown", "the tokenizer is converted in the run, before training; or now with --full")


def _converted(seen: peeking.Peek, place: Place, on_event: OnEvent) -> Iterator[Finding]:
    """The tokenizer really converted, without weights; remembered by the hash of its files."""
    if seen.folder is None:
        yield Finding("GGUF", "unknown", "is tried once the base is here")
        return
    try:
        convert_vocabulary(seen.folder, place, on_event)
        yield Finding("GGUF", "ok", "the tokenizer converts to GGUF")
    except BadUsage as e:
        yield Finding("GGUF", "fail", e.message, e.hint)


def convert_vocabulary(folder: Path, place: Place, on_event: OnEvent = silent) -> None:
    """Convert the tokenizer of a folder to GGUF, unless it was done before. Raises BadUsage when it cannot be."""
    known = _known_good(place.settings)
    key = _key(folder)
    if key in known:
        return
    converter = converting.get(place.settings, on_event)
    target = place.work / "vocabulary.gguf"
    place.work.mkdir(parents=True, exist_ok=True)
    try:
        converter.vocabulary(folder, target, place.work)
    finally:
        target.unlink(missing_ok=True)
    from miyabi_llm.finetune.rundir import write_json

    write_json(place.settings.cache / "vocabularies.json", [*known, key])


def _known_good(settings: Settings) -> list[str]:
    try:
        told = json.loads((settings.cache / "vocabularies.json").read_text(encoding="utf-8"))
        return [str(k) for k in told] if isinstance(told, list) else []
    except (OSError, ValueError):
        return []


def _judged(told: Estimate, loaded: Loaded, place: Place) -> Iterator[Finding]:
    """Memory and disk against what is there."""
    need, cards = told.memory.total, [g for g in place.machine.gpus if g.memory_total]
    have = max((g.memory_total or 0 for g in cards), default=0) or place.machine.ram_available
    about = f"about {need / 2**30:.1f} GiB (within {told.memory_error:.0%}), {have / 2**30:.1f} GiB are free"
    if not have:
        yield Finding("memory", "unknown", f"about {need / 2**30:.1f} GiB are needed; what is free cannot be told")
    elif need * (1 - told.memory_error) > have:
        yield Finding("memory", "fail", about, smaller(loaded))
    elif need + MARGIN > have:
        yield Finding("memory", "warn", f"{about}: it may not fit", smaller(loaded))
    else:
        yield Finding("memory", "ok", about)
    free = place.machine.disk_free(place.settings.home)
    said = f"about {told.disk / 2**30:.1f} GiB"
    if free is None:
        yield Finding("disk", "unknown", f"{said} are needed")
    else:
        level: Any = "ok" if told.disk < free else "fail"
        yield Finding(
            "disk", level, f"{said}, {free / 2**30:.0f} GiB are free", None if level == "ok" else "miyabi-llm prune"
        )
    if told.seconds is None:
        yield Finding("time", "unknown", "no training was measured on this card yet: its speed is not guessed")
    else:
        yield Finding(
            "time", "ok", f"{told.steps:,} steps in about {spell(told.seconds)} (within a factor {told.within:g})"
        )


def smaller(loaded: Loaded) -> str:
    """The keys that make it smaller, those first that this recipe has not used yet."""
    recipe = loaded.recipe
    words = []
    if recipe.train.batch_size > 1:
        words.append("train.batch_size=1")
    if not recipe.train.gradient_checkpointing:
        words.append("train.gradient_checkpointing=true")
    if recipe.lora.method not in ("qlora",):
        words.append("lora.method=qlora")
    words.append(f"data.max_length={max(16, recipe.data.max_length // 2)}")
    return " ".join(f"--set {w}" for w in words[:3])


def spell(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
