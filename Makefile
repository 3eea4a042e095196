# `make` lists the targets. Everything runs in a virtual environment that the first target used makes; it lies outside
# the checkout and is shared by every checkout that needs the same packages (see .ci/venv.py).
#
#   make demo VENV=/data/venv       another place for the environment
#   make demo PYTHON=python3.12     another Python to make it with, 3.10 to 3.12

PYTHON ?= python3
ifndef VENV
VENV := $(shell command -v "$(PYTHON)" >/dev/null && "$(PYTHON)" .ci/venv.py path)
endif
ifndef LABEL_VENV
LABEL_VENV := $(shell command -v "$(PYTHON)" >/dev/null && "$(PYTHON)" .ci/venv.py path label)
endif
PORT ?= 8000
ARGS ?=
RUN := "$(VENV)/bin/python" -m
RUN_LABEL := "$(LABEL_VENV)/bin/python" -m

# The package is not installed: the code that runs is that of this checkout.
export PYTHONPATH := $(CURDIR)
# Threads that wait sleep, so that a neighbour's work does not slow them down fourfold.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow lint bench label label-venv label-python test-label bundles clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'
	@echo "environment: $(VENV)"

venv: ## make the virtual environment (every target below does so first)
	@command -v "$(PYTHON)" >/dev/null || { \
	    echo "no $(PYTHON) here: install Python 3.10, 3.11 or 3.12, or name one: make PYTHON=/path/to/python" >&2; \
	    exit 1; }
	@"$(PYTHON)" .ci/venv.py install "$(VENV)"

demo: venv ## the whole method on phantoms, into demo/: under ten minutes on two CPU cores
	$(RUN) apt_monai demo demo $(ARGS)

test: venv ## the test suite, with the examples in the docstrings
	$(RUN) pytest $(ARGS)

test-slow: venv ## the tests that take long
	$(RUN) pytest -m slow $(ARGS)

lint: venv ## style, formatting and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

bench: venv ## speed and memory against the published way; make bench ARGS=--full for the paper's sizes
	$(RUN) benchmarks $(ARGS)

label-venv: venv
	@"$(PYTHON)" .ci/venv.py install "$(LABEL_VENV)" label "$(VENV)"

label-python: label-venv
	@echo "$(LABEL_VENV)/bin/python"

label: label-venv ## MONAI Label's server on 127.0.0.1 with phantom studies, in label/; make label PORT=8001
	$(RUN_LABEL) apt_monai.apps.phantoms label --port $(PORT)
	$(RUN_LABEL) monailabel.main start_server --app label/app --studies label/studies --host 127.0.0.1 --port $(PORT)

test-label: label-venv ## the tests of the server, and of what runs inside it, in its environment
	$(RUN_LABEL) pytest -m "slow or not slow" tests/test_label_server.py tests/test_label_studies.py tests/test_dicom.py $(ARGS)

bundles: ## copy what the bundles share from apt_brats into the others
	"$(PYTHON)" .ci/share_wiring.py

clean: ## remove what the targets above made in the checkout (not the environment)
	rm -rf demo bench label build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find apt_monai benchmarks tests .ci -name __pycache__ -type d -prune -exec rm -rf {} +
