"""The whole road on the tiny model: gains, names, cards, reports, and everything that asks a finished run again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from miyabi_llm.cli import execute
from miyabi_llm.errors import BadUsage, Corrupt, GateFailed, Inconclusive
from miyabi_llm.finetune import alone, compare, evaluate, export, gating, load, reproduce, run, verify
from miyabi_llm.finetune.context import RunContext
from miyabi_llm.refs import ModelRef
from tests.finetune import road

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first test makes the run


def around(ctx: RunContext) -> run.World:
    return run.World(ctx.settings, ctx.store, ctx.machine, ctx.verbs)


def test_every_stage_is_measured_and_better(tuned: RunContext) -> None:
    for name in ("adapter", "merged", "F16", "Q8_0"):
        found = evaluate.judged(tuned, name, evaluate.load(tuned, name))
        assert found.gain is not None
        assert found.gain.low > 0, name
    assert compare.compare(tuned, "adapter", "merged").verdict == "undecided"  # the same model, but for rounding
    assert [v.outcome for v in gating.verdicts(tuned)] == ["pass"]


def test_a_card_names_everything_and_no_place(tuned: RunContext) -> None:
    text = tuned.run.card.read_text()
    card = json.loads(text)
    assert card["base"]["sha256"] == tuned.base.sha256
    assert card["data"]["train_rows"]["rows"] == 18
    assert set(card["engine"]["versions"]) >= {"torch", "trl", "peft", "transformers"}
    assert str(tuned.run.root) not in text
    assert card["stages"]["gates"]["figures"]["verdicts"][0]["outcome"] == "pass"
    stored = tuned.store.find(ModelRef.parse("tuned"))
    assert stored.card["finetuned"]["parity"]["probes"] >= 10
    assert stored.card["lineage"][-1]["step"] == "finetune"


def test_a_report_loads_nothing(tuned: RunContext) -> None:
    page = tuned.run.report.read_text()
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=[\"']https?:", page)
    for words in ("Before and after", "Training", "Answers side by side", "Is the served model the trained one?",
                  "Merging", "How it was made", "<svg"):  # fmt: skip
        assert words in page, words


def test_a_run_verifies_and_finds_planted_faults(tuned: RunContext) -> None:
    found = verify.verify(tuned, self_test=True)
    assert found.passed, found
    assert len(found.planted) == 8
    assert all(p.found for p in found.planted)


def test_a_changed_file_is_found(tuned: RunContext) -> None:
    path = tuned.run.adapter / "adapter_config.json"
    before = path.read_bytes()
    try:
        path.write_bytes(before + b" ")
        found = verify.verify(tuned)
        assert not found.passed
        assert "adapter/adapter_config.json changed since train made it" in [f.message for f in found.findings]
    finally:
        path.write_bytes(before)
    with pytest.raises(Corrupt, match="is no card"):
        verify.card(tuned.run.data / "train.jsonl")


def test_the_same_training_gives_the_same_bytes(tuned: RunContext) -> None:
    found = reproduce.reproduce(tuned, around(tuned))
    assert found.promised
    assert found.same
    assert not (tuned.run.root.parent / "tuned.again").exists()


def test_the_adapter_alone_is_heard(tuned: RunContext, tmp_path: Path) -> None:
    made = alone.write(tuned, tmp_path / "out")
    assert made.gguf.stat().st_size > 10_000
    assert made.moved > 0.1
    assert made.delta < 0.03
    assert {p.name for p in made.peft.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_the_commands(
    tuned: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MIYABI_HOME", str(tuned.settings.home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert execute(["finetune", "verify", "tuned", "--json"]) == 0
    assert not [f for f in json.loads(capsys.readouterr().out)["findings"] if f["level"] == "fail"]
    assert execute(["finetune", "compare", "tuned:base", "tuned:q8_0"]) == 0
    assert "q8_0 is better" in capsys.readouterr().out
    assert execute(["finetune", "compare", "tuned:base", "tuned", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "better"
    assert execute(["finetune", "compare", "tuned", "nobody"]) == 2
    assert execute(["finetune", "merge", "tuned"]) == 0
    assert execute(["finetune", "export", "tuned", "--adapter", str(tmp_path / "out")]) == 0
    assert "for llama-server" in capsys.readouterr().out
    assert execute(["finetune", "verify", "nobody"]) == 2


def test_gates_refuse_and_leave_open(tuned: RunContext) -> None:
    """The same measurements against other limits."""
    import dataclasses

    def limited(*words: str) -> RunContext:
        return dataclasses.replace(tuned, loaded=load.load(tuned.loaded.path, words))

    with pytest.raises(GateFailed):
        gating.run(limited("gates.min_gain=1000"))
    gain = evaluate.judged(tuned, "Q8_0", evaluate.load(tuned, "Q8_0")).gain
    assert gain is not None
    with pytest.raises(Inconclusive):
        gating.run(limited(f"gates.min_gain={gain.value}"))
    gating.run(limited("gates.min_gain=null"))
    gating.run(limited("gates.max_loss_in_gguf=0.5"))


def test_a_type_can_be_made_later(tuned: RunContext) -> None:
    with pytest.raises(BadUsage, match="only keys of `export`"):
        run.redo("tuned", around(tuned), ("card",), ["lora.rank=2"])
    done = run.redo("tuned", around(tuned), ("quantize",), ["export.types=[Q8_0, Q6_K]"])
    assert set(done.stages["quantize"].figures["types"]) == {"Q8_0", "Q6_K"}
    run.redo("tuned", around(tuned), ("quantize",), ["export.types=[Q8_0]"])
    assert set(export.finished(tuned)) == {"Q8_0"}


def test_a_packed_run_is_merged_into_what_it_was_trained_on(packed: RunContext) -> None:
    assert road.CAPITALS
    told = json.loads(evaluate.proof(packed, evaluate.PROBES).read_text())
    assert told["template"]
    assert any(p.get("steps") for p in told["probes"])


@pytest.mark.parametrize("method", ["full", "dora", "dpo"])
def test_other_methods_go_the_whole_road(method: str, tiny_base: Path, tmp_path: Path, real_server: Path) -> None:
    """A full training has nothing to merge, DoRA is merged by peft, and a preference is measured by its pairs."""
    recipe = road.write(tmp_path, tiny_base, "other", "lora" if method == "dpo" else method, steps=6)
    words = ["gates.min_gain=null", "train.learning_rate=0.0005"]
    if method == "dpo":
        rows = [
            {
                "prompt": r["messages"][:1],
                "chosen": r["messages"][1:],
                "rejected": [r["messages"][1] | {"content": "No."}],
            }
            for r in (road.row(c, q) for c in road.CAPITALS for q in road.ASKED)
        ]
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        words += ["train.method=dpo", "data.train=pairs.jsonl", "evaluate.metric=preference"]
    ctx = road.through(recipe, road.world(tmp_path / "home"), *words)
    merged = ctx.record.figures("merge")
    assert merged["kld"] < 1e-4
    assert ctx.record.figures("parity")["tables"]["Q8_0"]["probes"] >= 10
    assert ctx.store.find(ModelRef.parse("other")).format == "gguf"
    found = evaluate.judged(ctx, "Q8_0", evaluate.load(ctx, "Q8_0"))
    assert found.metric.rows == 6
    if method == "full":
        with pytest.raises(BadUsage, match="no adapter"):
            alone.write(ctx, tmp_path / "out")
