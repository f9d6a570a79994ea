# The two commands of the README are `make demo` and `make test`; each does all the set-up that a fresh machine needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Written last: without it, or when a file it depends on is newer, the set-up runs (again), keeping what is installed.
STAMP := $(VENV)/.cos-installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt
ARGS ?=
# Two test processes on two cores: threads inside each would only fight.
export OMP_NUM_THREADS ?= 1
# Tests start Python hundreds of times: what is compiled once is kept, whatever the caller's shell says.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint audit test-all test-fast test-slow test-detectron2 test-vllm faults bench completions reference docs clean

help:
	@echo "make demo         the whole road in small: scenes, annotate, train, eval, a table and a page (about 8 minutes on two cores)"
	@echo "make demo ARGS=--quick   the same stages on less data (about 2 minutes; proves nothing)"
	@echo "make test         lint, then all tests, with the time of each; test-fast and test-slow run a part of them"
	@echo "make test-detectron2   the detector detectron2 with the real package, in an environment of its own (5.5 GB)"
	@echo "make test-vllm    the engine openai against a real vLLM on a CPU, in an environment of its own (3 to 6 GB)"
	@echo "make setup        .venv with everything, leaves .venv/bin/cos (demo and test do this by themselves)"
	@echo "make lint         ruff (its security rules too), mypy, shellcheck, deptry, pip check, a search for secrets; the time of each"
	@echo "make audit        every pinned package against the database of known weaknesses (needs the network)"
	@echo "make faults       every bad input and injected fault, recorded anew in tests/*/*.tsv (a quarter of an hour)"
	@echo "make bench        the benchmarks"
	@echo "make completions  writes completions/commands.tsv again"
	@echo "make reference    writes docs/reference/cli.md again"
	@echo "make docs         the documents as a site, in site/"
	@echo "make clean        removes caches and built files; .venv and runs stay"

setup: $(STAMP)

# torch first and at its pin: resolved together with the rest, a newer build for another device could be chosen.
# pip would compile on one core what compileall does on all; what is no Python of this version (a template, say) stays as it is.
# DeepSpeed builds its operators when they are used, not here. lmms-eval and VLMEvalKit are never imported: tests read single
# functions out of their files (tests/reference/harness_source.py), so their dependencies stay away.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "cos needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | grep Python || echo not there)." \
	       "Name another one: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "setup: making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "setup 1/4: torch (the longest part)"
	@$(PIP) torch
	@echo "setup 2/4: build tools"
	@$(PIP) wheel setuptools hatchling editables
	@echo "setup 3/4: cos and its libraries"
	@$(PIP) --no-build-isolation -e '.[model,dev]' accelerate peft
	@echo "setup 4/4: DeepSpeed, and two harnesses' sources for the tests"
	@DS_BUILD_OPS=0 $(PIP) --no-build-isolation deepspeed
	@$(PIP) --no-deps lmms-eval ms-vlmeval
	@$(BIN)/python -m compileall -q -j 0 -x '/(tests|lmms_eval|vlmeval)/' $(VENV)/lib >/dev/null || true
	@$(BIN)/cos --version
	@touch $@

demo: $(STAMP)
	$(BIN)/cos demo $(ARGS)

# Each part says how long it took; the first that fails stops the rest.
timed = @start=$$(date +%s); $(MAKE) --no-print-directory $(1) || exit 1; \
	echo "== $(1): $$(( $$(date +%s) - start )) s"

test: $(STAMP)
	$(call timed,lint)
	$(call timed,test-all)

lint: $(STAMP)
	@BIN=$(BIN) .ci/lint

# Not part of lint, for it needs the network: each pin against the package index's database of advisories. What the database does
# not know fails, too: an audit that reached nothing found nothing.
audit: .venv-audit/bin/pip-audit
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

.venv-audit/bin/pip-audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --disable-pip-version-check --quiet 'pip-audit>=2.9'

# One process more than cores: some tests wait. Files go to the processes in the order of tests/conftest.py, not by their number
# of tests: few tests may be dear.
PYTEST = $(BIN)/python -m pytest -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist loadfile --no-loadscope-reorder --durations=15

# In one go: what the tests import and the processes share is made once.
test-all: $(STAMP)
	$(PYTEST) $(ARGS)

test-fast: $(STAMP)
	$(PYTEST) -m "not slow" $(ARGS)

# pytest ends with 5 when a selection holds no test, which is no failure here.
test-slow: $(STAMP)
	$(PYTEST) -m slow $(ARGS) || [ $$? -eq 5 ]

# Not part of `make test`: its torch and torchvision take 5.5 GB, and nothing else needs them.
test-detectron2: .venv-detectron2/.installed
	PYTHONPATH=.:tests .venv-detectron2/bin/python -m pytest --durations=5 tests/with_detectron2/adapter.py $(ARGS)

.venv-detectron2/.installed: tests/with_detectron2/install.sh tests/with_detectron2/requirements.txt
	tests/with_detectron2/install.sh .venv-detectron2 $(PYTHON)

# Not part of `make test` either: the server is 3 GB and takes a minute to start, once for each of three checkpoints.
test-vllm: $(STAMP) .venv-vllm/.installed
	PYTHONPATH=.:tests VLLM_PYTHON=.venv-vllm/bin/python $(BIN)/python -m pytest --durations=5 tests/with_vllm/serving.py $(ARGS)

.venv-vllm/.installed: tests/with_vllm/install.sh tests/with_vllm/requirements.txt
	tests/with_vllm/install.sh .venv-vllm $(PYTHON)

# Every bad input and every injected fault once, and what came of them into tests/bad/inputs.tsv and tests/faults/faults.tsv.
# ARGS="'store export'" takes the faults of that stage alone.
faults: $(STAMP)
	PYTHONPATH=.:tests $(BIN)/python -m bad.recorded $(ARGS)

bench: $(STAMP)
	@for file in benchmarks/*.py; do [ -e "$$file" ] || { echo "no benchmarks yet"; break; }; \
	  echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

completions: $(STAMP)
	$(BIN)/python -m cos_cli.completion.table completions

reference: $(STAMP)
	$(BIN)/python -m cos_cli.reference docs/reference/cli.md
	$(BIN)/python -m cos_cli.models_page docs/models.md

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

clean:
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find cos_cli cos_core tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +
