"""What is measured on and what comes out: conversations, respelled headers, reports, and a stand-in for Ollama."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm import config, gguf, plots, quantize
from miyabi_llm.cli import execute
from miyabi_llm.errors import BadUsage, GateFailed, NetworkError
from miyabi_llm.gguf import Array
from miyabi_llm.quantize import card, evaluation, measure, open_source, outputs, report, respell, to_ollama
from miyabi_llm.quantize.run import Shop
from miyabi_llm.quantize.values import Limits, Made, Measured, Order, Plan, Provenance, Quality
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.store import Store
from miyabi_llm.store.adopt import hash_file
from miyabi_llm.tools import llama_cpp
from miyabi_llm.tools.moment import Kitchen
from miyabi_llm.tools.program import Program
from miyabi_llm.tools.quantizing import Window
from miyabi_llm.types import Artifact, StoredFile, silent
from tests.conftest import USER
from tests.ollamad import Ollamad

from .test_choice import measured, planned
from .tinylm import write

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THEIRS = (  # what the stand-in renders
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def talk(*contents: str) -> str:
    roles = ("user", "assistant")
    return json.dumps({"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]})


class TestRespelling:
    def test_control_tokens_get_another_spelling_of_equal_length(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.gguf", template=CHATML)
        with path.open("rb") as f:
            header = gguf.read(f, path.stat().st_size)
            f.seek(0)
            before = f.read(header.data_offset)
        head = bytearray(before)
        assert respell.respell(head) == {
            "<s>": "<S>", "</s>": "</S>", "<|im_start|>": "<|IM_START|>", "<|im_end|>": "<|IM_END|>",
        }  # fmt: skip
        assert len(head) == len(before)
        other = bytes(head) + path.read_bytes()[header.data_offset :]
        found = gguf.read(other, len(other), whole_arrays=True)
        texts, types = found.kv["tokenizer.ggml.tokens"], found.kv["tokenizer.ggml.token_type"]
        assert isinstance(texts, Array)
        assert isinstance(types, Array)
        assert (texts.items[-1], types.items[-1], types.items[0]) == ("<|IM_END|>", 4, 2)
        assert found.tensors == header.tensors

    def test_a_copy_changes_nothing_of_the_original(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.gguf", template=CHATML)
        before = hash_file(path)
        source = open_source(ModelRef.parse(str(path)), quantize_store(tmp_path), tmp_path)
        copy, spelling = respell.copy(source.first, source.files, source.header, tmp_path / "copy")
        assert hash_file(path) == before != hash_file(copy)
        assert respell.spell("<|im_start|>user\n", spelling) == "<|IM_START|>user\n"

    @given(st.binary(max_size=300))
    def test_what_is_no_header_stays(self, data: bytes) -> None:
        head = bytearray(data)
        assert respell.respell(head) == {}
        assert head == data


def quantize_store(folder: Path) -> Store:
    return Store(folder / "store")


class TestConversations:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "no conversation"),
            ("{}\n", "line 1 has no messages"),
            (f"{talk('a')}\nnot json\n", "line 2 is no JSON"),
            ('{"messages": []}', "line 1"),
            ('{"messages": [{"role": "user"}]}', "line 1"),
        ],
    )
    def test_wrong_lines_are_named(self, tmp_path: Path, text: str, words: str) -> None:
        path = tmp_path / "chat.jsonl"
        path.write_text(text)
        with pytest.raises(BadUsage, match=words):
            evaluation.conversations(path)

    def test_blank_lines_do_not_matter(self, tmp_path: Path) -> None:
        path = tmp_path / "chat.jsonl"
        path.write_text(f"\n{talk('a', 'b')}\n\n{talk('c')}")
        assert [len(c["messages"]) for c in evaluation.conversations(path)] == [2, 1]

    def test_a_base_model_takes_no_conversations(self, tmp_path: Path) -> None:
        source = open_source(
            ModelRef.parse(str(write(tmp_path / "m.gguf"))), quantize_store(tmp_path), tmp_path
        )  # fmt: skip
        (tmp_path / "chat.jsonl").write_text(talk("a"))
        kitchen = Kitchen(Program("llama-server", tmp_path, (), "", "path"), {}, tmp_path)
        with pytest.raises(BadUsage, match="no chat template"):
            evaluation.prepare(source, Order(text=tmp_path / "chat.jsonl"), kitchen, silent)


@pytest.fixture
def made() -> Made:
    found = [measured("Q8_0", 278 << 20, 0.001), measured("Q4_K_M", 241 << 20, 0.02), measured("Q2_K", 226 << 20, 0.6)]
    stopped = replace(found[2], quality=replace(found[2].quality, stopped=True), passed=False)
    marked = quantize.run.choose.mark_front([found[0], replace(found[1], passed=True), stopped])
    types = tuple(planned(m.type, m.size) for m in marked)
    plan = Plan(
        "file:/secret/place/m.gguf", 518 << 20, Provenance("dequantized", "it was 4-bit"), 2048, None, types, (), {}
    )
    file = StoredFile("m.gguf", Digest("0" * 64), 241 << 20)
    artifact = Artifact(ModelRef.parse("m:q4_k_m"), "gguf", (file,), "local", "test", "2026-01-01")
    facts = {
        "quantized": {
            "tool": "llama.cpp",
            "version": "1",
            "build": 2,
            "commit": "abc",
            "argv": ["llama-quantize", "<x>"],
        },
        "tensor_types": {"attn_q": {"Q4_K": "0-3,7", "Q6_K": "4-6"}},
        "evaluation": {"text": "shipped", "seed": 0},
        "base": {"ref": "file:m.gguf", "sha256": {"m.gguf": "1" * 64}},
    }
    q = replace(marked[1].quality, against="an already quantized source")
    return Made(artifact, types[1], q, None, marked, plan, facts, ("<b>&",), 300 << 20, Limits(0.05))


class TestReport:
    def test_the_page_is_whole_and_loads_nothing(self, made: Made) -> None:
        page = report.page(made)
        assert "<svg" in page
        assert "&lt;b&gt;&amp;" in page
        assert "The source is no original: it was 4-bit" in page
        assert "0-3,7" in page
        assert "300 MiB resident" in page
        assert "/secret/place" not in page
        for word in ("<script", "src=", "@import", "url(", "<link"):
            assert word not in page
        assert all(link.startswith("www.w3.org/") for link in page.split("http://")[1:])  # names of formats
        assert "https://" not in page

    def test_the_points_of_the_picture(self, made: Made) -> None:
        states = {v["type"]: v["state"] for v in report.picture(made)["data"]["values"]}
        assert states == {"Q8_0": "front", "Q4_K_M": "chosen", "Q2_K": "refused"}
        assert plots.png(report.picture(made), 1.0).startswith(b"\x89PNG")

    @pytest.mark.parametrize("kind", ["html", "svg", "png"])
    def test_files(self, made: Made, tmp_path: Path, kind: str) -> None:
        path = tmp_path / f"r.{kind}"
        plots.save(path, report.picture(made), report.page(made))
        assert path.stat().st_size > 3000

    def test_what_cannot_be_written_is_said_before_the_work(self, tmp_path: Path) -> None:
        settings = config.load()
        for wrong in ("r.pdf", "nowhere/r.html"):
            with pytest.raises(BadUsage):
                outputs.check(tmp_path / wrong, None, settings)
        for wrong in ("ollama:", "vllm:x", "ollama:a/b", "x"):
            with pytest.raises(BadUsage, match="ollama:NAME"):
                outputs.check(None, wrong, settings)

    def test_a_row_for_each_file(self, made: Made) -> None:
        rows = report.rows(made)
        assert [len(r) for r in rows] == [len(report.COLUMNS)] * 3
        assert [r[-1] for r in rows] == ["front", "chosen, front", "given up"]


def test_types_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    with path.open("rb") as f:
        found = card.by_name(gguf.read(f, path.stat().st_size))
    assert found["token_embd.weight"] == {"F16": ""}
    assert found["attn_q"] == {"F16": "0-1"}


def test_recorded_tokens_are_read(tmp_path: Path) -> None:
    path = tmp_path / "b.kld"
    path.write_bytes(struct.pack("<8sIii4i", b"_logits_", 2, 7, 2, 5, 6, 5, 4))
    assert measure.tokens(path) == (5, 6, 5, 4)


class TestOllama:
    """Not run against the real program: a stand-in that keeps state, and the real llama-server."""

    @pytest.fixture
    def ollama(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ollamad]:
        with Ollamad(tmp_path / "models") as server:
            monkeypatch.setenv("OLLAMA_HOST", server.url)
            monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
            yield server

    def hand(self, tmp_path: Path, server: Path, template: str | None) -> quantize.values.Handed:
        path = write(tmp_path / "m.gguf", template=template)
        file = StoredFile("m.gguf", hash_file(path), path.stat().st_size)
        artifact = Artifact(ModelRef.parse("m:f16"), "gguf", (file,), "local", "test", "2026-01-01")
        with path.open("rb") as f:
            header = gguf.read(f, file.size)
        settings = config.load()
        kitchen = Kitchen(llama_cpp.find(llama_cpp.SERVER, USER), settings.env, tmp_path, 1)
        wanted = to_ollama.Wanted("mine:q4", 512, header, settings)
        return to_ollama.hand(artifact, {"m.gguf": path}, wanted, kitchen, silent)

    def test_a_model_whose_prompts_agree_stays(self, tmp_path: Path, real_server: Path, ollama: Ollamad) -> None:
        handed = self.hand(tmp_path, real_server, THEIRS)
        assert (handed.name, handed.probes) == ("mine:q4", 3)
        assert [row["model"] for row in ollama.tags()] == ["mine:q4"]
        assert self.hand(tmp_path, real_server, THEIRS) == handed  # the same once more

    def test_another_prompt_is_refused_and_the_model_removed(
        self, tmp_path: Path, real_server: Path, ollama: Ollamad
    ) -> None:
        with pytest.raises(GateFailed, match="'user' otherwise"):
            self.hand(tmp_path, real_server, CHATML)
        assert ollama.tags() == []

    def test_a_base_model_has_no_prompts(self, tmp_path: Path, real_server: Path, ollama: Ollamad) -> None:
        assert self.hand(tmp_path, real_server, None).probes == 0

    def test_another_model_of_that_name_is_kept(self, tmp_path: Path, real_server: Path, ollama: Ollamad) -> None:
        self.hand(tmp_path, real_server, THEIRS)
        with pytest.raises(BadUsage, match="another model"):
            self.hand(tmp_path, real_server, CHATML)
        assert [row["model"] for row in ollama.tags()] == ["mine:q4"]

    def test_none_that_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
        with pytest.raises(NetworkError, match="no Ollama answers"):
            outputs.check(None, "ollama:mine", config.load())


@pytest.mark.slow
def test_conversations_are_measured_as_a_server_reads_them(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "chat.gguf", template=CHATML)
    text = tmp_path / "talk.jsonl"
    text.write_text("\n".join(talk(f"How much is {i} and {i}?", f"{i + i}, which is even. " * 6) for i in range(12)))
    source = open_source(ModelRef.parse(str(path)), shop.store, shop.settings.user_home)
    order = Order(types=("Q8_0",), text=text, window=Window(chunks=3), ctx=512)
    found = quantize.quantize(source, order, shop)
    said = found.card["evaluation"]
    assert (said["conversations"] > 0, said["tokens_read_otherwise"], said["chunks"]) == (True, 0, 3)
    base = next((shop.settings.cache / "quantize" / "bases").glob("*.kld"))
    start, end = 259, 260  # <|im_start|>, <|im_end|>
    assert start in measure.tokens(base)
    assert end in measure.tokens(base)
    assert found.resident is not None
    again = quantize.quantize(source, order, shop)
    assert again.card["evaluation"]["tokens_read_otherwise"] == 0
    args = ["--type", "Q8_0", "--chunks", "3", "--threads", "1", "--ctx", "512", "--report", str(tmp_path / "r.html")]
    assert execute(["quantize", str(path), *args]) == 0
    assert "resident in a server" in capsys.readouterr().out
    assert (tmp_path / "r.html").exists()


@pytest.mark.slow
def test_the_search_finds_what_measuring_everything_finds(shop: Shop, tiny: Path) -> None:
    source = open_source(ModelRef.parse(str(tiny)), shop.store, shop.settings.user_home)
    eight = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K")
    order = Order(types=eight, window=Window(chunks=4), ctx=512)
    everything = quantize.quantize(source, order, shop)
    needs = {p.type: p.needed for p in everything.plan.types}
    for budget in sorted(needs.values())[1:]:
        best = min((m for m in everything.measured if needs[m.type] <= budget), key=lambda m: m.quality.kld)
        found = quantize.quantize(
            source, replace(order, types=(), budget=budget, max_kld=best.quality.high * 1.01), shop
        )
        picked = next(m for m in everything.measured if m.type == found.chosen.type)
        assert len(found.measured) <= 2
        assert picked.type == best.type or quantize.run.choose.indistinguishable(picked.quality, best.quality)


def test_a_quality_without_tail_is_not_judged_by_it() -> None:
    q = Quality(0.01, 0.001, 0.008, 0.012, 90.0, 8, 1000, "x")
    assert quantize.run.quality.failures(q, Limits(0.02, 0.001)) == ()
    assert isinstance(measured("Q4_0", 1, 0.1), Measured)
