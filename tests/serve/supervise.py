"""A supervisor in a process of its own, for the tests to kill.

Arguments: HOME, the plan as JSON, and `forever`, `running` or `detach`.
Writes one line to stdout when the server is ready.
"""

import json
import os
import sys
import time
from pathlib import Path

from miyabi_llm import serve
from miyabi_llm.config import Settings
from miyabi_llm.types import Endpoint, Event, LaunchPlan, Secret


def main() -> None:
    """Start what the command line says."""
    home, order, how = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    key = Secret(order["key"])
    endpoint = Endpoint(f"http://127.0.0.1:{order['port']}", order["alias"], key=key)
    plan = LaunchPlan("fake", tuple(order["argv"]), {"LLAMA_API_KEY": key}, endpoint)
    settings = Settings(home / "data", home / "cache", home / "config", home, env=dict(os.environ))
    limits = serve.Limits(backoff_s=0.05, grace_s=order.get("grace", 1.0))
    if how == "forever":
        serve.forever(plan, settings, ready, limits=limits)
    elif how == "detach":
        print(serve.detach(plan, settings, limits=limits).supervisor, flush=True)
    else:
        with serve.running(plan, settings, limits=limits):
            print("ready", flush=True)
            time.sleep(3600)


def ready(event: Event) -> None:
    """Say when it is up."""
    if event.kind == "done":
        print("ready", flush=True)


if __name__ == "__main__":
    main()
