# Everything installs into .venv through constraints.txt; `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
# it kills workers at moments that other tests must not shift
ALONE := tests/service/test_executors.py
STAMP := $(VENV)/.installed

.PHONY: help install demo cluster test test-slow test-long lint format bench clean

help:
	@echo "make demo       the main job on UCI digits: four arms, one table, two pictures (about three minutes)"
	@echo "make cluster    a cluster on one machine that loses a node, a runner and the API, and no trial (two minutes)"
	@echo "make test       the quick tests, two files at a time (JOBS=4: four)"
	@echo "make test-slow  the tests of whole programs, and the thorough ones (a quarter of an hour)"
	@echo "make test-long  the tests that take minutes each"
	@echo "make lint       ruff, mypy"
	@echo "make bench      throughput side by side with other systems (about five minutes)"
	@echo "make format     rewrite the code in the project's format"
	@echo "make clean      remove .venv and what the demo made"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "continua needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing into $(VENV) (a minute or two the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/continua compare examples/digits-width.yaml --store demo/store --pictures demo

cluster: $(STAMP)
	@bash examples/cluster/run.sh

test: $(STAMP)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-slow: $(STAMP)
	@$(BIN)/python -m pytest -m 'slow and not long' -n $(JOBS) --dist loadfile --ignore=$(ALONE)
	@$(BIN)/python -m pytest -m 'slow and not long' $(ALONE)

test-long: $(STAMP)
	@$(BIN)/python -m pytest -m long

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

bench: $(STAMP)
	@$(BIN)/python benchmarks/throughput.py

clean:
	rm -rf $(VENV) demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
