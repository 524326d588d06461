# What people and CI type. Needs GNU make 3.81 or newer and Python 3.11 or newer with venv; PYTHON=... names another one.

.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: help run rebuild verify instruments token demo test test-aws check bench faults fuzz audit sbom build sam-local sam-invoke sam-local-down deploy destroy lock openapi clean
.PHONY: environment-run environment-dev
SHELL := /bin/sh
python := .venv/bin/python

export PYTHON

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

# `exec` puts the program in the place of its shell, so that a signal to make reaches it.

run: environment-run ## Run the engine and its stores on this machine, until Ctrl-C
	@exec $(python) -m margin_local

rebuild: environment-run ## Make the state in Redis anew from PostgreSQL (ACCOUNT=42, PARTITION=3 or ALL=1), while make run runs or not
	@exec $(python) -m margin_local.rebuild $(if $(ACCOUNT),--account "$(ACCOUNT)") $(if $(PARTITION),--partition "$(PARTITION)") $(if $(ALL),--all)

verify: environment-run ## Look whether every event and change in PostgreSQL is as it was written (ACCOUNT=42: of one account, SHOW=1: and what happened to it)
	@exec $(python) -m margin_local.verify $(if $(ACCOUNT),--account "$(ACCOUNT)") $(if $(SHOW),--show)

instruments: environment-run ## Give the engine the rules of symbols (FILE=infra/local/instruments.example.json, URL=http://127.0.0.1:8000)
	@exec $(python) -m margin_local.instruments --file "$(FILE)" $(if $(URL),--url "$(URL)")

token: ## Print a token for AUTH=jwt make run (SUB=desk SCOPES="trade:write positions:read" ACCOUNTS="1 2" EXPIRES=12h; by default it may do all)
	@sh infra/local/environment.sh run >&2
	@exec $(python) -m margin_local.tokens $(if $(SUB),--subject "$(SUB)") $(if $(SCOPES),--scopes "$(SCOPES)") \
		$(if $(ACCOUNTS),--accounts "$(ACCOUNTS)") $(if $(EXPIRES),--expires "$(EXPIRES)")

demo: environment-run ## Trade through a falling market and show who is liquidated (PRICES=FILE: your own prices)
	@exec $(python) -m margin_local.demo $(if $(PRICES),--prices "$(PRICES)")

test: environment-dev ## Run all tests but those of test-aws (ARGS="-k word": some of them)
	@PYTHON_DOTENV_DISABLED=1 exec $(python) -m pytest $(ARGS)

test-aws: environment-dev ## Build, and run the tests of the built functions, as processes and in containers (ARGS="-k word": some of them)
	@PYTHON_DOTENV_DISABLED=1 exec $(python) -m pytest -m "runtime or sam_local" $(ARGS)

check: environment-dev ## Check style, types, layers, locks, API document, and that no secret is in the repository
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m mypy
	@.venv/bin/lint-imports --no-logo
	@sh infra/local/locks.sh check
	@$(python) -m pip check
	@$(python) -m margin_local.openapi --check
	@$(python) -m margin_local.supply_chain.secret_scan

fuzz: environment-dev ## Send what the API document allows and what it does not, for long (ARGS="--minutes 10"; ARGS="--seed 7 --minutes 0": again)
	@PYTHON_DOTENV_DISABLED=1 exec $(python) -m tests.fuzz $(ARGS)

audit: environment-dev ## Ask for known vulnerabilities of all locked packages (REQUIRE_AUDIT=1: fail where nobody can be asked)
	@REQUIRE_AUDIT="$(REQUIRE_AUDIT)" exec $(python) -m margin_local.supply_chain.audit $(ARGS)

sbom: build ## Build, and write what the layer and the migrate function hold into dist/ (CycloneDX)
	@mkdir -p dist
	@cp .aws-sam/build/MarginLayer/python/margin-layer.cdx.json .aws-sam/build/MigrateFunction/margin-migrate.cdx.json dist/
	@echo "Written: dist/margin-layer.cdx.json dist/margin-migrate.cdx.json"

bench: environment-dev ## Measure latency, throughput, memory and cold starts (ARGS="--only index --accounts 1000,10000": a part of it)
	@exec $(python) -m tests.benchmarks $(ARGS)

faults: environment-dev ## Kill, freeze and empty servers under load; nothing may be lost or doubled (ARGS="--scenario NAME": one of them)
	@PYTHON_DOTENV_DISABLED=1 exec $(python) -m tests.faults $(ARGS)

build: ## Build the functions and their layer for this machine, with the AWS SAM CLI
	@sh infra/local/sam.sh build --config-env local

sam-local: environment-run ## Run the functions and the stores in containers, until Ctrl-C (PORT=3000)
	@exec sh infra/local/sam-local.sh start-api

sam-invoke: environment-run ## Run one function in a container (FUNCTION=TradeFunction EVENT=events/trade_accepted.json)
	@exec sh infra/local/sam-local.sh invoke "$(FUNCTION)" "$(EVENT)"

sam-local-down: ## Remove the containers that these two left (ARGS=-v: the data too)
	@sh infra/local/sam-local.sh down $(ARGS)

deploy: environment-run ## Deploy to AWS (ENV=dev); asks about an environment that samconfig.toml does not know
	@exec sh infra/local/deploy.sh deploy "$(or $(ENV),dev)" $(ARGS)

destroy: ## Delete from AWS what was deployed (ENV=dev), after a question
	@exec sh infra/local/deploy.sh destroy "$(ENV)"

lock: environment-dev ## Bring the locks in line with pyproject.toml (UPGRADE=1: newest versions)
	@sh infra/local/locks.sh $(if $(UPGRADE),upgrade,write)

openapi: environment-run ## Write functions/status/openapi.json
	@exec $(python) -m margin_local.openapi

clean: ## Remove the environment and everything that tools wrote; the data in .data stays
	@rm -rf .venv .venv-sam .venv-lambda .aws-sam .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis .import_linter_cache dist
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

environment-run:
	@sh infra/local/environment.sh run

environment-dev:
	@sh infra/local/environment.sh dev
