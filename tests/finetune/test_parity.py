"""The judgement of parity, and the faults of headers that no answer shows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.finetune import parity, plant
from miyabi_llm.finetune.parity import Expected, Told
from miyabi_llm.finetune.server import serving
from miyabi_llm.quantize.gates import failed
from miyabi_llm.quantize.original import Added, Promise
from miyabi_llm.tools import llama_cpp
from miyabi_llm.tools.moment import Kitchen

from ..conftest import USER
from ..quantize import tinylm

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def step(*chances: float) -> dict[int, float]:
    return {i: math.log(c) for i, c in enumerate(chances)}


WANT = Told("p", "hello", (1, 2, 3), None, (0, 1), (step(0.7, 0.2), step(0.1, 0.8)), "eos")


def judged(kind: str, got: Told) -> list[str]:
    return [f.message for f in failed(parity.judge(kind, {"p": WANT}, {"p": got}, ()).findings)]


def test_the_same_is_the_same() -> None:
    table = parity.judge("F16", {"p": WANT}, {"p": WANT}, ())
    assert table.passed
    assert (table.delta, table.kl, table.top, table.places) == (0.0, 0.0, 1.0, 2)


def test_each_difference_is_named() -> None:
    assert "rendered" in judged("Q4_K_M", replace(WANT, text="hallo"))[0]
    assert "tokens [9]" in judged("Q4_K_M", replace(WANT, ids=(1, 2, 9)))[0]
    assert "ends by limit" in judged("Q4_K_M", replace(WANT, stop="limit"))[0]
    far = replace(WANT, steps=(step(0.1, 0.8), step(0.1, 0.8)), tokens=(1, 1))
    said = judged("F16", far)
    assert "answers 1 at place 0, the trainer 0" in said[0]
    assert any("log-probability" in text for text in said)
    assert any("likeliest token is the same at 50.0%" in text for text in said)
    near = replace(WANT, steps=(step(0.69, 0.21), step(0.1, 0.8)))
    assert judged("F16", near)
    assert not judged("Q4_K_M", near)


def test_letters_that_llama_cpp_does_not_compose_are_a_warning() -> None:
    got = replace(WANT, ids=(1, 2, 9), composed=(1, 2, 3), tokens=(), steps=(), stop="")
    table = parity.judge("F16", {"p": replace(WANT, tokens=(), steps=(), stop="")}, {"p": got}, ())
    assert table.passed
    assert [f.level for f in table.findings] == ["warn"]


def test_a_tie_of_the_trainer_decides_nothing() -> None:
    want = replace(WANT, steps=(step(0.45, 0.4499), step(0.1, 0.8)))
    got = replace(want, tokens=(1, 1), steps=(step(0.4499, 0.45), step(0.1, 0.8)))
    assert parity.judge("F16", {"p": want}, {"p": got}, ()).passed


chances = st.dictionaries(st.integers(0, 30), st.floats(-20, 0), min_size=1, max_size=20)


@given(chances, chances)
def test_differences_are_never_negative(a: dict[int, float], b: dict[int, float]) -> None:
    assert parity.delta(a, b) >= 0
    assert parity.delta(a, a) == 0
    assert parity.margin(a) >= 0


def test_a_divergence_over_the_likeliest_never_exceeds_the_whole() -> None:
    a, b = [0.5, 0.3, 0.1, 0.06, 0.04], [0.3, 0.4, 0.1, 0.1, 0.1]
    whole = sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))
    part = parity.divergence(step(*a[:3]), step(*b[:3]))
    assert 0 < part <= whole


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinylm.write(tmp_path_factory.mktemp("parity") / "tiny.gguf", template=TEMPLATE)


PROMISE = Promise("LlamaForCausalLM", (2,), 2, (Added(259, "<|im_start|>", True), Added(260, "<|im_end|>", True)),
                  TEMPLATE, False, True)  # fmt: skip


def test_a_header_is_held_against_what_was_trained(model: Path) -> None:
    import hashlib

    header = parity.header_of(model)
    sha = hashlib.sha256(TEMPLATE.encode()).hexdigest()
    want = Expected(PROMISE, sha, header.kv)
    assert not failed(parity.static(header, want))
    assert "trained was with" in failed(parity.static(header, replace(want, template="0" * 64)))[0].message
    other = {k: v for k, v in header.kv.items() if k != "llama.context_length"}
    assert "llama.context_length" in failed(parity.static(header, replace(want, keys=other)))[0].message


@pytest.mark.parametrize("name", ["template", "no template", "end", "types"])
def test_faults_that_no_answer_shows_are_in_the_header(name: str, model: Path, tmp_path: Path) -> None:
    import hashlib

    want = Expected(PROMISE, hashlib.sha256(TEMPLATE.encode()).hexdigest(), parity.header_of(model).kv)
    assert plant.plant(model, tmp_path / "bad.gguf", plant.fault(name))
    assert failed(parity.static(parity.header_of(tmp_path / "bad.gguf"), want))


def test_the_server_gives_the_exact_chances(model: Path, real_server: Path, tmp_path: Path) -> None:
    """All chances of one place sum to 1; a forced token's chance is that of the list, however rare it is."""
    kitchen = Kitchen(llama_cpp.find(llama_cpp.SERVER, USER), USER.env, tmp_path, threads=1)
    with serving(model, kitchen, 512) as server:
        text = server.prompt([{"role": "user", "content": "Hi"}])
        ids = server.ids(text)
        whole = server.moment.ask("/tokenize", {"content": "!", "add_special": False})["tokens"][-1]
        everything = server.chances(ids, 100_000, whole)
        assert sum(math.exp(v) for v in everything.values()) == pytest.approx(1, abs=1e-4)
        ranked = sorted(everything, key=everything.__getitem__)
        for token in (ranked[-1], ranked[len(ranked) // 2], ranked[0]):
            assert server.chance(ids, token, whole) == pytest.approx(everything[token], abs=2e-3)
        answer = server.answer(ids, 4, 20)
        assert answer.tokens[0] == ranked[-1]
        assert answer.stop in ("eos", "limit")


@pytest.mark.parametrize("name", ["weights", "template", "types"])
def test_faults_are_heard_in_answers(name: str, model: Path, real_server: Path, tmp_path: Path) -> None:
    """The good file plays the trainer; the same file with a fault is found by what it says alone."""
    assert plant.plant(model, tmp_path / "bad.gguf", plant.fault(name))
    kitchen = Kitchen(llama_cpp.find(llama_cpp.SERVER, USER), USER.env, tmp_path, threads=1)
    found = []
    for path in (model, tmp_path / "bad.gguf"):
        with serving(path, kitchen, 512) as server:
            text = server.prompt([{"role": "user", "content": "Hi"}])
            ids = server.ids(text)
            whole = server.moment.ask("/tokenize", {"content": "!", "add_special": False})["tokens"][-1]
            steps = (server.chances(ids, 20, whole),)
            found.append(Told("p", text, ids, None, (max(steps[0], key=steps[0].__getitem__),), steps, "limit"))
    table = parity.judge("F16", {"p": found[0]}, {"p": found[1]}, ())
    assert not table.passed
