# Every command of the project. `make run` and `make test` set up what they need in .venv, without root.
#
# PYTHON=...  the interpreter to make .venv from (3.11 or newer, with its C headers); found when not given
# ARGS=...    more arguments for run, bench (the gateway's: --rounds 1), soak and fuzz
# CORE_ARGS=...  more arguments for bench, for pytest with the primitives: -k router
# pip reads its own configuration (index, mirrors, certificates); nothing here overrides it.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
SHELL := /bin/sh

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := FASTGATE_BUILT=1 $(BIN)/python -m pip install --quiet --quiet --constraint constraints.txt
SOURCES := $(shell find fastgate -name '*.pyx' -o -name '*.pxd' -o -name '*.h') setup.py
SAY := @printf '\033[2m· %s\033[0m\n'

.PHONY: help run test lint types unit bench soak fuzz sanitize docs build clean

help: ## prints this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.runtime ## starts the gateway on 127.0.0.1:8080 in front of its demo services
	@exec $(BIN)/fastgate demo $(ARGS)

test: lint types unit ## runs lint, type checks, architecture test and all tests

lint: $(VENV)/.dev ## runs ruff
	$(SAY) 'lint'
	@$(BIN)/ruff check --quiet .

types: $(VENV)/.dev ## runs mypy --strict, and compares the stubs of fastgate._core with the compiled modules
	$(SAY) 'types'
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m mypy.stubtest --concise --ignore-disjoint-bases fastgate._core

unit: $(VENV)/.dev ## runs all tests
	$(SAY) 'tests'
	@$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

bench: $(VENV)/.bench ## compares the primitives with other libraries, then the gateway with nginx and HAProxy
	@$(BIN)/python -m pytest benchmarks/core -q -p benchmark --benchmark-columns=median,iqr,ops $(CORE_ARGS)
	@$(BIN)/python -m benchmarks.gateway $(ARGS)

soak: $(VENV)/.dev ## runs the tests that take minutes: many reloads, many kills, constant memory
	@$(BIN)/python -m pytest -q -m soak $(ARGS)

fuzz: $(VENV)/.dev ## runs the property tests with a hundred times the examples
	@HYPOTHESIS_PROFILE=fuzz FASTGATE_HANG_S=7200 $(BIN)/python -m pytest -q -m hypothesis -o faulthandler_timeout=8000 $(ARGS)

sanitize: $(VENV)/.dev ## runs the tests of the primitives on a debug build with ASan and UBSan
	@rm -rf build/sanitize/fastgate build/sanitize/tests && mkdir -p build/sanitize
	@git ls-files --cached --others --exclude-standard fastgate tests docs examples setup.py pyproject.toml README.md LICENSE \
		| tar -cf - -T - | tar -xf - -C build/sanitize
	@cd build/sanitize && export FASTGATE_DEBUG=1 FASTGATE_SANITIZE=1 && \
		$(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace && \
		ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($${CC:-cc} -print-file-name=libasan.so) $$($${CC:-cc} -print-file-name=libstdc++.so)" PYTHONMALLOC=malloc \
		$(CURDIR)/$(BIN)/python -m pytest -q tests/core $(ARGS)

docs: $(VENV)/.dev ## generates docs/config.md and docs/plugin-reference.md
	@$(BIN)/python -m fastgate.cli.docs > docs/config.md
	@$(BIN)/python -m fastgate.cli.docs plugins > docs/plugin-reference.md

build: $(VENV)/.dev ## builds the wheel in dist/
	@rm -rf dist && $(BIN)/python -m build --no-isolation --wheel . >/dev/null && ls dist

clean: ## removes all build results, including .venv
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis .benchmarks
	@find fastgate tests benchmarks \( -name '*.so' -o -name '__pycache__' \) -prune -exec rm -rf {} +

# The stamps. Each says that one step was done after its sources last changed.

$(VENV)/.tools: constraints.txt
	@set -e; \
	command -v "$${CC:-cc}" >/dev/null || { echo 'fastgate needs a C compiler (cc): install gcc or clang, or set CC.' >&2; exit 1; }; \
	if [ ! -x $(BIN)/python ]; then \
		found=; seen=; \
		for candidate in $(if $(PYTHON),'$(PYTHON)',python3 python3.13 python3.12 python3.11 python3.14 python); do \
			says=$$("$$candidate" -c 'import importlib.util as u, os, sys, sysconfig; \
	v = "%d.%d" % sys.version_info[:2]; \
	lacks = "" if sys.version_info >= (3, 11) else "is " + v + ", 3.11 or newer is needed"; \
	lacks = lacks or ("" if u.find_spec("ensurepip") and u.find_spec("venv") else "lacks the venv module (Debian: python3-venv)"); \
	lacks = lacks or ("" if os.path.exists(sysconfig.get_path("include") + "/Python.h") else "lacks its C headers (Debian: python3-dev)"); \
	print(lacks or "ok")' 2>/dev/null) || says='cannot be run'; \
			if [ "$$says" = ok ]; then found=$$candidate; break; fi; \
			seen="$$seen\n  $$candidate: $$says"; \
		done; \
		[ -n "$$found" ] || { printf "fastgate needs Python 3.11 or newer with venv and C headers; give one with PYTHON=/path/to/python. Looked at:$$seen\n" >&2; exit 1; }; \
		printf '\033[2m· .venv from %s\033[0m\n' "$$("$$found" -c 'import sys; print(sys.executable, sys.version.split()[0])')"; \
		"$$found" -m venv $(VENV); \
	fi
	@$(PIP) setuptools cython
	@touch $@

$(VENV)/.built: $(VENV)/.tools $(SOURCES)
	$(SAY) 'compiling the extension (what changed; all of it takes a minute or two)'
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

$(VENV)/.packages: $(VENV)/.tools pyproject.toml constraints.txt
	$(SAY) 'installing the pinned packages'
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
		| $(PIP) -r /dev/stdin
	@touch $@

$(VENV)/.runtime: $(VENV)/.packages | $(VENV)/.built
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime | $(VENV)/.built
	$(SAY) 'installing what the tests need'
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev | $(VENV)/.built
	$(SAY) 'installing what the benchmarks compare with'
	@$(PIP) --no-build-isolation --editable '.[dev,bench]'
	@touch $@
