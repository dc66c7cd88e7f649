# make run    the relay with the demo upstream, from a fresh clone
# make test   everything that must hold, from a fresh clone
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check install --only-binary :all:
PYTEST := $(BIN)/python -m pytest

.PHONY: setup run test check fmt bench soak clients lock clean
.DEFAULT_GOAL := run

setup: $(VENV)/.test

run: $(VENV)/.run
	$(BIN)/headrace serve --demo

test: $(VENV)/.test check
	$(PYTEST) -n 2 --dist loadscope --no-loadscope-reorder

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg

fmt: $(VENV)/.test
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

bench: $(VENV)/.run
	$(BIN)/headrace bench

clients: $(VENV)/.test
	HEADRACE_CLIENTS=all $(PYTEST) tests/clients

# What takes minutes of load: kills and outages, many times.
soak: $(VENV)/.test
	HEADRACE_SOAK=1 $(PYTEST) tests/system tests/store/test_books.py tests/store/test_task_books.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv is missing: apt-get install -y python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps: set-up happens once, and again when what it depends on changes.
$(VENV)/.run: setup.cfg pyproject.toml requirements/run.txt | $(BIN)/python
	$(PIP) --require-hashes -r requirements/run.txt
	$(PIP) --no-deps -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run requirements/test.txt
	$(PIP) --require-hashes -r requirements/test.txt
	@touch $@

# Pins every dependency, for every Python that we support, with the hashes of all its wheels.
lock: $(BIN)/python
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --upgrade --no-header setup.cfg -o requirements/run.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --extra test \
	  -c requirements/run.txt setup.cfg -o requirements/test.txt

clean:
	rm -rf $(VENV) .venv-clients build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
