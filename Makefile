# Needs Python >= 3.11 with pip and venv; everything else goes into .venv.
#   make install              all that the others need
#   make test                 checks and tests
#   make book                 run the notebooks, build the pages
# Variables, on the command line or in the environment:
#   PROFILE=smoke|laptop|paper    how much the notebooks compute; laptop by default
#   PYTHON=python3.12             the Python that makes .venv
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                                 the index that torch comes from; without it pip's own choice,
#                                 which on Linux is the CUDA build

# Images of Python often set this. Then nothing keeps what import compiles, and each kernel and each
# worker compiles torch and all the rest again: twice the time of a book.
unexport PYTHONDONTWRITEBYTECODE

PROFILE ?= laptop
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
STARTED := $(VENV)/.installing
# Compiling every module of every package takes longer than installing them; import compiles the
# few that are used.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check \
	-c constraints.txt

# The first that is new enough and can make environments (Debian splits venv off).
NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
FIND_PYTHON = for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done

# Tests are many small tensors: one thread a worker and one worker a core beats many threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

.DEFAULT_GOAL := help
.PHONY: help install test test-all test-pages test-dispatch lint book serve bench clean distclean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1#/p' Makefile | awk -F'#' '{printf "%-22s %s\n", $$1, $$2}'
	@echo "  Variables: PROFILE=smoke|laptop|paper  PYTHON=…  TORCH_INDEX=…  (see the Makefile's head)"

install: $(READY)  ## all packages, into .venv

test: lint  ## checks and tests, minutes
	$(PYTEST)

test-all: lint  ## the same with the slow tests
	$(PYTEST) --run-all

test-pages: $(READY)  ## the built pages in an installed Chromium, after make book
	$(PYTEST) --maxprocesses 2 --run-pages -m pages tests/browser

test-dispatch: $(READY)  ## numerical tests under each instruction set of this processor
	$(BIN)/python tests/dispatch.py -n auto --maxprocesses 8

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

book: $(READY)  ## run the notebooks at PROFILE, build the pages
	$(BIN)/flatnb book --profile $(PROFILE)

serve: $(READY)  ## show the built pages on localhost
	@test -e _build/html/index.html || { echo "make: no pages; build them: make book" >&2; exit 1; }
	$(BIN)/python -u -m http.server 8000 --bind 127.0.0.1 --directory _build/html

bench: $(READY)  ## our speed next to published packages
	$(BIN)/python -m benchmarks

clean:  ## remove built pages, runs and caches; keep .venv
	rm -rf _build build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf $(VENV)

# torch first and alone, so that only torch comes from TORCH_INDEX and the rest from pip's usual
# index; the second command finds it there and leaves it. $(STARTED) marks an install that was
# cut off: pip takes half-copied packages for whole ones, so .venv is then made again.
$(READY): pyproject.toml constraints.txt
	@set -e; python="$(or $(PYTHON),$$($(FIND_PYTHON)))"; \
	"$${python:-false}" -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "make: $${python:-no python found} is not a Python >= 3.11 with pip and venv." \
			"Install one (Debian: python3-venv), or name it: make PYTHON=/path/to/python3.12" >&2; \
		exit 1; }; \
	if [ -e $(STARTED) ]; then rm -rf $(VENV); fi; \
	mkdir -p $(VENV) && touch $(STARTED); \
	[ -x $(BIN)/python ] || "$$python" -m venv $(VENV)
	@echo "Installing into $(VENV): minutes the first time."
	@$(PIP) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch torchvision
	@$(PIP) -e '.[book,site,browser,dev,recipes,pretrained]'
	@mv $(STARTED) $@
