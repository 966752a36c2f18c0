"""Eighteen ways in which fine-tunes go wrong without a word, each planted, each found: by which check, at which stage.

The numbers are those of docs/explanation/finetune-proof.md, whose table is made of `CAUGHT` below by a test.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm import hardware
from miyabi_llm.dataset.facts import Rendered, Special, facts
from miyabi_llm.engines.base import Engine
from miyabi_llm.errors import BackendMissing, BadUsage, GateFailed
from miyabi_llm.finetune import alone, check, data, evaluate, gating, load, merge, parity_stage, plant, tools
from miyabi_llm.finetune.context import RunContext
from miyabi_llm.finetune.parity_stage import Asked
from miyabi_llm.quantize import adapters
from miyabi_llm.quantize.gates import failed
from miyabi_llm.store import Store
from tests.conftest import USER
from tests.finetune import road
from tests.finetune.test_check import edited

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first test of each run makes it

# number -> the failure, the stage that stops it, the check that finds it
CAUGHT: dict[int, tuple[str, str, str]] = {}


def caught(number: int, failure: str, stage: str, how: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Note down which check finds a failure; the test that follows proves it."""
    CAUGHT[number] = (failure, stage, how)
    return lambda test: test


def wrong(ctx: RunContext, path: Path, kind: str = "Q8_0") -> list[str]:
    """What the parity gate finds in a file."""
    told = json.loads(evaluate.proof(ctx, evaluate.PROBES).read_text())
    asked = Asked(told, parity_stage.expected(ctx, told), tools.kitchen(ctx), {}, 1024)
    table = parity_stage.look(kind, path, asked, whole=True)
    return [f"{f.name}: {f.message}" for f in failed(table.findings)]


def planted(ctx: RunContext, name: str, tmp_path: Path) -> list[str]:
    """What the parity gate finds in a finished file with a fault in it."""
    target = tmp_path / "bad.gguf"
    assert plant.plant(ctx.run.gguf / "tuned-Q8_0.gguf", target, plant.fault(name))
    return wrong(ctx, target)


def refused(rows: list[dict[str, Any]], base: Path, engine: Engine, tmp_path: Path, *overrides: str) -> str:
    """Why the stage `data` refuses rows."""
    good = [road.row(c, q) for c in road.CAPITALS for q in road.ASKED]
    recipe = road.write(tmp_path, base, "data")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*good, *rows]))
    settings = road.world(tmp_path / "home").settings
    with pytest.raises(BadUsage) as e:
        data.prepare(load.load(recipe, overrides), tmp_path / "data", data.Tools(engine, settings, base))
    return e.value.message


def in_env(job: str, order: dict[str, Any], engine: Engine, tmp_path: Path) -> dict[str, Any]:
    """What a script of the tests answers in the training environment."""
    env = engine.find(USER)
    assert env is not None
    place, answer = tmp_path / "order.json", tmp_path / "answer.json"
    place.write_text(json.dumps(order | {"answer": str(answer)}))
    script = Path(__file__).with_name("plants_in_env.py")
    variables = {**USER.env, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(env.python), str(script), job, str(place)], check=True, env=variables, capture_output=True)
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def said(ask: str, answer: str, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": ask}, {"role": "assistant", "content": answer}]}


@caught(1, "The served template is not the trained one", "parity", "header: template; server: rendered prompt, tokens")
def test_01_another_template(tuned: RunContext, tmp_path: Path) -> None:
    found = planted(tuned, "template", tmp_path)
    assert any(text.startswith("template: ") for text in found)
    assert any("rendered" in text for text in found)


@caught(2, "The exported model is far worse than the adapter", "parity, gates", "server: log-probabilities; min_gain")
def test_02_an_export_that_lost_the_tune(tuned: RunContext, tmp_path: Path) -> None:
    assert any("log-probability" in text for text in planted(tuned, "weights", tmp_path))
    kept = evaluate.proof(tuned, "Q8_0.json").read_bytes()
    try:  # the file scores as the base does
        shutil.copyfile(evaluate.proof(tuned, "base.json"), evaluate.proof(tuned, "Q8_0.json"))
        with pytest.raises(GateFailed, match="min_gain"):
            gating.run(tuned)
    finally:
        evaluate.proof(tuned, "Q8_0.json").write_bytes(kept)


@caught(3, "Merging into 4 bits loses the tune", "merge", "never done; KL divergence of adapter and merged")
def test_03_a_merge_into_four_bits(packed: RunContext, tmp_path: Path) -> None:
    """What is merged is measured against the packed model with its adapter; merging into 4 bits is far worse."""
    made = merge.run(packed).figures
    assert made["base"] == "trained"
    assert made["kld"] < 1e-3
    order = {"model": evaluate.trained(packed), "rows": str(evaluate.proof(packed, "rows.jsonl"))}
    told = in_env("four_bits", order, packed.engine, tmp_path)
    assert told["kld"] > 20 * max(made["kld"], 1e-6)


@caught(4, "Merging into another base than the trained one", "merge", "KL divergence of adapter and merged")
def test_04_a_merge_into_another_base(packed: RunContext, tmp_path: Path) -> None:
    """Both bases are tried, and the nearer is the one that was trained on; beyond the limit nothing is made."""
    tried = merge.run(packed).figures["tried"]
    assert tried["full"]["kld"] > 20 * max(tried["trained"]["kld"], 1e-6)
    rows = evaluate.write_rows(packed)
    order = {
        "model": evaluate.trained(packed), "rows": str(rows), "positions": 100, "base": "full",
        "most": tried["full"]["kld"] / 2, "target": str(tmp_path / "merged"),
    }  # fmt: skip
    with pytest.raises(GateFailed, match="is not base and adapter"):
        packed.job("merge", order)


@caught(5, "Two begin tokens", "data; parity", "lint: double-bos; server: tokens")
def test_05_two_begin_tokens(tuned: RunContext, tmp_path: Path) -> None:
    known = facts("a", 1, [{"role": "user", "content": "x"}], Rendered("<s><s>x", (1, 1, 5, 2), (1, 1, 5)),
                  Special(1, (2,), None))  # fmt: skip
    assert known.double_bos
    assert any("tokens" in text for text in planted(tuned, "begin", tmp_path))


def endless(base: Path, target: Path) -> Path:
    """A base whose template leaves the last turn open."""
    edited(base, target, "chat_template.jinja", lambda text: ENDLESS)
    return target


ENDLESS = (
    "{% for m in messages %}{% if not loop.first %}<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_end|>\n<|im_start|>assistant\n{% endif %}"
)


@caught(6, "The end of an answer is never learned", "data", "lint: no-end; and once more in the trainer")
@caught(7, "The end lies outside of what is trained", "data", "lint: no-end; the mask is of prompt and answer")
def test_06_07_the_end_is_not_trained(tiny_base: Path, engine: Engine, tmp_path: Path) -> None:
    base = endless(tiny_base, tmp_path / "base")
    assert "do not train the end of the answer" in refused([], base, engine, tmp_path)


@caught(8, "Cutting rows takes their end away", "data", "no row is cut: too long ones are counted, many are refused")
def test_08_long_rows(tiny_base: Path, engine: Engine, tmp_path: Path) -> None:
    rows = [said("Tell me", "word " * 300) for _ in range(20)]
    assert "more than data.max_length = 128 tokens" in refused(
        [r | {"n": i} for i, r in enumerate(rows)], tiny_base, engine, tmp_path, "data.max_dropped=0.1"
    )


@caught(9, "A row trains no token", "data", "reading and lint: untrained")
def test_09_nothing_is_trained(tiny_base: Path, engine: Engine, tmp_path: Path) -> None:
    found = refused([said("Hello", "")], tiny_base, engine, tmp_path)
    assert "row 25" in found or "[row 25]" in found


@caught(10, "ShareGPT's roles vanish in the template", "data", "roles are mapped by name; lint: lost-text")
def test_10_roles_that_nobody_knows(tiny_base: Path, engine: Engine, tmp_path: Path) -> None:
    assert "role" in refused([said("Hello", "Hi", role="questioner")], tiny_base, engine, tmp_path)


@caught(11, "Control tokens typed as ordinary ones", "gguf; parity", "header: added tokens; server: tokens")
def test_11_types_of_tokens(tuned: RunContext, tmp_path: Path) -> None:
    found = planted(tuned, "types", tmp_path)
    assert any(text.startswith("added tokens: ") for text in found)
    assert any("tokens" in text for text in found if text.startswith("parity"))


@caught(12, "llama.cpp does not know the tokenizer", "check", "the converter's own table; the tokenizer is converted")
def test_12_an_unknown_tokenizer(tiny_base: Path, tmp_path: Path) -> None:
    def other(body: Any) -> Any:
        body["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        return body

    base = tmp_path / "base"
    edited(tiny_base, base, "tokenizer.json", other)
    recipe = road.write(tmp_path, base, "unknown")
    settings = road.world(tmp_path / "home").settings
    place = check.Place(settings, Store(settings.store), hardware.look(settings.env), tmp_path / "work")
    report = check.check(load.load(recipe), place)
    assert any(f.name == "tokenizer" and f.level == "fail" for f in report.findings), report.findings


@caught(13, "Tied matrices fall together after a merge", "merge", "the merged folder is read again and compared")
def test_13_tied_matrices(tuned: RunContext, tmp_path: Path) -> None:
    """An output matrix that was trained apart is kept apart; written as if it were tied, its loss shows."""
    order = {"base": str(tuned.base.folder), "target": str(tmp_path), "rows": str(tuned.run.eval_rows)}
    told = in_env("apart", order, tuned.engine, tmp_path)
    assert told["untied"] is True
    assert told["kld"] < 1e-3
    assert told["tied_kld"] > 1e-2


@caught(14, "An adapter as GGUF is lost or does nothing", "export", "whole modules refused; server with it off and on")
def test_14_adapters_as_gguf(tuned: RunContext) -> None:
    config, tensors = adapters.read(tuned.run.adapter)
    alone.refuse(config, tensors)
    with pytest.raises(BadUsage, match="whole modules"):
        alone.refuse(config | {"modules_to_save": ["lm_head"]}, tensors)
    with pytest.raises(BadUsage, match="DoRA"):
        alone.refuse(config | {"use_dora": True}, tensors)


@caught(15, "Reasoning is stripped or left in", "data", "data.thinking; lint: lost-thought")
def test_15_thinking(tiny_base: Path, engine: Engine, tmp_path: Path) -> None:
    row = said("1+1?", "<think>one and one</think>2")
    assert "think" in refused([row], tiny_base, engine, tmp_path).lower()


@caught(16, "A stale or missing template in the file", "parity", "header: template by its hash")
def test_16_a_lost_template(tuned: RunContext, tmp_path: Path) -> None:
    found = planted(tuned, "no template", tmp_path)
    assert any("trained was with" in text for text in found)


@caught(17, "llama.cpp is missing when the export begins", "check; gguf", "programs are looked for first, never built")
def test_17_no_programs(tuned: RunContext, tmp_path: Path) -> None:
    bare = dataclasses.replace(USER, cache=tmp_path, env={**USER.env, "PATH": "/nonexistent"})
    place = check.Place(bare, tuned.store, tuned.machine, tmp_path / "work")
    report = check.check(tuned.loaded, place)
    assert [f.level for f in report.findings if f.name in ("llama-quantize", "llama-server")] == ["fail", "fail"]
    with pytest.raises(BackendMissing):
        tools.programs(tools.NEEDED, bare)


@caught(18, "One of several ends is lost", "merge; parity", "generation_config.json is kept; header: end")
def test_18_several_ends(tuned: RunContext, tmp_path: Path) -> None:
    both = [json.loads((p / "generation_config.json").read_text())["eos_token_id"]
            for p in (tuned.base.folder, tuned.run.merged)]  # fmt: skip
    assert both[0] == both[1]
    assert len(both[0]) == 2
    assert any(text.startswith("end: ") for text in planted(tuned, "end", tmp_path))


def test_every_failure_has_its_line() -> None:
    assert sorted(CAUGHT) == list(range(1, 19))


def test_a_good_file_is_found_good(tuned: RunContext) -> None:
    for kind in ("F16", "Q8_0"):
        assert wrong(tuned, tuned.run.gguf / f"tuned-{kind}.gguf", kind) == []


def test_the_table_of_the_documentation_is_this_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "explanation" / "finetune-proof.md").read_text(encoding="utf-8")
    for number, (failure, stage, how) in CAUGHT.items():
        assert f"| {number} | {failure} | {stage} | {how} |" in page, number
