# Two commands: `make run` and `make test`; `make quick` leaves out the slow tests. All install from requirements.lock into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test quick check docs lock clean

run: $(VENV)/.installed
	$(BIN)/openba run tiny

test: $(VENV)/.installed
	$(BIN)/pytest

# Everything but the tests marked slow; what takes more than 2 s is listed, to be marked or made faster.
quick: $(VENV)/.installed
	$(BIN)/pytest -m "not slow" --durations=10 --durations-min=2

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest tests/test_architecture.py tests/test_house.py

# The documentation as a site in .site; its configuration reference is made from the recipe types.
docs: $(VENV)/.installed
	$(BIN)/mkdocs build --quiet --strict --config-file infra/site/mkdocs.yaml

# DS_BUILD_OPS=0: deepspeed ships as source; nothing of it is compiled.
$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m openba.compile_kernels
	touch $@

# Resolve pyproject.toml anew and pin the result, without the local parts of versions (+cpu).
lock:
	$(PYTHON) -m venv $(VENV).lock
	DS_BUILD_OPS=0 $(VENV).lock/bin/python -m pip install --quiet --editable '.[sample,cluster,export,quality,web,dev]' setuptools
	$(VENV).lock/bin/python -m pip freeze --exclude-editable --all | grep -v '^pip==' | sed 's/+cpu$$//' > requirements.lock
	rm -rf $(VENV).lock

clean:
	rm -rf .openba
