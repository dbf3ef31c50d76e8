# `make help` lists what there is. CLUSTER=local (the default) needs no Docker; CLUSTER=kind uses it.
CLUSTER ?= local
export CLUSTER

BUILD := deploy/build
STEP := $(BUILD)/step
VENV := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check format generate cluster down images load install e2e e2e-full bench bench-table chaos bootstrap clean distclean
.NOTPARALLEL:

help: ## what there is to make
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## from a bare machine to a failover that an application hardly sees
	@$(BUILD)/demo

test: ## every test, on a cluster that is there or made for it (KEEP=1 leaves it up)
	@$(BUILD)/test

check: bootstrap ## linters, types, layers, unit tests, generated files: under a minute
	@$(STEP) "Lint" $(VENV)/ruff check --quiet .
	@$(STEP) "Format" $(VENV)/ruff format --quiet --check .
	@$(STEP) "Types" $(VENV)/mypy
	@$(STEP) "Types of the tests" $(VENV)/mypy tests/e2e tests/bench tests/chaos tests/model tests/charts
	@$(STEP) "Layers" $(VENV)/lint-imports
	@$(STEP) "Generated files" $(VENV)/pgcluster-crds --check
	@$(STEP) "Unit tests" $(VENV)/pytest -q tests/unit

format: bootstrap ## lay the Python files out
	@$(VENV)/ruff check --quiet --fix-only . && $(VENV)/ruff format .

generate: bootstrap ## crds/ and docs/reference.md, from the models
	@$(VENV)/pgcluster-crds

cluster: ## a real Kubernetes with three workers on this machine, up and Ready
	@$(STEP) "Kubernetes" $(BUILD)/cluster up

down: ## remove that cluster and every trace of it
	@$(STEP) "Kubernetes down" $(BUILD)/cluster down

images: ## build the three images
	@$(STEP) "Images" $(BUILD)/images

load: images ## … and bring them into the cluster's nodes
	@$(STEP) "Images into the nodes" $(BUILD)/cluster load

install: load ## … and the CRD and the operator onto the cluster
	@$(STEP) "Operator" $(BUILD)/cluster install

e2e: export POSTGRES_MAJORS := 17 15
e2e: bootstrap cluster install ## the end-to-end tests alone (ARGS="-k failover"), on a cluster that stays
	@KUBECONFIG=$$($(BUILD)/cluster kubeconfig) $(VENV)/pytest tests/e2e $(ARGS)

e2e-full: export E2E_FULL := 1
e2e-full: export POSTGRES_MAJORS := 17 15
e2e-full: bootstrap cluster install ## … each fault as often and as long as its row of acceptance says: hours
	@KUBECONFIG=$$($(BUILD)/cluster kubeconfig) $(VENV)/pytest tests/e2e $(ARGS)

SURROUNDINGS = $(if $(SYNC),--synchronous $(SYNC)) $(if $(WRITERS),--writers $(WRITERS)) $(if $(DATA),--data $(DATA))
bench: ## what a fault costs, as distributions (CASE=node-off RUNS=20 SYNC=quorum WRITERS=64 DATA=2048 ARGS=--append)
	@$(BUILD)/bench bench $(CASE) --runs $(or $(RUNS),20) $(if $(SEED),--seed $(SEED)) $(SURROUNDINGS) $(ARGS)

bench-table: bootstrap ## … and its tables, for docs/performance.md
	@$(VENV)/python -m tests.bench --table $(SURROUNDINGS)

chaos: ## a random sequence of faults until one breaks what must be true (FAULTS=200 SEED=n SYNC=quorum)
	@$(BUILD)/bench chaos --faults $(or $(FAULTS),200) $(if $(SEED),--seed $(SEED)) $(if $(SYNC),--synchronous $(SYNC)) $(ARGS)
bootstrap: ## the Python environment in .venv
	@$(BUILD)/bootstrap

clean: ## remove what was built in this folder
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

distclean: clean ## … and the caches of images and tools outside it (Kubernetes is built anew, too)
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/pgcluster"
