# Everything runs in .venv, made here from requirements.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test lint types suite oracle newest plan clean

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

# Retrieval is compared with pytorch-metric-learning, NT-Xent and the queue with lightly,
# which need torch. The CPU build is taken from the wheels at hand (PIP_FIND_LINKS); the
# tests say when it is absent.
oracle: $(VENV)/ready-test  ## for a few more comparisons in the tests
	$(BIN)/pip install -q --no-index --no-deps torch
	$(BIN)/pip install -q --no-deps pytorch-metric-learning lightly
	$(BIN)/pip install -q faiss-cpu filelock fsspec jinja2 networkx sympy tqdm \
	  typing_extensions

# The part of the suite that needs no TensorFlow, on a newer Python and its newer JAX:
#   make newest PYTHON=python3.12 VENV=.venv-newest
newest:          ## the TensorFlow-free tests, e.g. on Python 3.12
	$(PYTHON) -m venv $(VENV)
	grep -v '^tensorflow-cpu\|^tensorflow>' requirements/tfds.txt > $(VENV)/tfds.txt
	$(BIN)/pip install -q -r requirements/core.txt -r $(VENV)/tfds.txt -r requirements-test.txt
	$(BIN)/python -m pytest

# Compiling for a GPU takes its plug-in alone, no CUDA library and no driver. The
# environment is that of the tests, and the plug-ins beside it.
JAX_VERSION = $(shell $(BIN)/python -c 'import jax; print(jax.__version__)')
.venv-plan/ready: $(VENV)/ready-test
	$(BIN)/python -m venv --without-pip .venv-plan
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > \
	  "$$(.venv-plan/bin/python -c 'import site; print(site.getsitepackages()[0])')/test.pth"
	$(BIN)/pip -q --python .venv-plan/bin/python install --no-deps \
	  jax-cuda13-plugin==$(JAX_VERSION) jax-cuda13-pjrt==$(JAX_VERSION)
	$(BIN)/pip -q --python .venv-plan/bin/python install 'jax[tpu]==$(JAX_VERSION)' || \
	  echo "== libtpu cannot be installed: nothing is compiled for TPUs"
	touch $@

plan: .venv-plan/ready  ## compile the step for H100s and a TPU, none of which is needed
	.venv-plan/bin/python -m benchmarks.plans $(PLAN)

clean:           ## remove what `make` made
	rm -rf .venv .venv-newest .venv-plan .mypy_cache .pytest_cache .ruff_cache
