# Everything runs in .venv, made here from requirements.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test lint types suite oracle newest clean

help:            ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/ready: requirements.txt $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; use make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirements.txt
	touch $@

$(VENV)/ready-test: $(VENV)/ready requirements-test.txt
	$(BIN)/pip install -q -r requirements-test.txt
	touch $@

quickstart: $(VENV)/ready  ## train on the digits of scikit-learn and evaluate
	$(BIN)/python -m eir_jax.main --config=configs/digits.py --workdir=runs/digits
	$(BIN)/python -m eir_jax.evaluate --workdir=runs/digits

test: lint types suite  ## lint, types and the whole suite

lint: $(VENV)/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready-test
	$(BIN)/mypy

suite: $(VENV)/ready-test
	$(BIN)/python -m pytest

# Retrieval is compared with pytorch-metric-learning, which needs torch. The CPU build is
# taken from the wheels at hand (PIP_FIND_LINKS); the tests say when it is absent.
oracle: $(VENV)/ready-test  ## for one more comparison in the tests
	$(BIN)/pip install -q --no-index --no-deps torch
	$(BIN)/pip install -q --no-deps pytorch-metric-learning
	$(BIN)/pip install -q faiss-cpu filelock fsspec jinja2 networkx sympy tqdm \
	  typing_extensions

# The part of the suite that needs no TensorFlow, on a newer Python and its newer JAX:
#   make newest PYTHON=python3.12 VENV=.venv-newest
newest:          ## the TensorFlow-free tests, e.g. on Python 3.12
	$(PYTHON) -m venv $(VENV)
	grep -v '^tensorflow-cpu\|^tensorflow>' requirements/tfds.txt > $(VENV)/tfds.txt
	$(BIN)/pip install -q -r requirements/core.txt -r $(VENV)/tfds.txt -r requirements-test.txt
	$(BIN)/python -m pytest

clean:           ## remove what `make` made
	rm -rf .venv .venv-newest .mypy_cache .pytest_cache .ruff_cache
