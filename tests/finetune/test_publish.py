"""What a finished run gives away: names, cards, a Modelfile, a model at Ollama. No training is done here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from miyabi_llm.errors import BadUsage, GateFailed
from miyabi_llm.finetune import compare, export, load, modelfile, parity, publish, run, rundir
from miyabi_llm.finetune.context import RunContext
from miyabi_llm.finetune.record import Finished
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Store
from miyabi_llm.types import Artifact
from tests.conftest import USER
from tests.finetune import road
from tests.ollamad import Ollamad
from tests.quantize import tinylm
from tests.quantize.test_outputs import CHATML, THEIRS

PROMISED = {
    "config.json": {"architectures": ["LlamaForCausalLM"]},
    "generation_config.json": {"eos_token_id": [2]},
    "tokenizer_config.json": {"eos_token": "</s>"},
    "tokenizer.json": {"added_tokens": [{"id": 2, "content": "</s>", "special": True}]},
}


def finished(tmp_path: Path, *overrides: str, template: str = THEIRS) -> RunContext:
    """A run as it is before publishing: its files there, its base a name."""
    recipe = road.write(tmp_path, tmp_path, "mine")
    around = road.world(tmp_path / "home")
    env = {**around.settings.env, "OLLAMA_HOST": "127.0.0.1:1"}
    around = dataclasses.replace(around, settings=dataclasses.replace(around.settings, env=env))
    place = rundir.place(around.settings.home, "mine")
    ctx = run.context(place, load.load(recipe, overrides), around)
    base = {"folder": str(tmp_path), "label": "tiny", "sha256": "0" * 16, "gguf": None}
    ctx.record.put("base", Finished({}, figures=base))
    ctx.run.merged.mkdir(parents=True)
    for name, body in PROMISED.items():
        (ctx.run.merged / name).write_text(json.dumps(body))
    for kind, path in export.finished(ctx).items():
        path.parent.mkdir(exist_ok=True)
        tinylm.write(path, seed=len(kind), template=template)
    return ctx


def test_names_and_cards(tmp_path: Path) -> None:
    ctx = finished(tmp_path, "export.types=[Q8_0, Q4_K_M]")
    told = publish.run(ctx)
    assert [str(a.ref) for a in ctx.store.list()] == ["mine", "mine:q4_k_m", "mine:q8_0"]
    first = ctx.store.find(ModelRef.parse("mine"))
    assert first.files == ctx.store.find(ModelRef.parse("mine:q8_0")).files
    assert first.card["finetuned"]["base"]["label"] == "tiny"
    assert first.card["lineage"][-1]["step"] == "finetune"
    assert str(tmp_path) not in json.dumps(first.card["finetuned"]["recipe"] | {"resolved": None, "overrides": None})
    assert told.figures["published"]["Q8_0"]["shared"] in ("reflink", "hardlink", "copy")
    assert publish.run(ctx).figures == told.figures  # the same once more


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    ctx = finished(tmp_path)
    path = next(iter(export.finished(ctx).values()))
    sha256, size, _ = ctx.store.adopt(path)
    other = Artifact(ModelRef.parse("mine"), "gguf", (), "local", "", "2026-01-01T00:00:00+00:00")
    ctx.store.publish(other)
    with pytest.raises(BadUsage, match="another model of the store"):
        publish.run(ctx)
    assert (len(sha256), size > 0) == (64, True)
    taken = dataclasses.replace(ctx, loaded=load.load(ctx.loaded.path, ["export.name=gemma3"]))
    assert publish.plain_ref(taken) == ModelRef.parse("gemma3")


def test_a_modelfile(tmp_path: Path) -> None:
    ctx = finished(tmp_path)
    publish.run(ctx)
    text = (ctx.run.gguf / "Modelfile").read_text()
    assert text.splitlines() == [
        "FROM ./mine-Q8_0.gguf", "PARAMETER num_ctx 4096", 'PARAMETER stop "</s>"', "REQUIRES 0.30.0",
    ]  # fmt: skip
    assert (ctx.run.gguf / "mine-Q8_0.gguf").is_file()
    header = parity.header_of(ctx.run.gguf / "mine-Q8_0.gguf")
    assert modelfile.modelfile("x.gguf", header, (1, 2, 2, 10_000), 512).count("stop") == 2


@pytest.fixture
def ollama(tmp_path: Path) -> Iterator[Ollamad]:
    with Ollamad(tmp_path / "models") as server:
        yield server


def at(ctx: RunContext, server: Ollamad, tmp_path: Path) -> RunContext:
    env = {**USER.env, "OLLAMA_HOST": server.url, "OLLAMA_MODELS": str(tmp_path / "models")}
    return dataclasses.replace(ctx, settings=dataclasses.replace(ctx.settings, env=env))


def test_a_model_at_ollama(tmp_path: Path, real_server: Path, ollama: Ollamad) -> None:
    """Against the stand-in: the model is handed over by its bytes, and three prompts are compared."""
    ctx = at(finished(tmp_path, "export.ollama=mine:v1"), ollama, tmp_path)
    assert publish.ollama_left_out(ctx) == ""
    publish.run(ctx)
    told = publish.to_running_ollama(ctx).figures
    assert (told["name"], told["probes"]) == ("mine:v1", 3)
    assert [row["model"] for row in ollama.tags()] == ["mine:v1"]


def test_ollama_that_renders_otherwise_keeps_nothing(tmp_path: Path, real_server: Path, ollama: Ollamad) -> None:
    ctx = at(finished(tmp_path, "export.ollama=mine", template=CHATML), ollama, tmp_path)
    publish.run(ctx)
    with pytest.raises(GateFailed, match="otherwise"):
        publish.to_running_ollama(ctx)
    assert ollama.tags() == []


def test_stages_are_compared_by_their_rows(tmp_path: Path) -> None:
    ctx = finished(tmp_path)
    (ctx.run.root / "proof").mkdir()
    for name, nats in (("base", 20.0), ("Q8_0", 10.0)):
        told = {"rows": [[str(i), nats + i, 10] for i in range(8)], "forget": [], "answers": []}
        (ctx.run.root / "proof" / f"{name}.json").write_text(json.dumps(told))
    found = compare.compare(ctx, "base", "q8_0")
    assert (found.verdict, round(found.gain.value, 6)) == ("better", 1.0)
    assert compare.compare(ctx, "Q8_0", "Q8_0").verdict == "undecided"
    assert compare.last(ctx) == "Q8_0"
    with pytest.raises(BadUsage, match="measured no adapter"):
        compare.compare(ctx, "adapter", "base")
    with pytest.raises(BadUsage, match="no stored model"):
        compare.compare(ctx, "base", "nobody")


def test_only_the_export_of_a_run_can_change(tmp_path: Path) -> None:
    ctx = finished(tmp_path)
    around = run.World(ctx.settings, Store(ctx.settings.store), ctx.machine, ctx.verbs)
    with pytest.raises(BadUsage, match="only keys of `export`"):
        run.redo("mine", around, ("card",), ["train.max_steps=3"])
