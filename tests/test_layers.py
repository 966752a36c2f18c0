"""The four ranks: an import points down, never up, and every module has its place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "miyabi_llm"

# The longest matching prefix decides. A module that matches nothing fails the test: give it a rank.
RANKS: dict[str, int] = {
    "miyabi_llm": 0,  # only __version__
    "miyabi_llm.errors": 0,
    "miyabi_llm.refs": 0,
    "miyabi_llm.types": 0,
    "miyabi_llm.ggml": 0,
    "miyabi_llm.gguf": 0,
    "miyabi_llm.memory": 0,
    "miyabi_llm.shards": 0,
    "miyabi_llm.safetensors": 0,
    "miyabi_llm.paged": 0,
    "miyabi_llm.detect": 0,
    "miyabi_llm.config": 1,
    "miyabi_llm.documents": 1,
    "miyabi_llm.catalog": 1,
    "miyabi_llm.proc": 1,
    "miyabi_llm.plots": 1,
    "miyabi_llm.client": 1,
    "miyabi_llm.store": 1,
    "miyabi_llm.hardware": 1,
    "miyabi_llm.calibration": 1,
    "miyabi_llm.sources": 1,
    "miyabi_llm.backends": 1,
    "miyabi_llm.tools": 1,
    "miyabi_llm.embedded": 1,
    "miyabi_llm.dataset": 1,
    "miyabi_llm.engines": 1,
    "miyabi_llm.data": 1,
    "miyabi_llm.pull": 2,
    "miyabi_llm.outdated": 2,
    "miyabi_llm.serve": 2,
    "miyabi_llm.chat": 2,
    "miyabi_llm.batch": 2,
    "miyabi_llm.fit": 2,
    "miyabi_llm.doctor": 2,
    "miyabi_llm.bundle": 2,
    "miyabi_llm.describe": 2,
    "miyabi_llm.quantize": 2,
    "miyabi_llm.convert": 2,
    "miyabi_llm.bench": 2,
    "miyabi_llm.connect": 2,
    "miyabi_llm.generate": 2,
    "miyabi_llm.finetune": 2,
    "miyabi_llm.route": 2,
    "miyabi_llm.cli": 3,
    "miyabi_llm.gateway": 3,
    "miyabi_llm.mcp": 3,
    "miyabi_llm.__main__": 3,
}
# A verb never imports another verb.
ALLOWED_VERB_TO_VERB: set[tuple[str, str]] = {("miyabi_llm.finetune", "miyabi_llm.quantize")}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["miyabi_llm", *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def place(module: str) -> str:
    """The entry of RANKS that `module` falls under."""
    prefix = module
    while prefix not in RANKS or (prefix == "miyabi_llm" and module != "miyabi_llm"):
        prefix, dot, _ = prefix.rpartition(".")
        if not dot:
            pytest.fail(f"{module} has no rank: add it to RANKS in {__file__}")
    return prefix


def imports(module: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Every module of ours that `path` imports, function-level imports included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "miyabi_llm")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            base = node.module or ""
            if base.split(".")[0] == "miyabi_llm":
                for alias in node.names:
                    yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base


def edges() -> set[tuple[str, str]]:
    known = modules()
    return {(m, target) for m, path in known.items() for target in imports(m, path, known) if target != m}


def test_every_module_has_a_rank() -> None:
    for module in modules():
        place(module)


def test_imports_point_down() -> None:
    wrong = [(a, b) for a, b in edges() if RANKS[place(a)] < RANKS[place(b)]]
    assert not wrong, f"imports that point up: {wrong}"


def test_no_verb_imports_another() -> None:
    wrong = {
        (place(a), place(b)) for a, b in edges() if RANKS[place(a)] == RANKS[place(b)] == 2 and place(a) != place(b)
    }
    assert wrong <= ALLOWED_VERB_TO_VERB


def test_no_circles() -> None:
    graph: dict[str, set[str]] = {}
    for a, b in edges():
        graph.setdefault(a, set()).add(b)
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, f"import circle: {' -> '.join((*trail[trail.index(node) :], node))}"
        if node not in done:
            for target in sorted(graph.get(node, ())):
                visit(target, (*trail, node))
            done.add(node)

    for start in sorted(graph):
        visit(start, ())


def test_lower_ranks_neither_print_nor_exit_nor_read_the_environment() -> None:
    """Rank 0-2 modules: no print(), no sys.exit(); os.environ only where settings are loaded."""
    wrong = []
    for module, path in modules().items():
        if RANKS[place(module)] == 3 or path.name in ALLOWED_SCRIPTS or module.startswith(TRAINING_CHILD):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                wrong.append((module, node.lineno, "print"))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                if name == "sys.exit" or (name in ("os.environ", "os.getenv") and module != "miyabi_llm.config"):
                    wrong.append((module, node.lineno, name))
    assert not wrong


# Scripts that run as children of their own, not as modules of the house.
ALLOWED_SCRIPTS = {"shim.py", "mock.py", "child.py", "vllm_guard.py"}
TRAINING_CHILD = "miyabi_llm.engines.child."  # runs in another environment; accelerate tells it its rank by variables


def test_rank_zero_is_standard_library_only() -> None:
    import sys

    for module, path in modules().items():
        if RANKS[place(module)] == 0:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    assert name.split(".")[0] in {"miyabi_llm", "__future__"} | sys.stdlib_module_names, (module, name)
