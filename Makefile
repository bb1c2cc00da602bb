# `make run` and `make test` set up an environment of their own under .venv, then run and test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup run test lint types

# where it is set, every process that tests start compiles torch and diffusers anew, 10 s each
unexport PYTHONDONTWRITEBYTECODE

.NOTPARALLEL:  # both set-ups are of one environment

setup: $(VENV)/.ready

# Python compiles the modules that are imported; most of them never are
install = $(PYTHON) -m venv $(VENV) && \
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable

$(VENV)/.ready: pyproject.toml constraints.txt
	$(install) '.[dev]'
	touch $@

# what tests need besides; pip takes half a minute to find out that all is there, so it is asked once
$(VENV)/.tested: pyproject.toml constraints.txt
	$(install) '.[dev,tensorboard]'
	touch $(VENV)/.ready $@

run: setup
	$(BIN)/gdro-bench run ocr --method gdro

test: $(VENV)/.tested lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder  # two processes of one thread

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy
