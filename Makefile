# Targets a newcomer needs: `make demo`, `make test`. Everything is installed into .venv and the cache; no root.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 \
	&& $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && exit; done; echo python3)
ENVIRONMENTS := $(PYTHON) -m lockgate.environments
BIN := .venv/bin
PYTEST_ARGS ?=

export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

.PHONY: setup demo test check lint unit format locks calibration clean

setup: ## the orchestrator environment: .venv/bin/lockgate works
	$(ENVIRONMENTS) orchestrator

demo: setup ## four releases of a real model on this machine, with a report at the end
	$(ENVIRONMENTS) serving quantization demo-model kubectl
	$(BIN)/lockgate demo

test: dev ## every test, with real vLLM, Envoy, Prefect and a registry
	$(ENVIRONMENTS) serving quantization demo-model kubectl
	LOCKGATE_TESTS_LEAVE_OUT="$$($(PYTHON) scripts/test_prerequisites.py)" && export LOCKGATE_TESTS_LEAVE_OUT \
	&& PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

check: dev ## what a change must pass before it is committed: all but the slow unit tests, and fewer examples of each property
	$(MAKE) --no-print-directory -j2 --output-sync=target lint unit

lint: dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: dev
	LOCKGATE_TESTS_QUICK=1 $(BIN)/pytest tests/unit -q -n 2 -m "not slow" $(PYTEST_ARGS)

format: dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

locks: ## resolve again; LOCKS_ARGS=--upgrade moves every pin
	$(PYTHON) scripts/make_locks.py $(LOCKS_ARGS)

calibration: dev ## the judge's error rates and power by simulation; docs/calibration.md (half an hour on two cores; may be stopped)
	$(BIN)/python -m benchmarks.judge_calibration

clean: ## what builds and checks leave in the clone; the shared cache stays
	rm -rf .venv .venv.lock .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: dev
dev:
	$(ENVIRONMENTS) orchestrator --dev
