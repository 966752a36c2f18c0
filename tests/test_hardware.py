"""The machine is looked at without ever failing, and containers are believed."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from miyabi_llm import hardware
from miyabi_llm.hardware import Gpu, cpu_quota, disk_free, memory_limit, parse_nvidia_smi, parse_rocm_smi, usable_cores
from miyabi_llm.types import plain
from tests.tools.stubs import script


def test_this_machine() -> None:
    seen = hardware.look()
    assert 1 <= seen.usable_cores <= seen.physical_cores <= seen.logical_cores
    assert 0 < seen.ram_available <= seen.ram_total
    assert seen.cpu
    assert asdict(seen)
    json.dumps(plain(seen))
    assert len(hardware.machine_key()) == 12


def write(root: Path, **files: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text)


def test_memory_limit_of_cgroup_v2(tmp_path: Path) -> None:
    write(tmp_path, memory__max="max\n")
    write(
        tmp_path / "a",
        memory__max="8589934592\n",
        memory__current="2147483648\n",
        memory__stat="anon 5\ninactive_file 1073741824\n",
    )
    write(tmp_path / "a/b", memory__max="max\n", memory__current="1\n")
    assert memory_limit(tmp_path, "0::/a/b\n") == (8 << 30, 1 << 30)
    assert memory_limit(tmp_path, "0::/\n") == (None, None)
    assert memory_limit(tmp_path / "nowhere", "0::/a\n") == (None, None)


def test_memory_limit_of_cgroup_v1(tmp_path: Path) -> None:
    write(tmp_path / "memory", memory__limit_in_bytes="9223372036854771712\n", memory__usage_in_bytes="1\n")
    write(tmp_path / "memory/job", memory__limit_in_bytes="4294967296\n", memory__usage_in_bytes="1073741824\n")
    assert memory_limit(tmp_path, "5:memory:/job\n4:cpu,cpuacct:/job\n") == (4 << 30, 1 << 30)
    assert memory_limit(tmp_path, "5:memory:/\n") == (None, None)


def test_cpu_quota(tmp_path: Path) -> None:
    write(tmp_path / "a", cpu__max="150000 100000\n")
    write(tmp_path / "a/b", cpu__max="max 100000\n")
    assert cpu_quota(tmp_path, "0::/a/b\n") == 1.5
    assert cpu_quota(tmp_path, "0::/\n") is None
    write(tmp_path / "cpu,cpuacct/job", cpu__cfs_quota_us="400000\n", cpu__cfs_period_us="100000\n")
    write(tmp_path / "cpu/job", cpu__cfs_quota_us="400000\n", cpu__cfs_period_us="100000\n")
    assert cpu_quota(tmp_path, "4:cpu,cpuacct:/job\n") == 4.0
    write(tmp_path / "cpu/job", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="garbage\n")
    assert cpu_quota(tmp_path, "4:cpu,cpuacct:/job\n") is None


@pytest.mark.parametrize(
    ("logical", "physical", "allowed", "quota", "cores"),
    [
        (16, 8, None, None, 8),
        (16, 8, 4, None, 2),
        (16, 8, 3, None, 2),
        (16, 8, 16, 2.5, 2),
        (4, 4, 4, 0.5, 1),
        (1, 1, 1, None, 1),
        (6, 4, None, None, 4),
    ],
)
def test_usable_cores(logical: int, physical: int, allowed: int | None, quota: float | None, cores: int) -> None:
    assert usable_cores(logical, physical, allowed, quota) == cores


def test_nvidia(tmp_path: Path) -> None:
    text = "NVIDIA GeForce RTX 4090, 24564, 23010, 580.65.06, 8.9\nNVIDIA GB10, [N/A], [N/A], 580.95, 12.1\n"
    first, second = parse_nvidia_smi(text)
    assert first == Gpu("cuda", "NVIDIA GeForce RTX 4090", 24564 << 20, 23010 << 20, "580.65.06", "8.9")
    assert (second.memory_total, second.compute) == (None, "12.1")
    assert parse_nvidia_smi("No devices were found\n") == []
    script(tmp_path / "nvidia-smi", f"cat <<'E'\n{text}E")
    assert len(hardware.look({"PATH": f"{tmp_path}:/bin:/usr/bin"}).gpus) == 2


@pytest.mark.parametrize(
    ("text", "note"), [("sleep 30", "did not end"), ("echo 'NVIDIA-SMI has failed' ; exit 9", "has failed")]
)
def test_a_broken_driver_is_a_note(tmp_path: Path, text: str, note: str) -> None:
    script(tmp_path / "nvidia-smi", text)
    seen = hardware.look({"PATH": f"{tmp_path}:/bin:/usr/bin"})
    assert seen.gpus == ()
    assert any("nvidia-smi" in n and note in n for n in seen.notes)


def test_rocm() -> None:
    text = (
        "WARNING: x\ndevice,VRAM Total Memory (B),VRAM Total Used Memory (B),Card Series,Card Model\n"
        "card0,17163091968,1048576,Radeon RX 7800 XT,0x747e\n\n"
    )
    assert parse_rocm_smi(text) == [Gpu("rocm", "Radeon RX 7800 XT", 17163091968, 17163091968 - 1048576)]
    assert parse_rocm_smi("no, nothing\n") == []


def test_disk_free_of_what_is_not_there_yet(tmp_path: Path) -> None:
    assert (disk_free(tmp_path / "a/b/c") or 0) > 0
