"""Stands where the environment's Python would: writes a folder like the real child, or fails as it is told.

Run as `fakehf.py MODE -I CHILD ORDER`. Modes: ok; wrong (says the tokenizer is not the file's); short (loses a
parameter); f32; die; hang; code (leaves a Python file).
"""

import json
import struct
import sys
import time
from pathlib import Path
from typing import Any


def say(kind: str, name: str, message: str = "", **data: Any) -> None:
    """One event, after noise that ends without a newline."""
    sys.stderr.write("noise: 50%|")
    sys.stderr.flush()
    print("\n" + json.dumps({"kind": kind, "name": name, "message": message, "data": data}), flush=True)


def main(mode: str, order: dict[str, Any]) -> int:
    """What the mode says."""
    say("phase", "tokenizer", "x")
    if mode == "wrong":
        say("failed", "tokenizer", "token 7 is 'a', in the file 'b'")
        return 1
    if mode == "die":
        print("OSError: [Errno 28] No space left on device", file=sys.stderr)
        return 1
    target = Path(order["target"])
    target.mkdir()
    if mode == "hang":
        (target / "model.safetensors").write_bytes(b"half")
        time.sleep(600)
    count, kind = order["parameters"] - (mode == "short"), "F32" if mode == "f32" else "BF16"
    size = count * (4 if mode == "f32" else 2)
    head = json.dumps({"w": {"dtype": kind, "shape": [count], "data_offsets": [0, size]}}).encode()
    (target / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(size))
    (target / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}')
    if mode == "code":
        (target / "modeling.py").write_text("")
    say("done", "copy", versions={"torch": "1"}, greedy={"a": "b"}, probes={"a": [1, 2]})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], json.loads(Path(sys.argv[-1]).read_text())))
