# Six verbs. `make setup` once, then the others; they use the environment in .venv.
.PHONY: setup test lint docs site bench
PYTHON ?= python3
BIN := .venv/bin

setup:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e ".[dev,experiments]"

test:
	$(BIN)/pytest -n 2

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs:
	$(BIN)/pytest tests/docs

site:
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench:
	for script in kernels/bench/*.py; do case $$script in */_*) ;; *) $(BIN)/python $$script --quick || exit 1 ;; esac; done
