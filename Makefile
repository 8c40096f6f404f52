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

# Two at a time, a thread each: most tests are small. What goes by the clock or by the length of a path runs alone.
ALONE = tests/serving/server tests/recipe/test_extends.py tests/test_kill_eval.py tests/training/test_kill.py
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile $(addprefix --ignore=,$(ALONE))
	$(BIN)/python -m pytest -m 'not slow' $(ALONE)

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
