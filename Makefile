# `make demo` and `make test` are all that a fresh machine needs: each makes .venv by itself.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Test files side by side, each process on one thread.
WORKERS ?= 2
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test fuzz lint bench study study-quick audit-deps clean

$(VENV)/.demo: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) -e .
	@touch $@

# GPTQ's library builds a part of its own in C: where that fails, its tests are skipped and say so.
$(VENV)/.test: $(VENV)/.demo
	$(INSTALL) -e '.[test]'
	$(INSTALL) -e '.[all]' || echo "left out: the optional libraries (see the error above)"
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(INSTALL) -e '.[dev]'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/compleak-llm demo

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# 100,000 inputs for each parser, a nightly run; `make fuzz RUNS=1000` takes minutes, CPU_S=60 takes
# at most so much processor time for each, `make fuzz TARGET=recipe` is one of them. See
# benchmarks/fuzzing.md.
RUNS ?= 100000
CPU_S ?= inf
TARGET ?=

# Atheris has no wheels for every Python: without it hypothesis draws the inputs, and says so.
$(VENV)/.fuzz: $(VENV)/.test
	$(INSTALL) -e '.[fuzz]' || echo "left out: atheris (see the error above)"
	@touch $@

fuzz: $(VENV)/.fuzz
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --runs $(RUNS) --seconds $(CPU_S) $(TARGET)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks.floor --dtype float32,bfloat16
	$(BIN)/python -m benchmarks.scoring --dtype float32,bfloat16
	$(BIN)/python -m benchmarks.memory head
	$(BIN)/python -m benchmarks.memory records
	$(BIN)/python -m benchmarks.materialise
	$(BIN)/python -m benchmarks.audit

# CompLeak's question, asked of language models: hours, and it goes on after a stop; or minutes.
study: $(VENV)/.test
	$(BIN)/compleak-llm audit --recipe compleak-lm

study-quick: $(VENV)/.test
	$(BIN)/compleak-llm audit --recipe compleak-lm --quick

# The pinned versions against a list of known vulnerabilities: SOURCE is pypi or osv, both online.
# In an environment of its own, for it needs packages that this program does not. It fails where the
# list cannot be reached: nothing was checked then, which is no success.
SOURCE ?= pypi
AUDIT := $(VENV)/pip-audit

$(AUDIT)/bin/pip-audit:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1

audit-deps: $(AUDIT)/bin/pip-audit
	@$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off \
	    -s $(SOURCE) -r constraints.txt 2>$(AUDIT)/said; code=$$?; \
	if grep -q 'known vulnerabilit' $(AUDIT)/said; then grep 'known vulnerabilit' $(AUDIT)/said; exit $$code; fi; \
	echo "not checked: $(SOURCE) cannot be asked from here ($$(tail -n 1 $(AUDIT)/said | cut -c 1-120)); where there is internet: make audit-deps, or make audit-deps SOURCE=osv" >&2; \
	exit 2

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache runs/demo
