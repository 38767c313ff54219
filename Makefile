# Needs only Python 3.11+ and make; each target installs what it needs into .venv. `make help` lists the targets.

VENV ?= .venv
PYTHON ?= python3
ARGS ?=

bin := $(VENV)/bin
demo := results/demo/table2.csv $(foreach ipc,1 3 10,results/demo/figures/synthetic-digits-ipc-$(ipc).png)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test lint types picture clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1 - \2/p' $(firstword $(MAKEFILE_LIST))
	@echo "  PYTHON=$(PYTHON) is the interpreter, VENV=$(VENV) the environment, ARGS are passed to snakemake or pytest"

demo: $(VENV)/.satm-demo ## distil the digits on this machine: results/demo/table2.csv, pictures in results/demo/figures
	$(bin)/snakemake --profile local $(ARGS) $(demo)
	@$(bin)/python -m satm table --config config/demo.yaml --name table2
	@printf '%s\n' $(demo)

test: $(VENV)/.satm-test ## run the tests
	$(bin)/python -m pytest -n logical --dist worksteal $(ARGS)

lint: $(VENV)/.satm-dev ## check the style and format of code and workflow
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/snakefmt --check Snakefile workflow
	$(bin)/snakemake --lint

types: $(VENV)/.satm-dev ## check the types of satm/
	$(bin)/mypy

picture: $(VENV)/.satm-demo ## draw the rules of the workflow into docs/workflow.svg; needs Graphviz
	$(bin)/snakemake results/tables/all results/figures/all --rulegraph dot | dot -Tsvg > docs/workflow.svg

clean: ## remove the environment and caches, but no results
	if [ -e $(VENV)/.satm-python ]; then rm -rf $(VENV); fi
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	find satm tests -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp file for each set of extras: make installs the set again when pyproject.toml or constraints.txt changes.
$(VENV)/.satm-demo: extras := workflow,figures
$(VENV)/.satm-test: extras := test
$(VENV)/.satm-dev: extras := dev
$(VENV)/.satm-demo $(VENV)/.satm-test $(VENV)/.satm-dev: pyproject.toml constraints.txt $(VENV)/.satm-python
	$(bin)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[$(extras)]'
	@touch $@

$(VENV)/.satm-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "satm needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.12" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
