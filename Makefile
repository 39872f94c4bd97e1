# Two commands are all a fresh machine needs: `make demo` and `make test`. Both make their own environment in .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Without an NVIDIA driver the processor build of torch is enough, and gigabytes smaller.
TORCH  := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo torch || echo "torch==2.13.0")

.PHONY: demo test lint format bench clean

demo: $(STAMP)
	$(BIN)/cryofire simulate --particles 4000 -o demo/set --overwrite
	$(BIN)/cryofire check demo/set/particles.star
	rm -rf demo/run
	$(BIN)/cryofire reconstruct demo/set/particles.star -o demo/run
	$(BIN)/cryofire evaluate demo/run --truth demo/set/truth.star
	@echo "The report is demo/run/report.html"

# Processes share the cores among them, so that each works with one thread.
test: $(STAMP)
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python benchmarks/short.py

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("cryofire needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --group dev --editable ".[atoms]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo bench
