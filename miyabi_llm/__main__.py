"""`python -m miyabi_llm` is `miyabi-llm`."""

from miyabi_llm.cli import main

if __name__ == "__main__":
    main()
