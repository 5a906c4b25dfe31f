# The two main commands are `make demo` and `make test`. Both first set up what is missing; you need Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test check floor stress bench bench-quick bench-gpu docs format clean up down env

help:  ## list the targets
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## create the environment in .venv

# The environment is updated when the pinned versions change, and reused otherwise.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $(READY)

demo:  ## fine-tune, evaluate and register the built-in demo model: minutes on two cores
	@if $(MAKE) --question $(READY); then echo "environment $(VENV) reused"; else $(MAKE) --no-print-directory setup; fi
	@$(BIN)/python -m pipelines.finetune --recipe demo

up: setup  ## start a Prefect server, an MLflow server and a worker on loopback, and register the deployments
	@$(BIN)/python -m tasks.services up

env:  ## print the servers' addresses for a shell: eval "$(make env)"
	@$(MAKE) --no-print-directory setup >&2
	@$(BIN)/python -m tasks.services env

down: setup  ## stop the servers and the worker
	@$(BIN)/python -m tasks.services down

test: setup  ## every test, with servers, torchrun and whole flows
	# --no-loadscope-reorder: by default, files with one test (some run a whole demo) come last; tests/conftest.py puts them first.
	# Three workers on two cores: a worker spends a third of its time waiting for servers and processes.
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder

check: setup  ## the development loop: lint, import contracts, types, fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyrefly check
	$(BIN)/python -m pytest -n 2 --dist loadscope -m 'not slow'

FLOOR := $(VENV)/floor

floor:  ## the fast tests with the lowest versions that pyproject.toml admits, in another environment
	test -x $(FLOOR)/bin/python || $(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(FLOOR) $(FLOOR)/bin/uv pip install --resolution lowest-direct --editable '.[test]'
	$(FLOOR)/bin/python -m pytest -n 2 --dist loadscope -m 'not slow'

stress: setup  ## the kill tests with many seeded kills, fuzzing for ten minutes, every way to stop a flow, Slurm's failures, the image
	MEDPIX_KILLS=20 MEDPIX_FAULTS=50 MEDPIX_FUZZ=50 $(BIN)/python -m pytest -n 0 -s \
		-k 'killed_build or killed_run or random_faults or fuzz or test_stops or test_hosts or test_slurm or test_containers'

docs: setup  ## build the documentation's site into .venv/site
	$(BIN)/python -m docs.site.generate
	$(BIN)/python -m docs.site.build $(VENV)/site
	@echo "to search in it: $(BIN)/python -m http.server --bind 127.0.0.1 --directory $(VENV)/site"

format: setup  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and everything that the commands wrote
	rm -rf $(VENV) .medpix

BENCH := $(VENV)/.bench

$(BENCH): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	touch $(BENCH)

bench: $(BENCH)  ## every comparison with TRL and a plain loop: about an hour
	$(BIN)/python -m benchmarks.run full
	$(BIN)/python -m benchmarks.data

bench-quick: $(BENCH)  ## the two main comparisons, in under ten minutes
	$(BIN)/python -m benchmarks.run quick

bench-gpu: setup  ## every kernel once on a tiny model, then Gemma 3 4B's shapes: needs a GPU with 80 GB
	-$(BIN)/python -m benchmarks.smoke
	$(BIN)/python -m benchmarks.run gpu
