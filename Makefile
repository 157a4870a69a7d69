# `make help` lists the targets. GNU make.

# What the environments are made with; Python 3.10 or later.
PYTHON ?= python3
# A clone of yandex-cloud/cloudapi to make the stubs from, in place of protos/.
CLOUDAPI ?=
CLOUDAPI_URL ?= https://github.com/yandex-cloud/cloudapi
# Six tests at a time, also with fewer cores, as much of their time is spent waiting; each is
# given out when its turn comes. What is given on the command line takes the place of that: -k
# name or --pdb runs in one process.
PYTEST_ARGS ?= -n 6 --maxschedchunk 1
CHAOS_ARGS ?=
FUZZ_ARGS ?=
BENCH_ARGS ?=
# A recording of one's own, or a folder, for `make demo`.
DEMO_ARGS ?=

VENV := .venv
INTEROP_VENV := .venv-interop
# Stamps. Each is written last, so what was interrupted is begun again.
RUNTIME := $(VENV)/.runtime
TESTING := $(VENV)/.testing
LINTING := $(VENV)/.linting
DEMO := $(VENV)/.demo
BENCHING := $(VENV)/.benching
INTEROP := $(INTEROP_VENV)/.ready
STUBS := generated/SOURCE

.DEFAULT_GOAL := setup
.DELETE_ON_ERROR:
.PHONY: help setup generate cloudapi test chaos fuzz bench growth lint interop demo picture clean FORCE

help: ## List the targets.
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

setup: $(RUNTIME) $(STUBS) ## Make the environment and the stubs (the default).

generate: $(STUBS) ## Make the stubs from protos/, or from CLOUDAPI=path/to/cloudapi.

# A clone without history or unneeded contents is about 1 MB, so an update is a new clone:
# it takes the old one's place when complete, or not at all.
cloudapi: ## Clone or update yandex-cloud/cloudapi, and make the stubs from it.
	@rm -rf .cloudapi.new
	@said=$$(export GIT_TERMINAL_PROMPT=0; { \
	    git clone --quiet --depth 1 --filter=blob:none --sparse '$(CLOUDAPI_URL)' .cloudapi.new && \
	    git -C .cloudapi.new sparse-checkout set yandex/cloud/speechsense \
	        yandex/cloud/operation yandex/cloud/api third_party/googleapis; } 2>&1) || { \
	    rm -rf .cloudapi.new; \
	    echo "error: no clone of $(CLOUDAPI_URL), stubs left as they were:" \
	        "$$(printf '%s\n' "$$said" | grep -m 1 . )" >&2; exit 1; }
	@rm -rf .cloudapi && mv .cloudapi.new .cloudapi
	@$(MAKE) --no-print-directory generate CLOUDAPI=.cloudapi

test: $(TESTING) $(STUBS) ## Run the tests; PYTEST_ARGS="-k name" chooses.
	@$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

chaos: $(TESTING) $(STUBS) ## Cut connections and kill runs at random, and count the dialogs (10 minutes).
	@$(VENV)/bin/python tests/chaos.py $(CHAOS_ARGS)

fuzz: $(TESTING) $(STUBS) ## Feed 100,000 generated inputs to all that reads what others wrote (8 minutes).
	@$(VENV)/bin/python tests/fuzz.py $(FUZZ_ARGS)

bench: $(TESTING) $(STUBS) ## Measure, against the barest client, curl and others.
	@$(VENV)/bin/python tests/bench/run.py $(BENCH_ARGS)

growth: $(BENCHING) $(STUBS) ## Measure how cost grows with size and number, and draw it.
	@$(VENV)/bin/python tests/bench/run.py --growth $(VENV)/bin/python

lint: $(LINTING) $(STUBS) ## Check style (ruff) and types (mypy --strict).
	@failed=0; for check in 'ruff check' 'ruff format --check' \
	    'mypy --strict upload_grpc.py protos tests'; do \
	    $(VENV)/bin/python -m $$check || failed=1; done; exit $$failed

interop: $(TESTING) $(STUBS) $(INTEROP) ## Upload to a service of the official SDK, compare contracts.
	@$(VENV)/bin/python tests/interop/run.py $(INTEROP_VENV)/bin/python

# What the tests need is more than enough.
demo: $(or $(wildcard $(TESTING)),$(DEMO)) $(STUBS) ## Upload a sample, or DEMO_ARGS=call.wav, to a service on this machine.
	@DEMO_KEEP='$(DEMO_KEEP)' $(VENV)/bin/python tests/demo.py $(DEMO_ARGS)

picture: $(TESTING) $(STUBS) ## Make README's picture of a run anew.
	@$(VENV)/bin/python tests/picture.py

clean: ## Remove everything that make made.
	rm -rf $(VENV) $(INTEROP_VENV) .cloudapi .cloudapi.new
	rm -rf .pytest_cache .mypy_cache .ruff_cache
	find generated -mindepth 1 ! -name .gitignore -delete
	find . -name __pycache__ -prune -exec rm -rf {} +

# --- Stubs ---------------------------------------------------------------------------

# Other targets take the stubs that are there. Only who asks for `generate`, or names a
# CLOUDAPI, gets them made again because they came from another tree, or from an older
# state of it, or because they do not load.
ifneq ($(CLOUDAPI)$(filter generate,$(MAKECMDGOALS)),)
TREE := $(shell cd '$(or $(CLOUDAPI),protos)' 2>/dev/null && pwd -P)
REGENERATE := $(shell exec 2>/dev/null; [ '$(TREE)' = "$$(cat $(STUBS))" ] && \
    [ -z "$$(find '$(TREE)' -name '*.proto' -newer $(STUBS))" ] && \
    PYTHONPATH=generated $(VENV)/bin/python -c \
        'from yandex.cloud.speechsense.v1 import talk_service_pb2_grpc' || echo FORCE)
endif

$(STUBS): $(shell find protos -name '*.proto') protos/generate.py $(RUNTIME) $(REGENERATE)
	@$(VENV)/bin/python protos/generate.py '$(or $(CLOUDAPI),protos)' generated

# --- Environments --------------------------------------------------------------------

PIP_INSTALL := bin/python -m pip install --quiet --disable-pip-version-check

# FORCE, if the Python of the environment $(1) does not run (the system's has gone, say) or
# is another than the PYTHON asked for on the command line.
stale = $(shell version() { "$$1" -c 'import sys; print(sys.version)' 2>/dev/null; }; \
    has=$$(version '$(1)/bin/python') && $(if $(filter file,$(origin PYTHON)),true,\
    [ "$$has" = "$$(version '$(PYTHON)')" ]) || echo FORCE)

# An empty environment $(1). Made from nothing every time, as pip may take a package for
# a whole one that was half installed when it was interrupted.
define new_venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
    { echo "error: PYTHON=$(PYTHON) is not a Python 3.10 or later" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
    { echo "error: $(PYTHON) cannot make environments: apt-get install python3-venv" >&2; exit 1; }
@echo "Installing packages in $(1)"
@$(PYTHON) -m venv --clear $(1)
endef

$(RUNTIME): requirements.txt $(call stale,$(VENV))
	$(call new_venv,$(VENV))
	@$(VENV)/$(PIP_INSTALL) -r requirements.txt
	@touch $@

$(DEMO): tests/requirements-demo.txt $(RUNTIME)
$(TESTING): tests/requirements.txt tests/requirements-demo.txt $(RUNTIME)
$(LINTING): tests/requirements-lint.txt $(TESTING)
$(BENCHING): tests/bench/requirements.txt $(TESTING)
# requirements.txt once more, so that nothing added can move its packages out of range.
$(DEMO) $(TESTING) $(LINTING) $(BENCHING):
	@echo "Installing packages for $(patsubst .%,%,$(notdir $@)) in $(VENV)"
	@again=$$([ ! -e $@.begun ] || echo --force-reinstall); touch $@.begun; \
	    $(VENV)/$(PIP_INSTALL) $$again -r requirements.txt -r $<
	@mv $@.begun $@; touch $@

$(INTEROP): tests/interop/requirements.txt $(call stale,$(INTEROP_VENV))
	$(call new_venv,$(INTEROP_VENV))
	@$(INTEROP_VENV)/$(PIP_INSTALL) -r tests/interop/requirements.txt
	@touch $@
