# What a developer runs. Everything it needs beside git, make, python3 and python3-venv it installs: Python packages into
# .venv and .venv-interop, Debian packages when root (scripts/debian-packages.txt).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo check test proto docs bench clean

# The first Python that is new enough; PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo "$$python" && break; done)
BIN := .venv/bin
RUN := $(BIN)/python -m

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 14

demo: .venv/installed ## the main job in half a minute: a build, lazy files, a second build, a restart
	@scripts/install_debian_packages.sh run
	@$(RUN) scripts.demo

check: .venv/checked ## formatting, types, import rules, fast tests
	@echo "== Formatting and lint"
	@$(RUN) ruff format --check --quiet .
	@$(RUN) ruff check --quiet .
	@echo "== Types"
	@$(RUN) mypy src tests bench scripts
	@echo "== Import rules"
	@$(BIN)/lint-imports --no-logo
	@echo "== Fast tests"
	@$(RUN) pytest -q tests/unit tests/model tests/fuzz

test: check .venv-interop/installed ## check, then everything with real mounts, real servers and crashes
	@scripts/install_debian_packages.sh run test
	@echo "== All other tests"
	@$(RUN) pytest -q tests --ignore=tests/unit --ignore=tests/model --ignore=tests/fuzz

proto: .venv/checked ## generate src/outputd/_proto from protos/
	@$(RUN) scripts.regenerate_protos

docs: .venv/installed ## generate docs/reference
	@$(RUN) scripts.generate_reference

bench: .venv/installed ## the measurements of bench/macro
	@$(RUN) bench.macro

clean: ## remove everything that these targets made, but for generated sources
	rm -rf .venv .venv-interop dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments; a file in each says for which pyproject.toml it was made

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: apt-get install python3 python3-venv" >&2; exit 1; }
	@echo "== Python environment .venv ($(PYTHON))"
	@$(PYTHON) -m venv .venv
	@$(RUN) pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(RUN) pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/checked: .venv/installed
	@echo "== Python packages for the checks and for generating protobuf code"
	@$(RUN) pip install --quiet --disable-pip-version-check --group check --group proto
	@touch $@

# Real servers of other projects, for tests/interop; apart, for their pins and ours need not agree.
.venv-interop/installed: pyproject.toml
	@echo "== Python environment .venv-interop (servers for tests/interop)"
	@$(PYTHON) -m venv .venv-interop
	@.venv-interop/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@.venv-interop/bin/python -m pip install --quiet --disable-pip-version-check --group interop
	@touch $@
