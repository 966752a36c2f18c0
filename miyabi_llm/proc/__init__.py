"""Child processes: started under a guard, watched, told apart from strangers, and never left behind."""

from miyabi_llm.proc.identity import Identity, identify
from miyabi_llm.proc.launch import Child, Exit, launch

__all__ = ["Child", "Exit", "Identity", "identify", "launch"]
