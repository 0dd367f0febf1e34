# make venv   the virtual environment that the others use; prints where it is
# make demo   train, sparsify, prune, finetune, export and detect on images that the project draws itself
# make test   the tests
# make lint   ruff, which room imports which (tests/imports.py), and mypy
# make check  linter and tests
# make test-all  also the slow tests: every network pruned in every way, as a printed matrix
# make coverage  the tests, and which lines of utils/ none of them runs
# All create the virtual environment first. It is shared by every clone with the same requirements:
# override its place with `make VENV=/some/folder demo`.

PYTHON ?= python3
KEY := $(shell cat requirements.txt requirements-dev.txt | sha256sum | cut -c1-12)
VENV ?= $(HOME)/.cache/darkedge/venv-$(KEY)
READY := $(VENV)/.complete-$(KEY)
RUN := $(VENV)/bin/python

.PHONY: venv demo test test-all coverage check lint clean

venv: $(READY)
	@echo $(VENV)

demo: $(READY)
	$(RUN) demo.py

test: $(READY)
	$(RUN) -m pytest

test-all: $(READY)
	$(RUN) -m pytest
	$(RUN) -m pytest -n 0 -m slow --capture=no

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m tests.imports
	$(RUN) -m mypy

coverage: $(READY)
	$(RUN) -m pytest --cov=utils --cov-report=term-missing:skip-covered

check: lint test

$(READY):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	touch $(READY)

clean:
	rm -rf output runs data/shapes .pytest_cache .ruff_cache .mypy_cache .coverage
