# Thin: every target is one script or one tool in .venv.

# The Python that made the environment, else the first that can; name another by `make setup PYTHON=...`.
CANDIDATES := .venv/bin/python python3.11 python3.12 python3.13 python3
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup test test-all demo lint

help: ## show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 14

setup: ## make .venv with every pinned package, Horovod included (again: only what changed)
	@test -n "$(PYTHON)" || { echo 'no Python 3.11 or newer with venv on PATH: install one' \
		'(Debian and Ubuntu: apt-get install python3 python3-venv), or name it: make $@ PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) scripts/setup.py

test: setup ## run all tests; ARGS="-k ring -x" passes options to pytest
	@$(BIN)/python -m pytest $(ARGS)

test-all: setup ## also run what takes long: two minutes of fuzzing, gradients past 2^31 elements (12 GB of memory)
	@$(BIN)/python -m pytest -m "slow or not slow" $(ARGS)

demo: setup ## train real digits under horovodrun, compressed and not, over both topologies; table and plot
	@$(BIN)/python scripts/demo.py $(ARGS)

lint: setup ## format, lint and type-check
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/mypy
