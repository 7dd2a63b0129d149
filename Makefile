# Everything runs in .venv, which `make setup` makes. PYTHON chooses the interpreter: 3.11 to 3.13.
PYTHON ?= python3
EXTRAS ?= test
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed-$(EXTRAS)
QUICKSTART := runs/quickstart
WORKERS ?= 2
# A file stays with one worker, which compiles once what its tests share; the slowest files go first.
SHARES := --dist loadfile --no-loadscope-reorder

# Two devices on the CPU share a batch: XLA leaves the second core idle otherwise.
DEVICES ?= 2

export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export TF_CPP_MIN_LOG_LEVEL ?= 3
# Compiled modules are kept: tests start dozens of processes, which import the same ones.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup quickstart test test-full lint mutants docs clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(STAMP)  ## make .venv and install everything

$(STAMP): setup.py
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else 'idode_gin needs Python 3.11 to 3.13, this is %d.%d. Name another: make setup PYTHON=python3.12' % v)"
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --no-compile --editable '.[$(EXTRAS)]'
	touch $@

quickstart: export JAX_NUM_CPU_DEVICES ?= $(DEVICES)
quickstart: setup  ## train, evaluate and sample on handwritten digits; minutes on 2 cores
	$(RUN) -m idode_gin.train --gin_file=gin_configs/experiments/digits.gin \
		--gin.MODEL_DIR="'$(QUICKSTART)/train'"
	$(RUN) -m idode_gin.eval --gin_file=gin_configs/experiments/digits_eval.gin \
		--gin.CHECKPOINT_PATH="'$(QUICKSTART)/train'" --gin.EVAL_OUTPUT_DIR="'$(QUICKSTART)/eval'"
	$(RUN) -m idode_gin.sample --gin_file=gin_configs/experiments/digits_sample.gin \
		--gin.CHECKPOINT_PATH="'$(QUICKSTART)/train'" --gin.SAMPLE_OUTPUT_DIR="'$(QUICKSTART)/samples'"
	@echo
	@cat $(QUICKSTART)/eval/table.txt
	@$(RUN) -m idode_gin.report $(QUICKSTART)

PYTEST := $(RUN) -m pytest -n $(WORKERS) $(SHARES)
# As users' programs are compiled: with optimization, which takes three times as long.
AS_USERS := XLA_FLAGS="$(XLA_FLAGS)" $(PYTEST)
NUMBERS := tests/golden tests/laws

test: setup lint  ## lint, and all tests but the long ones
	$(PYTEST) -m "not full"

test-full: test  ## also the long tests, all golden cases and laws as users compile them, and mutants
	$(PYTEST) -rs -m full $(NUMBERS:%=--ignore=%)
	$(AS_USERS) $(NUMBERS)
	$(RUN) tests/mutation --workers $(WORKERS)

lint: setup  ## ruff, layers, types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports
	$(RUN) -m mypy

mutants: setup  ## edit one place at a time: a test must fail. ARGS="--sample 200 --seed 1 --folder solvers"
	$(RUN) tests/mutation --workers $(WORKERS) $(ARGS)

docs:  ## build docs/_build/html: tutorials are executed, and any warning is an error
	$(MAKE) setup EXTRAS=docs
	$(RUN) -m sphinx -W --keep-going -n -q -b html docs docs/_build/html

clean:  ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache .mypy_cache .import_linter_cache build docs/_build docs/generated *.egg-info
