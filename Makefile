# The commands of this project. Each creates .venv first if it is missing.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
export RAY_USAGE_STATS_ENABLED = 0
export PYTHONPATH = .
# Processes that tests start reuse compiled modules, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

# Run tests in three processes; tests/conftest.py groups the tests. An empty IN_LANES runs one test after another.
IN_LANES := --numprocesses 3 --dist loadgroup --no-loadscope-reorder

.PHONY: help setup packages demo test coverage serve lint soak bench clean

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

setup: $(VENV)/.installed  ## create .venv and install the package with its development tools

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

packages:
	.ci/packages

demo: setup  ## condense the built-in digits, evaluate, show the accuracies side by side
	$(BIN)/python -m server.cli.demo

test: setup packages  ## run the test suite
	$(BIN)/python -m pytest -m 'not soak' $(IN_LANES)

coverage: export COVERAGE_PROCESS_START := $(CURDIR)/pyproject.toml
coverage: export COVERAGE_DIR := $(CURDIR)/.coverage-data
coverage: setup packages  ## run the test suite and report line and branch coverage, subprocesses included
	rm -rf $(COVERAGE_DIR) && mkdir $(COVERAGE_DIR)
	$(BIN)/python -m pytest -m 'not soak' $(IN_LANES) $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

soak: setup packages  ## run the long tests: full kill matrix, load, fuzzing
	$(BIN)/python -m pytest -m soak --timeout 3600

serve: setup  ## run the API on port 8000 with an embedded Ray
	$(BIN)/cafe serve --port 8000

bench: setup  ## run the benchmarks: one line per figure, all of them in bench-output.json
	$(BIN)/python -m tests.benchmarks

lint: setup  ## check format, style, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## remove what the other commands created
	rm -rf $(VENV) demo-output bench-output.json .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage-data *.egg-info
