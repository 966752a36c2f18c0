"""What an answer is worth, by a copy of its bytes: whole events, begun, ended, or broken. Pure."""

from miyabi_llm.gateway.streams.values import Broken, Fed, Usage, Watch
from miyabi_llm.gateway.streams.watch import watch
from miyabi_llm.gateway.streams.whole import judge_whole

__all__ = ["Broken", "Fed", "Usage", "Watch", "judge_whole", "watch"]
