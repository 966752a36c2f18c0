"""The gateway's policy behind the tools: it picks the local target, and explains where a prompt would go."""

from __future__ import annotations

from pathlib import Path

import pytest
from mcp import Client

from miyabi_llm import config
from tests import clauded, openaid
from tests.gateway.house import policy
from tests.mcp.clients import call, refused, session

PRIVATE = "山田太郎様のマイナンバーは123456789018です"
BULK = '[[rules]]\nname = "bulk"\nuse = "small"\n[rules.when]\nhint = ["bulk"]\n'


@pytest.fixture
def written() -> Path:
    path = config.load().config / "policy.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_the_policy_picks_among_local_targets_only(written: Path) -> None:
    with clauded.serving() as claude, openaid.serving() as first, openaid.serving() as second:
        targets = [
            f"claude claude {claude.url}",
            'gone local http://127.0.0.1:1 model = "normal"',
            f'large local {first.url} model = "normal"',
            f'small local {second.url} model = "normal"',
        ]
        written.write_text(policy(*targets, mode="claude", more=BULK))

        async def work(client: Client) -> None:
            said = await call(client, "local_generate", prompt="A question that might leave")
            assert (said["text"], said["finish_reason"]) == ("".join(openaid.WORDS), "stop")
            assert (said["prompt_tokens"], said["output_tokens"], said["model"]) == (7, 5, "normal")
            await call(client, "local_generate", prompt="Many of these", task="bulk")
            route = await call(client, "route_explain", prompt="A question that may leave")
            assert (route["target"], route["leaves"], route["verdict"]) == ("claude", True, "public")
            route = await call(client, "route_explain", prompt=PRIVATE)
            assert (route["target"], route["leaves"], route["verdict"]) == ("gone", False, "confidential")
            assert {f["kind"] for f in route["found"]} >= {"my-number"}
            assert "123456789018" not in str(route)
            assert any("claude" in change for change in route["changes"])

        session(work, {"PATH": "/usr/bin:/bin"})
        assert (len(first.asked), len(second.asked)) == (1, 1)
        assert (claude.asked, claude.connections) == ([], 0)


def test_a_target_of_another_machine_is_passed_over(written: Path) -> None:
    written.write_text(policy('far local http://192.0.2.1:8080 hosts = ["192.0.2.0/24"]', mode="local"))

    async def work(client: Client) -> None:
        words = await refused(client, "local_generate", prompt="Hello")
        assert "miyabi-llm pull" in words  # the road without a policy: the default model

    session(work, {"PATH": "/usr/bin:/bin"})


def test_without_a_policy_nothing_leaves() -> None:
    async def work(client: Client) -> None:
        route = await call(client, "route_explain", prompt="A question")
        assert (route["target"], route["leaves"], route["verdict"]) == ("", False, "confidential")

    session(work, {"PATH": "/usr/bin:/bin"})
