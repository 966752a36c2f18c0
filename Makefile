# Two commands on a fresh machine: `make quickstart`, then `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: quickstart test check docs bench clean help
.DEFAULT_GOAL := help

help: ## show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "miyabi-llm needs Python 3.11 or newer: make quickstart PYTHON=/path/to/python3.11"; exit 3; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "this Python lacks venv: sudo apt-get install python3-venv"; exit 3; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	$(PIP) install --quiet --editable '.[test]'
	@touch $@

$(VENV)/.check: $(VENV)/.test
	$(PIP) install --quiet --editable '.[test,check]'
	@touch $@

quickstart: $(VENV)/.base ## from a fresh clone to a reviewed diff by a local model
	@$(BIN)/miyabi-llm quickstart

test: $(VENV)/.test ## the tests that CI runs
	@$(BIN)/miyabi-llm backend install llama-cpp --tools
	@$(BIN)/miyabi-llm backend install embedded
	@$(BIN)/miyabi-llm finetune install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.check ## types, lint and format
	$(BIN)/mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/.base ## build the documentation into site/
	$(PIP) install --quiet --editable '.[docs]'
	$(BIN)/python docs/generate.py
	$(BIN)/python -m mkdocs build --strict

bench: $(VENV)/.test ## the benchmarks: they print ratios
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/pull.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/fit.py
	$(BIN)/python benchmarks/batch.py
	$(BIN)/python benchmarks/bench.py

clean: ## remove what make made here; models and builds in the user's directories stay
	rm -rf $(VENV) site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
