# Everything runs in .venv, made from the lock: `make demo`, `make test`. Needs Python 3.11 or later and make.
#
#   make PYTHON=/path/to/python3.12 test     another interpreter
#   make VENV=/tmp/ksi-venv test             another place for the environment
#   make test ARGS="-k routing -x"           arguments for pytest

VENV ?= .venv
ARGS ?=

# The first interpreter that is new enough and can make an environment (Debian splits ensurepip off).
USABLE := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	if $$p -c '$(USABLE)' >/dev/null 2>&1; then echo $$p; break; fi; done)

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test check fmt docs mcpb bench lock clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):[^#]*## */  make \1\t/'

# Hashes are in the lock, so pip accepts exactly those files; the project itself is built with the locked hatchling.
$(STAMP): pyproject.toml requirements.lock
	@if ! "$(PYTHON)" -c '$(USABLE)' >/dev/null 2>&1; then \
		echo "ksi_mcp needs Python 3.11 or later with the venv module (found: $$("$(PYTHON)" --version 2>&1 || true))." >&2; \
		echo "Install it (Debian, Ubuntu: apt install python3 python3-venv) or name one: make PYTHON=/path/to/python3.12 ..." >&2; \
		exit 1; fi
	@echo "== $(VENV): installing from requirements.lock"
	"$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch "$(STAMP)"

setup: $(STAMP)  ## make the environment (done once, again when pyproject.toml or the lock changes)

demo: $(STAMP)  ## run the demonstration: no key, no network
	"$(BIN)/ksi-mcp" demo

test: $(STAMP)  ## run the tests
	"$(BIN)/python" -m pytest $(ARGS)

check: $(STAMP)  ## everything that CI checks: format, lint, types, layers, tests
	VENV="$(VENV)" scripts/check

fmt: $(STAMP)  ## format, and fix what can be fixed by itself
	"$(BIN)/ruff" check --fix-only --quiet
	"$(BIN)/ruff" format

docs: $(STAMP)  ## write what documents and manifests take from the code
	"$(BIN)/python" scripts/declare-tools
	"$(BIN)/python" scripts/generate-docs

mcpb: $(STAMP)  ## build the bundle for desktop clients (needs npx)
	"$(BIN)/python" scripts/build-mcpb

bench: $(STAMP)  ## run the benchmarks
	"$(BIN)/python" -m benchmarks $(ARGS)

# The only target that needs more than python3 and make: uv, which resolves for every Python and platform at once.
lock:  ## renew the lock files (needs uv; UPGRADE=--upgrade takes newer versions)
	uv pip compile pyproject.toml --extra test --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --quiet $(UPGRADE) -o requirements.lock
	uv pip compile pyproject.toml --extra browser --constraint requirements.lock --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-package ksi-mcp --custom-compile-command "make lock" --quiet \
		$(UPGRADE) -o requirements-browser.lock
	echo hatchling | uv pip compile pyproject.toml - --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --constraint requirements.lock --custom-compile-command "make lock" --quiet \
		-o packaging/requirements.lock

clean:  ## remove the environment and all caches
	rm -rf "$(VENV)" .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
