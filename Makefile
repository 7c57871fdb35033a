# The first target that needs it creates .venv. `make` alone lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?= python3
DEMO ?= demo
SEED ?= 1
CASES ?= 500
PYTEST ?= tests -m "not slow and not gpu and not soak"

.PHONY: help demo test lint types pytest docs parity slow soak bench bench-gpu train gate clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Caption drawn pictures and clips into demo/, and write demo/report.html
	@$(BIN)/mediamill demo --dir $(DEMO)

test: lint types pytest ## Run lint, static types and the tests

lint: $(READY) ## Check style and format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## Check static types with mypy
	$(BIN)/mypy

pytest: $(READY) ## Run the tests (some of them: PYTEST="tests/model -k rope")
	$(BIN)/python -m pytest $(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder

docs: $(READY) ## Write the pages that follow from the code: keys, error codes, Python API
	$(BIN)/python docs/render.py

parity: $(READY) ## Compare with the reference on random cases (SEED=1 CASES=500)
	$(BIN)/python -m pip download --quiet --no-deps --dest .cache qwen-agent==0.0.34
	$(BIN)/python -m pytest tests/parity -q --parity-seed $(SEED) --parity-cases $(CASES) \
	  --qwen-wheel .cache/qwen_agent-0.0.34-py3-none-any.whl

slow: $(READY) ## Run the tests that take minutes, or need Slurm, cron or a Ray head
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[test,cluster]'
	$(BIN)/python -m pytest tests -m slow -q --timeout 1800

soak: $(READY) ## Run 20,000 rows under a hundred kills, as many requests in the engine, and more
	$(BIN)/python -m pytest tests/model/engine_core/test_engine_soak.py -m soak -q --timeout 1800
	$(BIN)/python -m pytest tests -m soak -q -s --timeout 1800 \
	  --ignore tests/model/engine_core/test_engine_soak.py

bench: $(READY) ## Measure each part's speed on this machine
	$(BIN)/python -m benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.engine

bench-gpu: $(READY) ## Measure the engine on this machine's GPU, in ten minutes
	$(BIN)/python -m benchmarks.gpu --json runs/gpu.json

train: $(READY) ## Train the tiny model from scratch into runs/tiny, and measure it
	$(BIN)/python -m mediamill.model.tiny.train --out runs/tiny
	$(BIN)/python -m mediamill.model.tiny.gate --model runs/tiny

gate: $(READY) ## Measure the shipped checkpoint on 500 fresh scenes of each kind
	$(BIN)/python -m mediamill.model.tiny.gate

clean: ## Remove the environment, the caches and the demo's output
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find schemas model pipeline jobs tests benchmarks src -name __pycache__ -type d -prune -exec rm -rf {} +

# pip installs torch first, since pip's settings may name a CPU-only build, and uv does not read them.
# uv installs the rest in seconds; if it fails, pip does.
$(READY): pyproject.toml constraints.txt
	@python=; for candidate in $(PYTHON) python3.14 python3.13 python3.12 python3.11; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "error: Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
	    "Name one: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.12" >&2; \
	  exit 2; \
	fi; \
	echo "Setting up $(VENV) with $$("$$python" --version); this downloads torch and Ray, once ..."; \
	"$$python" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[test]' \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@
