# Everything a newcomer needs: `make demo` and `make test` set themselves up.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin

.PHONY: setup demo check servers test test-fast test-long bench clean
.DEFAULT_GOAL := setup

# One stamp file a set of dependencies, so that a second call costs nothing.
$(VENV)/.setup: pyproject.toml
	@echo "==> setting up $(VENV) (once)"
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or later is needed, this is " + sys.version.split()[0] + "; use make PYTHON=/path/to/python3")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --editable '.[all]' --group demo
	@touch $@

$(VENV)/.setup-tests: $(VENV)/.setup
	@echo "==> installing what the tests need (once)"
	@$(BIN)/python -m pip install --quiet --group tests --group typing
	@touch $@

setup: $(VENV)/.setup-tests

demo: $(VENV)/.setup
	@$(BIN)/python examples/demo/run.py

check: $(VENV)/.setup-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layout.py

# Builds the real servers once; later calls answer at once and touch no network.
servers:
	@bash tests/servers/install.sh

test: $(VENV)/.setup-tests servers
	$(BIN)/python -m pytest -m "not long"

test-fast: $(VENV)/.setup-tests
	$(BIN)/python -m pytest -m "not long and not faults and not influxdb and not kafka"

test-long: $(VENV)/.setup-tests
	$(BIN)/python -m pytest -m long --timeout 7200

# Writes benchmarks/results.md and .svg; wants a machine that does nothing else, and half an hour.
bench: $(VENV)/.setup-tests servers
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) dist build
