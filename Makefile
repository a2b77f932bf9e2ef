# Everything runs in .venv, made from pyproject.toml with the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# faiss comes as one of two packages with the same module; GPU machines take the GPU's.
FAISS := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
STORE ?= sfumato-store

.PHONY: demo test test-slow chaos lint bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sfumato needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[$(FAISS),test]'
	touch $@

demo: $(VENV)/.installed  ## the packaged experiment `quickstart`, from nothing to a results table
	$(BIN)/sfumato run quickstart --store $(STORE)

test: $(VENV)/.installed  ## everything but what is marked slow
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-slow: $(VENV)/.installed  ## what takes minutes, but for the chaos
	$(BIN)/python -m pytest -m slow --ignore=tests/chaos

chaos: $(VENV)/.installed  ## all that can break breaks at random moments, an hour and a quarter
	$(BIN)/python -m pytest tests/chaos -m slow -s

lint: $(VENV)/.installed  ## the house checks alone
	$(BIN)/python -m pytest tests/test_house.py

bench: $(VENV)/.installed  ## timings, each beside a named baseline
	$(BIN)/python -m pytest tests/bench --benchmark-enable -m "not gpu"

clean:  ## remove the environment and caches; stores are kept
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
