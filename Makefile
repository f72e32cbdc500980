# Everything a newcomer needs: `make demo`, `make test`. Before a commit: `make check`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' app/__init__.py)
SBOM ?= dist/sbom.cdx.json
RUN := PYTHONDONTWRITEBYTECODE=1 PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: help demo test check chaos fuzz soak bench format docs screenshots lock install image sbom clean
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.test ## run the worker on embedded PostgreSQL and Redis, with a live view (DEMO_SECONDS=60 ends by itself)
	@$(RUN) $(BIN)/python -m app.demo

test: $(VENV)/.test ## the whole suite on real servers that it starts itself
	@$(RUN) $(BIN)/python -m $(if $(PYTEST_ARGS),pytest $(PYTEST_ARGS),tests)

check: $(VENV)/.check ## format, lint, types, contracts, tests: the one command before a commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory test

chaos: $(VENV)/.test ## strike a whole deployment with faults, and check what is promised (ROUND=kill SEED=1 SECONDS=600)
	@$(RUN) $(BIN)/python -m tests.chaos $(if $(ROUND),--round $(ROUND)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(SECONDS),--seconds $(SECONDS)) $(if $(OUT),--out $(OUT))

fuzz: $(VENV)/.fuzz ## feed it what nobody should send, guided by coverage (SECONDS=60 a target)
	@$(RUN) $(BIN)/python -m tests.fuzz $(TARGET) $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS))

soak: $(VENV)/.test ## half an hour at ten times the usual rate: does anything grow? (MINUTES=30)
	@$(RUN) $(BIN)/python -m tests.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(OUT),--out $(OUT))

bench: $(VENV)/.test ## measure everything beside the best this machine can do: bench/results/ (BENCH_ARGS=--quick: 5 minutes)
	@$(RUN) $(BIN)/python -m bench $(BENCH_ARGS)

format: $(VENV)/.check ## rewrite the sources in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.test ## write the pages of docs/ that are made from the code
	@$(RUN) $(BIN)/sb-worker config --markdown > docs/configuration.md

screenshots: $(VENV)/.test ## take the pictures of the page in docs/ anew (needs chromium, chromium-driver, pngquant)
	@$(RUN) $(BIN)/python -m tests.page.screenshots

# Each set agrees with the one before it, whatever has been released meanwhile.
lock: ## resolve requirements/*.txt anew (needs uv)
	tests="--extra otel --extra test --extra demo --extra build"; before=; \
	for set in run "otel --extra otel" "test $$tests" "check $$tests --extra check" "fuzz $$tests --extra fuzz"; do \
	  set -- $$set; name=$$1; shift; \
	  uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	    --quiet $${before:+--constraint requirements/$$before.txt} "$$@" pyproject.toml \
	    --output-file requirements/$$name.txt; before=$$name; \
	done

install: $(VENV)/.run ## install what runs, and nothing else, into .venv: docs/deploying.md

# The same commit makes the same files: no time of now is in them.
image: ## build the container image (needs Docker with buildx)
	docker buildx build --tag secrets-bridge-worker:$(VERSION) \
	  --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
	  --build-arg SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) --output type=docker,rewrite-timestamp=true .

sbom: $(VENV)/.check ## list what the image's Python packages are, as CycloneDX: dist/sbom.cdx.json
	@mkdir -p $(dir $(SBOM))
	@sed 's/^dynamic = .*/version = "$(VERSION)"/' pyproject.toml > $(SBOM).toml
	@$(BIN)/cyclonedx-py requirements --output-reproducible --pyproject $(SBOM).toml --mc-type application \
	  --output-file $(SBOM) requirements/run.txt 2>/dev/null || { echo "requirements/run.txt cannot be listed" >&2; exit 1; }
	@rm $(SBOM).toml

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# A stock Debian has python3 and pip but no ensurepip: then pip installs into the new environment from outside.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || $(PYTHON) -m venv --clear --without-pip $(VENV)

# Sets `pip`, or ends the recipe.
FIND_PIP = if $(BIN)/python -m pip --version >/dev/null 2>&1; then pip="$(BIN)/python -m pip"; \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then pip="$(PYTHON) -m pip --python $(BIN)/python"; \
	else echo "pip is needed: apt-get install python3-pip, or python3-venv" >&2; exit 1; fi; \
	pip="$$pip install --quiet --disable-pip-version-check"

define install
	@$(FIND_PIP); \
	echo "installing the locked packages of requirements/$(1).txt"; \
	$$pip --require-hashes --requirement requirements/$(1).txt && \
	$$pip --no-deps --no-build-isolation --editable .
	@touch $@
endef

# Nothing is built: sources where they lie, and the program that the package would have.
$(VENV)/.run: $(VENV)/bin/python requirements/run.txt
	@$(FIND_PIP); \
	echo "installing the locked packages of requirements/run.txt"; \
	$$pip --require-hashes --requirement requirements/run.txt
	@echo "$(CURDIR)" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/sources.pth"
	@printf '#!%s/python\nfrom app.cli.entry import main\nmain()\n' "$(abspath $(BIN))" > $(BIN)/sb-worker
	@chmod 755 $(BIN)/sb-worker
	@touch $@

$(VENV)/.test: $(VENV)/bin/python requirements/test.txt pyproject.toml
	$(call install,test)

$(VENV)/.fuzz: $(VENV)/.test requirements/fuzz.txt
	$(call install,fuzz)

$(VENV)/.check: $(VENV)/bin/python requirements/check.txt pyproject.toml
	$(call install,check)
	@touch $(VENV)/.test
