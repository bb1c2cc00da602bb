# `make run` and `make test` set up an environment of their own under .venv, then run and test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup run test lint types

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# what tests need besides
$(VENV)/.tested: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,tensorboard]'
	touch $@

run: setup
	$(BIN)/gdro-bench run ocr --method gdro

test: $(VENV)/.tested lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder  # two processes of one thread

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy
