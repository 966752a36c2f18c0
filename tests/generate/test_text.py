"""What is generated says what it was given, in the words of its reader, and never the key."""

from __future__ import annotations

import configparser
import json
import plistlib
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm import generate
from miyabi_llm.errors import BadUsage
from miyabi_llm.generate import Container, Mount, Native
from miyabi_llm.generate.images import arguments
from miyabi_llm.generate.pod import verify_script

SCHEMA = json.loads((Path(__file__).parent.parent / "fixtures/compose/compose-spec.json").read_text("utf-8"))
KUBERNETES = "1.31"
NATIVE = Native("m", "m:1b", ("/usr/bin/env", "serve", "m:1b"), {"PATH": "/usr/bin"}, Path("/home/you/m.log"))
MOUNT = Mount(Path("/home/you/m.gguf"), "/models/m.gguf", "0" * 64, 10)
LLAMA = Container(
    name="m",
    model="m:1b",
    image=generate.image("llama-cpp", None, 0),
    args=("--model", "/models/m.gguf", "--host", "0.0.0.0", "--port", "8080"),
    env={},
    mounts=(MOUNT,),
    port=8080,
    key_file=Path("/home/you/m.key"),
    memory=3 << 30,
)
VLLM = replace(
    LLAMA, image=generate.image("vllm", None, 2), args=("/models", "--port", "8080"), env={"A": "b $(c) $d"}, gpus=2
)
# What can be written down: everything but control characters and line ends.
WORDS = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="\ufeff\ufffe\uffff"),
    min_size=1,
    max_size=20,
)
PATHS = WORDS.map(lambda w: "/" + w.replace("/", "-"))


def unit(text: str) -> dict[str, dict[str, list[str]]]:
    """A unit file's sections; a key may stand there more than once."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in text.split("\n"):
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return found


def words(line: str, *, expands: bool = True) -> list[str]:
    """A line as systemd reads it: quotes, then specifiers, then variables."""
    found = [w.replace("%%", "%") for w in shlex.split(line)]
    return [w.replace("$$", "$") for w in found] if expands else found


def compose(text: str) -> dict[str, Any]:
    """A project as compose reads it: variables replaced in every value."""
    value = yaml.safe_load(text)
    jsonschema.Draft7Validator(SCHEMA).validate(value)

    def expand(one: Any) -> Any:
        if isinstance(one, str):
            return one.replace("$$", "$")
        if isinstance(one, dict):
            return {k: expand(v) for k, v in one.items()}
        return [expand(v) for v in one] if isinstance(one, list) else one

    return expand(value)  # type: ignore[no-any-return]


def manifests(text: str) -> list[dict[str, Any]]:
    """Manifests, each valid by the published schema, strictly: no field it does not name."""
    found = list(yaml.safe_load_all(text))
    for one in found:
        if one["kind"] == "LeaderWorkerSet":
            template = one["spec"]["leaderWorkerTemplate"]
            assert set(one["spec"]) == {"replicas", "leaderWorkerTemplate"}
            assert set(template) == {"size", "restartPolicy", "leaderTemplate", "workerTemplate"}
            for part in ("leaderTemplate", "workerTemplate"):
                pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template[part]}
                kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        else:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
    return found


@given(st.lists(WORDS, max_size=4), st.dictionaries(st.just("A_B"), WORDS), WORDS)
def test_systemd_reads_the_command(extra: list[str], env: dict[str, str], model: str) -> None:
    text = generate.NATIVE["systemd"](replace(NATIVE, command=(*NATIVE.command, *extra), env=env, model=model)).text
    read = unit(text)
    assert words(read["Service"]["ExecStart"][0]) == [*NATIVE.command, *extra]
    given_env = [words(line, expands=False) for line in read["Service"].get("Environment", [])]
    assert given_env == [[f"{k}={v}"] for k, v in env.items()]
    assert len(read["Unit"]["Description"]) == 1
    configparser.ConfigParser(strict=True, interpolation=None, delimiters=["="]).read_string(text)


@given(st.lists(WORDS, max_size=4), st.dictionaries(WORDS, WORDS, max_size=2))
def test_launchd_reads_the_command(extra: list[str], env: dict[str, str]) -> None:
    made = generate.NATIVE["launchd"](replace(NATIVE, command=(*NATIVE.command, *extra), env=env))
    read = plistlib.loads(made.text.encode())
    assert read["ProgramArguments"] == [*NATIVE.command, *extra]
    assert read["EnvironmentVariables"] == env
    assert read["KeepAlive"] == {"SuccessfulExit": False}
    assert made.file == f"{read['Label']}.plist"


@given(st.lists(WORDS, max_size=4), PATHS, WORDS)
def test_quadlet_reads_the_options(extra: list[str], path: str, model: str) -> None:
    mount = replace(MOUNT, host=Path(path), inside=f"/models{path}")
    service = replace(LLAMA, args=(*LLAMA.args, *extra), mounts=(mount,), model=model)
    if ":" in path:
        with pytest.raises(BadUsage, match="':'"):
            generate.CONTAINER["quadlet"](service)
        return
    read = unit(generate.CONTAINER["quadlet"](service).text)["Container"]
    assert words(read["Exec"][0]) == [*service.args]
    assert words(read["Volume"][0]) == [f"{path}:/models{path}:ro"]
    assert read["Secret"] == ["m-key,type=env,target=LLAMA_API_KEY"]
    assert read["PublishPort"] == ["127.0.0.1:8080:8080"]
    assert words(read["HealthCmd"][0])[0].endswith("http://127.0.0.1:8080/health")


@given(st.lists(WORDS, max_size=4), PATHS, st.sampled_from([LLAMA, VLLM]))
@settings(max_examples=50)
def test_compose_reads_the_options(extra: list[str], path: str, like: Container) -> None:
    service = replace(like, args=(*like.args, *extra), mounts=(replace(MOUNT, host=Path(path)),))
    read = compose(generate.CONTAINER["compose"](service).text)
    server = read["services"]["server"]
    assert server["volumes"][0]["source"] == path
    assert server["volumes"][0]["read_only"] is True
    assert server["ports"] == ["127.0.0.1:8080:8080"]
    assert read["secrets"] == {"api-key": {"file": "/home/you/m.key"}}
    if like is LLAMA:
        assert server["command"] == [*service.args, "--api-key-file", "/run/secrets/api-key"]
    else:
        assert server["command"] == ["vllm", "serve", *service.args]
        assert server["environment"] == like.env
        (device,) = server["deploy"]["resources"]["reservations"]["devices"]
        assert device["count"] == 2


@given(st.lists(WORDS, max_size=4), st.sampled_from([LLAMA, VLLM, replace(VLLM, nodes=3)]))
@settings(max_examples=30, deadline=None)
def test_kubernetes_reads_the_options(extra: list[str], like: Container) -> None:
    service = replace(like, args=(*like.args, *extra))
    claim, workload, front = manifests(generate.CONTAINER["kube"](service).text)
    assert claim["kind"] == "PersistentVolumeClaim"
    if like.nodes == 1:
        pod = workload["spec"]["template"]
        (server,) = pod["spec"]["containers"]
        assert [word.replace("$$", "$") for word in server["args"]] == [*service.args]
        assert workload["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"] == front["spec"]["selector"]
    else:
        group = workload["spec"]["leaderWorkerTemplate"]
        assert group["size"] == 3
        pod = group["leaderTemplate"]
        (server,) = pod["spec"]["containers"]
        before, _, serve = server["command"][2].partition(" && exec ")
        assert shlex.split(serve.replace("$$", "$")) == ["vllm", "serve", *service.args]
        assert before.endswith("leader --ray_cluster_size=$(LWS_GROUP_SIZE)")
        (worker,) = group["workerTemplate"]["spec"]["containers"]
        assert worker["command"][2].endswith("worker --ray_address=$(LWS_LEADER_ADDRESS)")
        assert "ports" not in worker
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        assert front["spec"]["selector"] == {"leaderworkerset.sigs.k8s.io/name": "m", "role": "leader"}
    key = server["env"][0]
    assert key["valueFrom"] == {"secretKeyRef": {"name": "m-key", "key": "key"}}
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(server)
    assert server["resources"].get("limits", {}) == ({"nvidia.com/gpu": "2"} if like.gpus else {})


@pytest.mark.parametrize("bad", ["a\nb", "a\x00", "a\x85b", "\ud800", "a\u2028b"])
def test_what_cannot_be_written_down_is_refused(bad: str) -> None:
    for make in generate.NATIVE.values():
        with pytest.raises(BadUsage, match=r"U\+"):
            make(replace(NATIVE, command=("/bin/x", bad)))
    for kind in generate.CONTAINER.values():
        with pytest.raises(BadUsage, match=r"U\+"):
            kind(replace(LLAMA, args=(bad,)))


@given(st.text(max_size=80))
def test_names_are_names_everywhere(text: str) -> None:
    import re

    name = generate.identifier(text)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name)
    assert generate.identifier(name) == name


def test_the_image_is_named_and_never_invented() -> None:
    assert generate.image("llama-cpp", None, 1).name == "ghcr.io/ggml-org/llama.cpp:server-cuda"
    assert generate.image("llama-cpp", "mine@sha256:00", 1).name == "mine@sha256:00"
    with pytest.raises(BadUsage, match="wants a GPU"):
        generate.image("vllm", None, 0)
    with pytest.raises(BadUsage, match="no container is made for ollama"):
        generate.image("ollama", None, 0)
    for make in generate.CONTAINER.values():
        made = make(LLAMA)
        assert any("pin the image" in note for note in made.notes)
        assert "sha256:0" not in made.text.replace("NAME:TAG@sha256:", "")
    with pytest.raises(BadUsage, match="vLLM only"):
        generate.CONTAINER["kube"](replace(LLAMA, nodes=2))


def test_a_plan_becomes_the_images_options() -> None:
    argv = ("/env/bin/python", "-m", "server", "--model", "/m", "--host", "h", "--middleware", "ours.Guard", "--x")
    assert arguments("vllm", argv) == ("/m", "--host", "h", "--x")
    assert arguments("llama-cpp", ("llama", "serve", "--model", "/m")) == ("--model", "/m")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here (Debian: systemd)")
@pytest.mark.parametrize("word", ["plain", 'a "b" 100% $HOME \\ ;', "日本語 モデル", ";", "%n", "'", "\\x41"])
def test_systemd_itself_finds_no_fault(word: str, tmp_path: Path) -> None:
    program = tmp_path / "a folder" / "miyabi-llm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    service = replace(NATIVE, command=(str(program), "serve", word), env={"X": word}, model=word)
    made = generate.NATIVE["systemd"](service)
    path = tmp_path / made.file
    path.write_text(made.text)
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", "--man=no", "--recursive-errors=no", str(path)],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
        timeout=60,
    )
    ours = [line for line in done.stderr.splitlines() if made.file in line]
    assert not ours
    assert done.returncode == 0, done.stderr


def test_the_check_in_the_pod_waits_then_judges(tmp_path: Path) -> None:
    import hashlib

    folder = tmp_path / "models"
    (folder / "sub dir").mkdir(parents=True)
    data = b"GGUF" * 10
    mounts = (
        Mount(Path("/x"), "/models/a b.gguf", hashlib.sha256(data).hexdigest(), len(data)),
        Mount(Path("/y"), "/models/sub dir/$c'.gguf", hashlib.sha256(b"").hexdigest(), 0),
    )
    script = verify_script(mounts, str(folder))

    def run(limit: float = 20) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=limit)

    with pytest.raises(subprocess.TimeoutExpired) as waiting:
        run(0.5)
    assert b"waiting for a b.gguf" in (waiting.value.stdout or b"")
    (folder / "sub dir/$c'.gguf").write_bytes(b"")
    (folder / "a b.gguf").write_bytes(b"x" * len(data))
    wrong = run()
    assert wrong.returncode == 1
    assert "a b.gguf: sha256 is" in wrong.stdout
    (folder / "a b.gguf").write_bytes(data)
    assert run().stdout == "verified\n"
    assert run().stdout == ""  # known by its mark
