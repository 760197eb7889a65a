.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready

.PHONY: help demo test test-all bench bench-full check format lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# The environment is recreated whenever the lock file or pyproject.toml changes.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"sslrun needs Python 3.11 or newer, {sys.executable} is {v.major}.{v.minor}: make PYTHON=python3.12 ...")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

demo: $(READY)  ## pretrain, finetune and evaluate on scikit-learn's digits, offline, 95 seconds on 2 cores, 3 minutes without AVX-512
	$(VENV)/bin/sslrun demo

test: $(READY)  ## the quick tests, 12 minutes on 2 slow cores
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 --dist worksteal -m "not slow"

test-all: $(READY)  ## the slow tests too
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 --dist worksteal

bench: $(READY)  ## the benchmarks, about 15 minutes on 2 cores, into benchmarks/RESULTS.md
	$(VENV)/bin/python benchmarks/bench.py --quick $(BENCH)

bench-full: $(READY)  ## with all rounds and 3 seeds: hours; BENCH="--fashion DIR --folder DIR" names two data sets
	$(VENV)/bin/python benchmarks/bench.py $(BENCH)

check: $(READY)  ## lint, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(READY)  ## format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

lock:  ## renew requirements.lock (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra dev \
		--no-header pyproject.toml -o requirements.lock

clean:  ## remove the environment and caches; outputs/ is kept
	rm -rf $(VENV) .venv-lightly .pytest_cache .mypy_cache .ruff_cache dist
