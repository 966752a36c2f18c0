"""The pins that ship are whole, and the choice among them is right."""

from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from miyabi_llm import hardware
from miyabi_llm.hardware import Gpu
from miyabi_llm.tools import llama_cpp, lock


def test_every_pin_is_whole() -> None:
    pins = lock.load()
    assert pins.build >= llama_cpp.FLOOR
    assert len(pins.commit) == 40
    for asset in pins.assets:
        url = urlsplit(asset.url)
        assert (url.scheme, url.hostname) == ("https", "github.com")
        assert url.path.startswith(f"/ggml-org/llama.cpp/releases/download/b{pins.build}/llama-b{pins.build}-bin-")
        assert len(asset.sha256) == 64
        assert asset.size > 1 << 20
        assert asset.seen
    assert len({(a.system, a.machine, a.variant) for a in pins.assets}) == len(pins.assets)
    assert len({a.sha256 for a in pins.assets}) == len(pins.assets)


@pytest.mark.parametrize(
    ("system", "machine", "gpu", "variants"),
    [
        ("Linux", "x86_64", False, ["cpu"]),
        ("Linux", "x86_64", True, ["vulkan", "cpu"]),
        ("Linux", "aarch64", False, ["cpu"]),
        ("Darwin", "arm64", True, ["metal"]),
        ("Windows", "AMD64", False, ["cpu"]),
        ("Linux", "riscv64", False, []),
        ("FreeBSD", "x86_64", False, []),
    ],
)
def test_the_build_for_a_machine(system: str, machine: str, gpu: bool, variants: list[str]) -> None:
    gpus = (Gpu("cuda", "x"),) if gpu else ()
    here = replace(hardware.look(), system=system, machine=machine, gpus=gpus)
    assert [a.variant for a in lock.load().for_machine(here)] == variants
