# The commands of this project. Each makes .venv first where there is none.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
export RAY_USAGE_STATS_ENABLED = 0
export PYTHONPATH = .

.PHONY: help setup packages demo test serve lint soak bench clean

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

setup: $(VENV)/.installed  ## make .venv and install

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

packages:
	.ci/packages

demo: setup  ## condense the built-in digits, evaluate, show the accuracies side by side
	$(BIN)/python -m server.cli.demo

test: setup packages  ## the whole test suite
	$(BIN)/python -m pytest -m 'not soak'

soak: setup packages  ## the long tests
	$(BIN)/python -m pytest -m soak --timeout 3600

serve: setup  ## the API on port 8000, with a Ray of its own
	$(BIN)/cafe serve --port 8000

bench: setup  ## the benchmarks: a line a figure, all of them in bench-output.json
	$(BIN)/python -m tests.benchmarks

lint: setup  ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## remove what the other commands made
	rm -rf $(VENV) demo-output bench-output.json .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
