"""The watchdog and the real server: work in progress is not a wedge, and an idle server is left alone."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import httpx

from miyabi_llm import serve
from miyabi_llm.config import Settings
from miyabi_llm.proc import logs
from miyabi_llm.serve.probe import Probe
from miyabi_llm.types import LaunchPlan

TOKENS = 80
LIMITS = replace(serve.Limits(), probe_every_s=0.2, stall_s=1.0)


def test_a_long_answer_is_progress(real_plan: LaunchPlan, settings: Settings) -> None:
    with serve.running(real_plan, settings, limits=LIMITS):
        assert real_plan.endpoint.key is not None
        header = {"authorization": f"Bearer {real_plan.endpoint.key.reveal()}"}
        body = {"prompt": "Once upon a time", "max_tokens": TOKENS, "ignore_eos": True}
        seen: set[str] = set()
        done = threading.Event()

        def look() -> None:
            with Probe(real_plan) as probe:
                while not done.wait(0.1):
                    seen.add(probe.slots(2.0)[0])

        watcher = threading.Thread(target=look)
        watcher.start()
        url = f"{real_plan.endpoint.base_url}/v1/completions"
        answer = httpx.post(url, json=body, headers=header, timeout=60, trust_env=False)
        done.set()
        watcher.join()
        assert answer.json()["usage"]["completion_tokens"] == TOKENS
        assert "busy" in seen
        (info,) = serve.ps(settings)
        assert info.restarts == 0


def test_an_idle_server_is_asked_once(real_plan: LaunchPlan, settings: Settings) -> None:
    with serve.running(real_plan, settings, limits=LIMITS):
        (info,) = serve.ps(settings)
        time.sleep(1.5)
        asked = _tokens(info)
        time.sleep(1.5)
        assert _tokens(info) == asked, "no further probe while nobody uses it"


def _tokens(info: serve.ServerInfo) -> int:
    return sum("stop processing" in line for line in logs.last_lines(info.log, 1000))
