# `make demo` and `make test` do all the set-up on a machine with only Python >= 3.11.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
INSTALL = $(VENV)/bin/python -m pip install --quiet -c constraints.txt
# one thread in each process: two that share a core wait for each other
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(VENV)/bin/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test test32 slow check tutorials clean

help: ## this list
	@sed -n 's/^\([a-z0-9]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(VENV)/.installed ## train on alanine dipeptide, sample, run, report: demo/report.html (at most 10 minutes)
	$(VENV)/bin/diffmd demo

test: $(VENV)/.installed-test ## the whole default suite, plugins included (about 5 minutes)
	$(PYTEST) -n $(JOBS) --dist loadfile

# where numbers come from: files, pages, commands and trainings choose their precision themselves
test32: $(VENV)/.installed-test ## numbers again with torch's default dtype, float32 (about 1 minute)
	DIFFMD_TEST_DTYPE=float32 $(PYTEST) -n $(JOBS) --dist loadfile tests/sampling tests/potentials \
	  tests/independent tests/adapters tests/analysis tests/simulation

slow: $(VENV)/.installed-test ## training accuracy, long statistics, conformance (about 9 minutes)
	$(PYTEST) -m slow -n $(JOBS) --dist loadfile

# one after the other: the budget of a training is wall clock, and it has two processes of its own
tutorials: $(VENV)/.installed-test ## run every tutorial; each ends in a checked number (about 2 minutes)
	$(PYTEST) -m tutorial

check: $(VENV)/.installed-test ## ruff and mypy (about 1 minute)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

clean: ## remove the environment, caches and the results of the demo
	rm -rf $(VENV) demo dist build .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than Python 3.11: name another with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# stamps: nothing is installed again while the lists of dependencies are unchanged
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt plugins/template/pyproject.toml \
  plugins/openmm/pyproject.toml plugins/plumed/pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e '.[test]' -e plugins/template -e plugins/openmm -e plugins/plumed
	# a wheel that brings the PLUMED kernel; its own dependencies are not needed
	$(INSTALL) --no-deps hillclimber
	touch $(VENV)/.installed $@
