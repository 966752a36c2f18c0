"""What LocalAI may answer: read, passed over or refused, and asked of servers near by only."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.backends.localai import LocalAI, configuration
from miyabi_llm.backends.localai_api import read_names, read_status
from miyabi_llm.errors import NetworkError, ServerFailed, Unsafe
from miyabi_llm.types import Endpoint
from tests.serve.conftest import free_port

from .programs import JSON
from .test_llama_cpp import spec as gguf

FIELDS = ("data", "loaded_models", "id", "memory", "breakdown", "gopsutil-RSS", "total", "state")
SHAPED = st.recursive(
    JSON, lambda i: st.dictionaries(st.sampled_from(FIELDS), i) | st.lists(i, max_size=3), max_leaves=9
)


@given(SHAPED)
def test_whatever_it_answers_is_read_or_passed_over(answer: Any) -> None:
    for field in ("data", "loaded_models"):
        assert all(isinstance(name, str) for name in read_names(answer, field))
    state = read_status("m", answer)
    assert state.memory is None or state.memory > 0


def test_what_its_engine_says_about_memory() -> None:
    ready = {"state": 2, "memory": {"total": 9, "breakdown": {"weights": 9}}}
    assert (read_status("m", ready).state, read_status("m", ready).memory) == ("loaded", 9)
    sampled = {"state": -1, "memory": {"total": 900, "breakdown": {"gopsutil-RSS": 7}}}
    assert (read_status("m", sampled).state, read_status("m", sampled).memory) == ("loaded", 7)
    assert read_status("m", {"state": -1}).state == "failed"


@pytest.mark.parametrize("url", ["http://8.8.8.8:80", "http://[2001:4860:4860::8888]", "ftp://127.0.0.1", "http://"])
def test_commands_go_to_near_servers_only(url: str) -> None:
    with pytest.raises(Unsafe):
        LocalAI().control(Endpoint(url, "m"))


def test_a_redirect_is_not_followed() -> None:
    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("location", "http://127.0.0.1:1/v1/models")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        with (
            LocalAI().control(Endpoint(f"http://127.0.0.1:{server.server_port}", "m")) as control,
            pytest.raises(ServerFailed, match="302"),
        ):
            control.models()
        server.shutdown()


def test_nobody_there() -> None:
    with (
        LocalAI().control(Endpoint(f"http://127.0.0.1:{free_port()}", "m")) as control,
        pytest.raises(NetworkError),
    ):
        control.models()


def test_the_configuration_is_pure_and_names_no_path() -> None:
    body = configuration(replace(gguf(), work=Path("/w")), 512)
    assert "/" not in json.dumps(body)
