# Two commands do all set-up on a fresh machine with Python 3.11 or newer, pip and make:
#   make demo    a search on the built-in digits, on the CPU, to an export
#   make test    the suite, without what is marked slow; make test-slow runs the rest
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo check test test-slow soak gpu format

setup: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/search launch digits --gpus cpu:2 --runs runs/demo
	$(BIN)/search export-best digits --gpus cpu:2 --runs runs/demo

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m slow

soak: setup
	$(BIN)/python bench/soak.py

gpu: setup
	$(BIN)/python bench/gpu.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
