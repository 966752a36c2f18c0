"""From a name to a verified model in the store: `resolve` says what would come, `pull` brings it."""

from miyabi_llm.pull.bring import Options, pull
from miyabi_llm.pull.wanted import Candidate, Resolution, resolve

__all__ = ["Candidate", "Options", "Resolution", "pull", "resolve"]
