"""The load engine: sends on time, stamps before it parses, and says when it was itself the bottleneck."""

from miyabi_llm.bench.engine.run import Engine

__all__ = ["Engine"]
