# Everything that a user or a contributor runs. Each target makes .venv and installs what it needs, so both
# `make demo` and `make test` work on a fresh clone with Python 3.11 or newer.

# 3.11 and 3.12 first: the tests run there, and the newest Python may still lack wheels of a dependency.
PYTHON ?= $(shell for python in python3.11 python3.12 python3 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# robosuite comes without its own requirements, which pip would call a conflict; see sim-lean in pyproject.toml.
PIP_INSTALL := $(PIP) install -q --no-warn-conflicts -c constraints.txt
# One thread in each of pytest's two workers; more would fight for the cores.
TEST_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format types clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-sim  ## Play, align and act on three unseen bodies; writes demo_out/report.html.
	$(BIN)/selfalign demo $(ARGS)

test: $(VENV)/.installed-dev  ## Run the tests, without those marked slow or gpu.
	$(TEST_ENV) $(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/.installed-dev  ## Run the tests marked slow.
	$(TEST_ENV) $(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.installed-dev  ## Check style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev  ## Repair what ruff can repair.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev  ## Check the types.
	$(BIN)/pyright

clean:  ## Remove .venv, caches and what the demo wrote (prepared robots in the user's cache stay).
	rm -rf $(VENV) build dist demo_out .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp per set of extras: a second run installs nothing unless the requirements have changed.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found. Install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "No virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.installed-sim: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV): about 1.5 GB, a few minutes."
	$(PIP_INSTALL) -e ".[sim-lean,lerobot,serve]"
	$(PIP_INSTALL) --no-deps robosuite
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-sim
	$(PIP_INSTALL) -e ".[sim-lean,lerobot,serve,kinematics,report,rlds,lora,cluster,dev]"
	@touch $@
