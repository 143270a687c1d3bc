# Every target creates .venv and installs into it when needed, and is safe to run twice.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help install demo test chaos conformance lint bench clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing embedx and its dependencies into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

install: $(STAMP)  ## create .venv and install embedx with everything the demo and the tests need

demo: $(STAMP)  ## docstrings of the installed packages: extract, index, search, fit a head, evaluate, predict
	@$(BIN)/python jobs/demo.py

lint: $(STAMP)  ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

test: lint  ## lint, then every test
	@$(BIN)/python -m pytest -n 2 --dist loadfile

chaos: $(STAMP)  ## the long chaos test: 50 kills of driver, workers or everything
	@EMBEDX_CHAOS_KILLS=50 $(BIN)/python -m pytest tests/steps/test_chaos.py --timeout=3600

conformance: $(STAMP)  ## every encoder against its own library; makes docs/encoders.md
	@mkdir -p build && rm -f build/conformance.jsonl
	@EMBEDX_CONFORMANCE_OUT=build/conformance.jsonl $(BIN)/python -m pytest -n 2 tests/conformance/test_conformance.py
	@$(BIN)/python jobs/encoder_table.py build/conformance.jsonl docs/encoders.md

bench: $(STAMP)  ## the short benchmarks; writes benchmarks/results/; PHOTOS=folder adds images
	@$(BIN)/python benchmarks/startup.py
	@$(BIN)/python benchmarks/text.py --short
	@$(BIN)/python benchmarks/long_texts.py --rounds 1 --documents 0
	@$(BIN)/python benchmarks/scaling.py --items 500
	@$(BIN)/python benchmarks/planning.py --items 1000000 --shards 1000
	@$(BIN)/python benchmarks/pipeline.py --rounds 3 $(if $(PHOTOS),--photos $(PHOTOS))
	@$(if $(PHOTOS),$(BIN)/python benchmarks/images.py $(PHOTOS) --short)

clean:  ## remove the environment, caches and demo output
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
