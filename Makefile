# `make run` and `make test` each work alone on a machine with Python 3.11 and a package index.
PYTHON ?= $(shell for p in python3.11 python3 python3.13 python3.12; do \
    $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
EXTRAS := demo,fast,bench,dev
STAMP := $(VENV)/.installed

# Console scripts, `python` (Beam's worker pools start it by name) and prism are found here first.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# The demo and the tests need no model hub, and must not wait for one.
export HF_HUB_OFFLINE := 1
# Set, it makes every process compile the thousand modules of torch, transformers and Beam anew: seconds each.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install run test test-all test-fast lint format prism clean

help:  ## show this list
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ {printf "make %-10s %s\n", $$1, $$2}' Makefile

install: $(STAMP)  ## make .venv and install tokzip into it

$(STAMP): setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "tokzip needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing tokzip and what it stands on into $(VENV): some minutes, 6 GB"
	@# Modules are compiled when first imported; most of torch's never are.
	$(VENV)/bin/python -m pip --disable-pip-version-check --quiet install --no-compile \
	    --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

run: install  ## the whole job on a small corpus: text -> token blobs -> embeddings, into out/demo
	python -m pipelines.demo out/demo

test: lint  ## linters, types, every test; those of Prism and Redis where they are installed
	python -m pytest

test-all: export TOKZIP_REQUIRE_PRISM := 1
test-all: export TOKZIP_REQUIRE_REDIS := 1
test-all: prism test  ## the same, as CI does: builds Prism (needs go), and fails without redis-server

test-fast: install  ## the tests that take seconds
	python -m pytest -m 'not slow'

lint: install
	ruff check
	ruff format --check
	mypy --strict tokzip_core

format: install  ## rewrite the sources in the house style
	ruff check --fix
	ruff format

prism: install  ## build Beam's Prism runner of the pinned version into .venv (needs go)
	GOBIN=$(CURDIR)/$(VENV)/bin go install github.com/apache/beam/sdks/v2/go/cmd/prism@v$(shell sed -n 's/^apache-beam==//p' constraints.txt)

clean:  ## remove what make made, the virtual environment included
	rm -rf $(VENV) out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
