# Everything runs in .venv, which these targets make themselves. Nothing but Python 3.11+, git and make is needed.

PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11 python,\
	$(shell command -v $(name) >/dev/null 2>&1 && $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
UV := .venv/bin/uv
SYNC := UV_PROJECT_ENVIRONMENT=.venv VIRTUAL_ENV= $(UV) sync --frozen --inexact

.PHONY: help install demo test real-servers conformance schemathesis clients fuzz lint schema screenshots bench soak clean

help:
	@echo "make demo     see it work: a real model, real tool servers, one question (first run: about 140 MB)"
	@echo "make test     install what the tests need and run them"
	@echo "make real-servers  try MCP servers of others: needs node, npm and the network"
	@echo "make conformance  run the client and the server mode of the MCP conformance suite: needs npm and the network"
	@echo "make schemathesis  fuzz /tools/{name} by our own OpenAPI document: needs the network"
	@echo "make clients  try the clients of others, unchanged: needs node, npm, chromium and the network"
	@echo "make install  give yourself .venv/bin/toolway"
	@echo "make lint     ruff and mypy --strict"
	@echo "make fuzz     a million random and mutated inputs into all that reads from outside (ten minutes)"
	@echo "make schema   write docs/mcp.schema.json anew from the models of the settings"
	@echo "make screenshots  make the screenshots of docs/console.md anew: needs chromium"
	@echo "make bench    measure Toolway beside nginx, HAProxy, Envoy and a bare relay, in turn before one mock model server"
	@echo "make soak     an hour of many clients at once: does Toolway grow?"

install: .venv/.runtime
	@echo "Installed: .venv/bin/toolway. Begin with: .venv/bin/toolway init"

demo: .venv/.runtime-demo
	@.venv/bin/toolway demo

test: .venv/.with-demo
	.venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

FUZZ_INPUTS ?= 1000000
FUZZ_EXAMPLES ?= 2000
FUZZED := $(addprefix tests/unit/,$(addsuffix .py,conversation/test_mutated wire/test_sse conversation/test_message \
	schema/test_compile schema/test_arguments conversation/test_text_call_parser api/responses/test_mutated \
	api/responses/test_random api/test_confused wire/test_lenient_json tools/test_invoke)) tests/compat/quirks/test_rendered.py

fuzz: .venv/.installed
	.venv/bin/python -m tests.fuzz_long --inputs $(FUZZ_INPUTS)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) .venv/bin/python -m pytest --timeout=0 $(FUZZED)

lint: .venv/.installed
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

schema: .venv/.installed
	.venv/bin/python -m toolway.settings.mcp_json > docs/mcp.schema.json

screenshots: .venv/.installed
	.venv/bin/python -m tests.screenshots

real-servers: .venv/.installed
	@mkdir -p .real-servers
	@cd .real-servers && npm install --no-audit --no-fund --silent @modelcontextprotocol/server-everything @modelcontextprotocol/server-filesystem
	@test -x .real-servers/venv/bin/mcp-server-git || { .venv/bin/python -m venv .real-servers/venv && .real-servers/venv/bin/pip install --quiet mcp-server-git; }
	.venv/bin/python -m pytest tests/unit/tools/mcp/test_real_servers.py

conformance: .conformance/.installed
	.venv/bin/python -m tests.compat.conformance

.conformance/.installed: .venv/.installed tests/compat/conformance/package.json
	@mkdir -p .conformance
	@cp tests/compat/conformance/package.json .conformance/
	@cd .conformance && npm install --no-audit --no-fund --no-package-lock --silent
	@touch $@

schemathesis: .venv/.installed
	.venv/bin/python -m tests.compat.rest_fuzz

clients: .clients/.installed
	.venv/bin/python -m pytest tests/compat/clients

.clients/.installed: .venv/.installed tests/compat/clients/package.json $(wildcard tests/compat/clients/*.txt)
	@echo "Installing the clients into .clients (about 4 GB)"
	@mkdir -p .clients
	@cp tests/compat/clients/package.json .clients/
	@cd .clients && npm install --no-audit --no-fund --no-package-lock --silent
	@$(UV) venv --quiet --allow-existing .clients/venv
	@$(UV) pip install --quiet --python .clients/venv -r tests/compat/clients/requirements.txt
	@$(UV) venv --quiet --allow-existing --python '>=3.11,<3.13' .clients/open-webui
	@$(UV) pip install --quiet --python .clients/open-webui --overrides tests/compat/clients/open_webui_overrides.txt \
		-r tests/compat/clients/open_webui.txt
	@touch $@

bench: .venv/.installed
	.venv/bin/python -m bench.run

soak: .venv/.installed
	.venv/bin/python -m bench.soak

clean:
	rm -rf .venv bench/.work .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/uv:
	@test -n "$(PYTHON)" || { echo "Toolway needs Python 3.11 or newer; none was found. Say which: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { echo "python -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; rm -rf .venv; exit 1; }
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9

.venv/.runtime: .venv/bin/uv pyproject.toml uv.lock
	@echo "Installing what Toolway needs to run"
	@$(SYNC) --quiet --no-default-groups
	@touch $@

.venv/.runtime-demo: .venv/.runtime
	@echo "Installing the demo's model server and client"
	@$(SYNC) --quiet --no-default-groups --extra demo
	@touch $@

.venv/.installed: .venv/bin/uv pyproject.toml uv.lock
	@echo "Installing what Toolway needs"
	@$(SYNC)
	@touch $@

.venv/.with-demo: .venv/.installed
	@echo "Installing the demo's model server and client"
	@$(SYNC) --extra demo
	@touch $@
