"""The command line: errors become one line, a hint and an exit code; a bug keeps its traceback."""

from __future__ import annotations

import os
import sys

from miyabi_llm.errors import MiyabiError


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run one command; returns its exit code."""
    from miyabi_llm.cli.app import app

    as_json = "--json" in argv
    try:
        result = app(argv, standalone_mode=True, prog_name="miyabi-llm")
        return int(result or 0)
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except MiyabiError as e:
        return _explain(e, as_json=as_json)
    except KeyboardInterrupt:
        print("\nmiyabi-llm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader went away (`| head`): nothing more to say, and nothing must be said at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _explain(e: MiyabiError, *, as_json: bool) -> int:
    if as_json:
        import json

        print(json.dumps(e.as_dict(), ensure_ascii=False, default=str))
    print(f"miyabi-llm: {e.message}", file=sys.stderr)
    if e.hint:
        print(f"  {e.hint}", file=sys.stderr)
    return e.exit_code
