# Two commands for a fresh clone: `make demo` and `make test`. Both set up .venv by themselves.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check lint format types ranks pytest slow docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## Set up, fetch a small real model, convert it to EXL2, generate text from it
	$(PY) -m polybit demo $(ARGS)

test: check pytest ## Set up, then run all checks and tests

check: lint types ranks ## Formatting, lint, types and layer ranks, without the tests

lint: $(VENV)/.dev
	$(PY) -m ruff format --check
	$(PY) -m ruff check

types: $(VENV)/.dev
	$(PY) -m mypy

ranks: $(VENV)/.dev
	$(VENV)/bin/lint-imports

pytest: export OMP_NUM_THREADS ?= 1
pytest: $(VENV)/.dev ## Run the tests alone (ARGS="-k name" passes on to pytest)
	$(PY) -m pytest -n $(JOBS) $(ARGS)

slow: $(VENV)/.dev ## Run the tests with a real model (a download of 93 MB, and minutes)
	$(PY) -m pytest -m slow tests/e2e

format: $(VENV)/.dev ## Format the code and mend what lint can mend
	$(PY) -m ruff format
	$(PY) -m ruff check --fix

docs: $(VENV)/.dev ## Rewrite the generated parts of the documentation
	set -e; for script in docs/write_*.py; do $(PY) $$script; done

clean: ## Remove the environment and every cache of the checks
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/.demo: EXTRAS := cpu,gguf
$(VENV)/.dev: EXTRAS := dev
$(VENV)/.demo $(VENV)/.dev: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), polybit needs Python 3.10 or newer:" \
	         "name one with make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
	    echo "error: $(PYTHON) -m venv failed: install Python's venv package" \
	         "(Debian, Ubuntu: apt install python3-venv), or name another Python with make PYTHON=..." >&2; exit 2; }
	$(PIP) install --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@
