# `make pizza` is the whole tour, `make test` the whole suite; both set themselves up.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install pizza test slow fuzz lint wheel data docs clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

pizza: install
	$(BIN)/finetune train recipes/pizza.yaml
	$(BIN)/finetune eval recipes/pizza.yaml

test: install
	$(BIN)/python -m pytest -m 'not slow'

slow: install
	$(BIN)/python -m pytest -m slow

fuzz: install
	$(BIN)/python -m pytest -m slow tests/data/test_fuzz.py tests/recipe/test_fuzz.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: install
	rm -rf build dist
	$(BIN)/python -m build --wheel

data: install
	$(BIN)/python tools/make_data.py

docs: install
	$(BIN)/python tools/make_docs.py

clean:
	rm -rf .venv build dist *.egg-info
