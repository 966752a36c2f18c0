"""models.yaml is closed, says where it is wrong, and becomes a preset that llama-server's router reads."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.errors import BadUsage
from miyabi_llm.serve.many import config, preset
from miyabi_llm.serve.many.guard import Guard
from miyabi_llm.serve.many.values import ModelOrder, Order
from miyabi_llm.types import Endpoint, LaunchPlan, Secret

WHOLE = """
memory: 12GiB
ttl: 600
hosts: [models.lan]
models:
  - gemma3:270m
  - ref: qwen2.5-coder:1.5b
    alias: coder
    ctx: 16384
    kv: q8_0
    pin: true
    extra: [--temp, 0.2]
"""


def test_a_file_says_what_it_says() -> None:
    read = config.parse(WHOLE)
    assert (read.memory, read.ttl, read.hosts) == (12 << 30, 600, ("models.lan",))
    assert read.models[0] == config.Entry("gemma3:270m")
    coder = read.models[1]
    assert (coder.alias, coder.ctx, coder.kv, coder.pin, coder.extra) == (
        "coder",
        16384,
        "q8_0",
        True,
        ("--temp", "0.2"),
    )


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("models:\n  - ref: a\n    pni: true\n", "models.yaml:3: models[0].pni: unknown key", "models[0].pin?"),
        ("modles: [a]\n", "models.yaml:1: modles: unknown key", "Did you mean models?"),
        ("models: [a]\nport: high\n", "models.yaml:2: port: 'high' is not a number", None),
        ("models:\n- ref: a\n  ctx: true\n", "models.yaml:3: models[0].ctx: True is not a number of tokens", None),
        ("models:\n- ref: a\n  ctx: 0\n", "models.yaml:3: models[0].ctx: 0 is too small", None),
        ("models:\n- alias: a\n", "models.yaml:2: models[0].ref: is missing", None),
        ("models:\n- ref: a\n  ref: b\n", "models.yaml:3: ref: a key stands here twice", None),
        ("models:\n- ref: a\n  alias: 'a; b'\n", "models.yaml:3: models[0].alias: 'a; b' is no name", None),
        ("models: []\n", "name one at least", None),
        ("memory: 12 parsecs\nmodels: [a]\n", "memory: '12 parsecs' is no size", None),
        ("models: [a\n", "models.yaml:2: expected ',' or ']'", None),
        (
            "models: !!python/object/apply:os.system [ls]\n",
            "models.yaml:1: !!python/object/apply:os.system is no plain value",
            None,
        ),
        ("- a\n", "models.yaml:1: does not begin with a key", None),
        ("", "begin with `models:`", None),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, said: str, hint: str | None) -> None:
    with pytest.raises(BadUsage) as caught:
        config.parse(text)
    assert said in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")


def test_a_file_of_aliases_of_aliases_is_refused() -> None:
    rows = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 30)]
    with pytest.raises(BadUsage, match="too large"):
        config.parse("\n".join(rows))


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    with suppress(BadUsage):
        config.parse(text)


def test_an_order_survives_its_file() -> None:
    model = ModelOrder("gemma3:270m", "a", 5, "llama-cpp", 512, extra=("-np", "1"), pin=True, ttl=1.5)
    order = Order((model,), 10, "127.0.0.1", 8080, Path("/x"), ("h",), ("https://o",))
    assert Order.from_json(order.to_json()) == order


def plan(alias: str, *words: str) -> LaunchPlan:
    argv = ("/bin/llama-server", "--model", "/m.gguf", "--alias", alias, "--host", "h", "--port", "1", *words)
    return LaunchPlan("llama-cpp", argv, {}, Endpoint("http://h:1", alias))


def test_a_command_line_becomes_a_section() -> None:
    plans = {a: plan(a, "--temp", "-1", "--jinja", "-np", "1", "--temp", "0.5") for a in ("x", "gemma3:270m")}
    names = preset.sections(plans)
    assert names == {"x": "x", "gemma3:270m": "gemma3-270m"}
    assert preset.text(plans, ("/bin/llama-server",), names).splitlines() == [
        *("version = 1", "", "[x]", "model = /m.gguf", "temp = 0.5", "jinja = true", "np = 1", ""),
        *("[gemma3-270m]", "alias = gemma3:270m", "model = /m.gguf", "temp = 0.5", "jinja = true", "np = 1"),
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("--chat-template", "a ; b"),
        ("--lora", "a", "--lora", "b"),
        ("--prompt", "x\ny"),
        ("stray", "--jinja", "x", "y"),
    ],
)
def test_what_a_preset_cannot_hold_gets_a_process_of_its_own(words: tuple[str, ...]) -> None:
    with pytest.raises(preset.Unpresentable):
        preset.options(plan("x", *words), ("/bin/llama-server",))


def test_sections_never_share_a_name() -> None:
    names = preset.sections({a: plan(a) for a in ("a:b", "a-b", "a b", "a/b", ":")})
    assert len(set(names.values())) == 5
    assert names["a-b"] == "a-b"


@pytest.mark.parametrize(
    ("bind", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8080", None),
        ("127.0.0.1", "[::1]:8080", None),
        ("127.0.0.1", "localhost", None),
        ("127.0.0.1", "models.lan", None),
        ("127.0.0.1", "10.0.0.5:8080", 421),
        ("0.0.0.0", "10.0.0.5:8080", None),
        ("0.0.0.0", "evil.example", 421),
        ("0.0.0.0", "localhost.evil.example", 421),
    ],
)
def test_a_name_that_anybody_can_point_here_is_not_ours(bind: str, host: str, status: int | None) -> None:
    denied = Guard(bind, None, hosts=("models.lan",)).judge("/v1/models", {"host": [host]})
    assert (denied.status if denied else None) == status


def test_two_hosts_and_a_whole_address_as_path_are_no_requests() -> None:
    guard = Guard("127.0.0.1", None)
    for path, hosts in (("/", ["localhost", "localhost"]), ("/", []), ("http://evil.example/", ["localhost"])):
        denied = guard.judge(path, {"host": hosts})
        assert denied is not None
        assert denied.status == 400


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_the_key_counts_in_both_headers(name: str) -> None:
    guard = Guard("127.0.0.1", Secret("right"))
    for value in ("right", "Bearer right", "bearer right"):
        if name == "x-api-key" and " " in value:
            continue
        assert guard.judge("/v1/models", {"host": ["localhost"], name: [value]}) is None
    for value in ("", "wrong", "Bearer", "Bearer wrong", "right2"):
        denied = guard.judge("/v1/models", {"host": ["localhost"], name: [value]})
        assert denied is not None
        assert denied.status == 401


def test_an_origin_counts_only_when_it_is_on_the_list() -> None:
    guard = Guard("127.0.0.1", None, origins=("https://chat.lan",))
    assert guard.judge("/", {"host": ["localhost"], "origin": ["https://chat.lan"]}) is None
    denied = guard.judge("/", {"host": ["localhost"], "origin": ["https://chat.lan.evil.example"]})
    assert denied is not None
    assert denied.status == 403
