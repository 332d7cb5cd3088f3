# Everything happens in a virtual environment of the checkout's own. `make run` and `make test` need nothing but python3.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Options for the relay (make run ARGS="--realm example.org") and for pytest (make test TESTS="tests/unit -x").
ARGS ?=
TESTS ?=

.PHONY: help run test lint format bench docs clean

help:
	@echo "make run    start a relay on loopback, with a random user that it prints"
	@echo "make test   run all tests; as root, first install the Debian packages that the interop tests use"
	@echo "make lint   check style and types"
	@echo "make bench  compare with a coturn that is installed on this machine"
	@echo "make docs   build the documentation into docs/_build/html"
	@echo "make clean  remove what the other targets made"

# The cache of plugins is made anew: Twisted does not notice that a class behind a plugin file has changed.
run: $(VENV)/.run
	@rm -f twisted/plugins/dropin.cache
	@exec $(BIN)/twistd --nodaemon --pidfile= relayd $(ARGS)

test: $(VENV)/.test
	@.ci/packages
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/.test $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy relayd tests bench twisted/plugins

format: $(VENV)/.lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.run
	@$(BIN)/python -m bench $(ARGS)

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis _trial_temp*
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "relayd needs Python 3.11 or newer, and '$(PYTHON)' is not: name another one, make PYTHON=/path/to/python3" >&2; \
	    exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	    rm -rf $(VENV); \
	    echo "no virtual environment could be made: on Debian, install the package python3-venv" >&2; \
	    exit 1; }

$(VENV)/.run: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[$*]
	@touch $@
