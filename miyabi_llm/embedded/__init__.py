"""The embedded server: llama-cpp-python behind HTTP, run as a child by an interpreter that has it; see `child.py`."""
