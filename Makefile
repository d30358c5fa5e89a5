# Everything here works on a machine that has only Python (3.10 or newer) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
.DEFAULT_GOAL := help

.PHONY: help setup demo test lint proto conformance bench clean
help: ## Lists what can be made.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# Set up anew only when what is to be installed changed.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

setup: $(READY) ## Sets up .venv with everything that development needs.

demo: $(READY) ## Trains a network on real handwritten digits in another process.
	$(BIN)/python examples/digits/demo.py

test: $(READY) ## Runs every test.
	$(BIN)/python -m pytest

lint: $(READY) ## Checks style, types, imports, the contract, and that generated code is up to date.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/python scripts/generate.py --check

proto: $(READY) ## Generates the Python code of the contract.
	$(BIN)/python scripts/generate.py

conformance: $(READY) ## Runs PyTorch's own RPC tests against tensorcall.rpc; writes docs/conformance.md.
	$(BIN)/python -m tests.conformance --write-table

bench: $(READY) ## Measures against bare grpcio and torch.distributed.rpc; prints a table and writes build/bench.json.
	$(BIN)/python -m bench

clean: ## Removes what was built, the virtual environment too.
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
