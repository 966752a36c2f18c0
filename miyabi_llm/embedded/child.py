"""The embedded server's program: a model behind HTTP, for the interpreter that has llama-cpp-python.

Run as a script, `python -I child.py --model FILE --alias NAME --port N`. The key comes in the variable
MIYABI_EMBEDDED_KEY, which is taken out of the environment at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import types
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Load and serve until SIGTERM; the exit code."""
    if list(argv) == ["--check"]:
        return check()
    asked = arguments(argv)
    if asked.own_library:
        os.environ.pop("LLAMA_CPP_LIB_PATH", None)  # the user's, for another llama-cpp-python
    key = os.environ.pop("MIYABI_EMBEDDED_KEY", "")
    import uvicorn

    from miyabi_llm.embedded import web
    from miyabi_llm.embedded.line import Line

    state = web.State(asked.alias, key, "", Line(asked.queue))
    config = uvicorn.Config(
        web.app(state),
        host=asked.host,
        port=asked.port,
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
    )
    server = uvicorn.Server(config)
    failed: list[str] = []

    def load() -> None:
        try:
            _load(asked, state)
        except Exception as e:  # the library's; its own words are in the log before this line
            failed.append(f"{asked.model}: cannot be loaded: {type(e).__name__}: {e}")
            server.should_exit = True

    threading.Thread(target=load, daemon=True).start()
    try:
        server.run()
    except SystemExit as e:  # the port is taken: it has said so
        os._exit(e.code if isinstance(e.code, int) else 1)
    for line in failed:
        print(line, file=sys.stderr, flush=True)
    # a load or a generation in progress would be waited for by an orderly end of the interpreter
    sys.stderr.flush()
    os._exit(1 if failed else 0)


def _load(asked: argparse.Namespace, state: object) -> None:
    import llama_cpp

    from miyabi_llm.embedded.engine import Engine, Options
    from miyabi_llm.embedded.web import State

    assert isinstance(state, State)
    state.version = llama_cpp.__version__
    options = Options(asked.model, asked.ctx_size, asked.threads, asked.cache_type, asked.gpu_layers)
    state.engine = Engine(options)
    print(f"ready: {asked.alias}, context {state.engine.ctx}", file=sys.stderr, flush=True)


def check() -> int:
    """Whether everything that serving needs can be loaded, without a model; the exit code."""
    os.environ.pop("LLAMA_CPP_LIB_PATH", None)
    import llama_cpp

    from miyabi_llm.embedded import engine, web

    engine.load_compute(Path(llama_cpp.__file__).parent / "lib")
    llama_cpp.llama_backend_init()
    print(llama_cpp.__version__, web.__name__, llama_cpp.llama_print_system_info().decode("utf-8", "replace"))
    return 0 if engine.devices() else 1


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="embedded", allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file")
    parser.add_argument("--alias", required=True, help="the model's name for clients")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ctx-size", type=int, default=8192, help="tokens; 0 is what the model was trained with")
    parser.add_argument("--threads", type=int, help="default: one a physical core")
    parser.add_argument("--cache-type", help="type of the KV cache: f16, q8_0 ...")
    parser.add_argument("--gpu-layers", type=int, default=0, help="layers to put on the GPU; -1 is all")
    parser.add_argument("--queue", type=int, default=16, help="requests that may wait while one is answered")
    parser.add_argument("--own-library", action="store_true", help="take no notice of LLAMA_CPP_LIB_PATH")
    return parser.parse_args(argv)


def _own_package() -> None:
    """Make our own package known, and nothing else of the environment it lies in: that one's libraries are not ours."""
    package = types.ModuleType("miyabi_llm")
    package.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["miyabi_llm"] = package


if __name__ == "__main__":
    _own_package()
    raise SystemExit(main(sys.argv[1:]))
