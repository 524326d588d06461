# What people and CI type. Needs GNU make 3.81 or newer and Python 3.11 or newer with venv; PYTHON=... names another one.

.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: help run demo test check bench lock openapi clean environment-run environment-dev
SHELL := /bin/sh
python := .venv/bin/python

export PYTHON

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

# `exec` puts the program in the place of its shell, so that a signal to make reaches it.

run: environment-run ## Run the engine and its stores on this machine, until Ctrl-C
	@exec $(python) -m margin_local

demo: environment-run ## Trade through a falling market and show who is liquidated (PRICES=FILE: your own prices)
	@exec $(python) -m margin_local.demo $(if $(PRICES),--prices "$(PRICES)")

test: environment-dev ## Run all tests (ARGS="-k word": some of them)
	@PYTHON_DOTENV_DISABLED=1 exec $(python) -m pytest $(ARGS)

check: environment-dev ## Check style, types, layers, and that the locks and the API document are up to date
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m mypy
	@.venv/bin/lint-imports --no-logo
	@sh infra/local/locks.sh check
	@$(python) -m pip check
	@$(python) -m margin_local.openapi --check

bench: environment-dev ## Measure latency and throughput
	@exec $(python) -m tests.benchmarks

lock: environment-dev ## Bring the locks in line with pyproject.toml (UPGRADE=1: newest versions)
	@sh infra/local/locks.sh $(if $(UPGRADE),upgrade,write)

openapi: environment-run ## Write functions/status/openapi.json
	@exec $(python) -m margin_local.openapi

clean: ## Remove the environment and everything that tools wrote; the data in .data stays
	@rm -rf .venv .aws-sam .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

environment-run:
	@sh infra/local/environment.sh run

environment-dev:
	@sh infra/local/environment.sh dev
