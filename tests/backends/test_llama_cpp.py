"""The command line of llama.cpp's server: what its --help lists, and nothing it does not."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from miyabi_llm.backends.base import Detected, client_url
from miyabi_llm.backends.llama_cpp import DEFAULT_CACHE_RAM, DEFAULT_CTX, KEY_VARIABLE, LlamaCpp, model_files
from miyabi_llm.errors import BackendMissing, BadUsage
from miyabi_llm.refs import ModelRef
from miyabi_llm.tools.program import Program
from miyabi_llm.types import Artifact, Secret, ServeSpec, StoredFile

OLD = frozenset({"--model", "--host", "--port", "--alias", "--ctx-size", "--threads", "--parallel"})
NEW = OLD | {"--cache-ram", "--jinja", "--no-ui", "--no-webui", "--offline", "--mmproj"}
PROGRAM = Program(
    "llama-server", Path("/b/llama"), ("/b/llama", "serve"), "v", "path", 1, None, NEW, frozenset({KEY_VARIABLE})
)


def here(program: Program) -> Detected:
    return Detected("llama-cpp", True, program=program)


FOUND = here(PROGRAM)


def spec(*names: str) -> ServeSpec:
    files = tuple(StoredFile(n, "0" * 64, 1) for n in names or ("m.gguf",))  # type: ignore[arg-type]
    artifact = Artifact(ModelRef.parse("hf:a/b/m.gguf"), "gguf", files, "verified", "test", "2026-01-01")
    return ServeSpec(artifact, {f.name: Path("/m", f.name) for f in files}, "alias")


def pairs(argv: tuple[str, ...] | None) -> dict[str, str]:
    assert argv is not None
    return {a: b for a, b in pairwise(argv) if a.startswith("--")}


def test_a_whole_plan() -> None:
    plan = LlamaCpp().plan(replace(spec(), threads=3, parallel=2, ctx=4096, key=Secret("k")), FOUND)
    assert plan.argv == (
        *("/b/llama", "serve", "--model", "/m/m.gguf", "--alias", "alias", "--host", "127.0.0.1", "--port", "8080"),
        *("--ctx-size", "4096", "--threads", "3", "--parallel", "2", "--cache-ram", str(DEFAULT_CACHE_RAM)),
        *("--jinja", "--no-ui", "--offline"),
    )
    assert plan.env[KEY_VARIABLE] is not None
    assert plan.endpoint.dialects == ("openai", "anthropic")
    assert plan.ctx == 4096


def test_flags_the_program_does_not_list_are_left_out() -> None:
    plan = LlamaCpp().plan(spec(), here(replace(PROGRAM, flags=OLD)))
    assert plan.argv is not None
    assert set(pairs(plan.argv)) <= OLD


def test_the_older_name_of_a_flag_is_used_where_it_is_the_only_one() -> None:
    plan = LlamaCpp().plan(spec(), here(replace(PROGRAM, flags=NEW - {"--no-ui"})))
    assert "--no-webui" in (plan.argv or ())


def test_what_nobody_asked_for() -> None:
    argv = LlamaCpp().plan(spec(), FOUND).argv
    assert pairs(argv)["--ctx-size"] == str(DEFAULT_CTX)
    assert not {"--threads", "--parallel", "-ngl", "--n-gpu-layers", "--metrics"} & set(argv or ())


def test_the_users_context_is_the_plans_context() -> None:
    assert LlamaCpp().plan(replace(spec(), extra=("-c", "512")), FOUND).ctx == 512
    assert pairs(LlamaCpp().plan(replace(spec(), cache_ram=0), FOUND).argv)["--cache-ram"] == "0"


def test_a_cache_type_nobody_knows_is_refused_before_the_start() -> None:
    with pytest.raises(BadUsage, match="'q9_9'") as e:
        LlamaCpp().plan(replace(spec(), kv_type="q9_9"), FOUND)
    assert "q8_0" in (e.value.hint or "")


def test_a_key_that_would_not_be_honoured_is_refused() -> None:
    deaf = replace(PROGRAM, environment=frozenset())
    with pytest.raises(BackendMissing, match="takes no key"):
        LlamaCpp().plan(replace(spec(), key=Secret("k")), here(deaf))
    assert LlamaCpp().plan(spec(), here(deaf)).env == {}
    with pytest.raises(BackendMissing, match="not installed"):
        LlamaCpp().plan(spec(), Detected("llama-cpp", False))


def test_which_file_is_the_model() -> None:
    def chosen(*names: str) -> tuple[Path, Path | None]:
        return model_files({n: Path("/m", n) for n in names})

    assert chosen("README.md", "a.gguf") == (Path("/m/a.gguf"), None)
    parts = ("x-00003-of-00003.gguf", "x-00001-of-00003.gguf", "x-00002-of-00003.gguf")
    assert chosen(*parts)[0].name == "x-00001-of-00003.gguf"
    assert chosen("m.gguf", "mmproj-f16.gguf") == (Path("/m/m.gguf"), Path("/m/mmproj-f16.gguf"))
    for bad in ((), ("a.txt",), ("a.gguf", "b.gguf"), ("mmproj.gguf",)):
        with pytest.raises(BadUsage):
            chosen(*bad)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("fe80::2", "http://[fe80::2]:1"),
        ("box.lan", "http://box.lan:1"),
    ],
)
def test_where_clients_go(host: str, url: str) -> None:
    assert client_url(host, 1) == url


@pytest.mark.parametrize("word", ["--host", "--port", "--model", "-m", "--alias", "--api-key"])
def test_extra_words_cannot_change_what_is_proven(word: str) -> None:
    """`-- --host 0.0.0.0` would open a server without a key; `-- --port` would make us wait at the wrong door."""
    with pytest.raises(BadUsage, match="cannot be given after --"):
        LlamaCpp().plan(replace(spec(), extra=("--temp", "0", word, "x")), FOUND)
