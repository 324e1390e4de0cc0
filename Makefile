# One environment, made from the lock file; every target makes it if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
SOURCES := pipeline lightning_modules tests docs

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@echo "setting up $(VENV) from requirements.lock (a few minutes, several GB for torch)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(READY)

setup: $(READY) ## the environment, in .venv

demo: $(READY) ## plain against residual nets on handwritten digits: train, judge, draw
	@$(BIN)/repro run resnet/cifar10_depth --scale laptop

# One worker a core. A file stays on one worker, which keeps what it has trained and measured; tests/conftest.py sorts
# the files.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: $(READY) ## the tests, without the slow ones
	@$(PYTEST) --time-budget 5

test-slow: $(READY) ## all tests
	@$(PYTEST) -m "(slow or not slow) and not gpu"

test-gpu: $(READY) ## the tests that need a GPU
	@$(BIN)/python -m pytest -m gpu tests/gpu

coverage: $(READY) ## the tests with line coverage, worker processes included; htmlcov/index.html
	@$(BIN)/coverage erase
	@$(PYTEST) --cov --cov-report=term:skip-covered --cov-report=html

docs: $(READY) ## the documentation site, in site/; warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(READY) ## format, lint, types, import contracts
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

check: lint test ## what CI runs: format, lint, types, tests

format: $(READY) ## put the code in shape
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix $(SOURCES)

bench: $(READY) ## speed of one run and of several, beside a plain PyTorch loop (minutes; keep the machine quiet)
	@$(BIN)/python tests/benchmarks/training_speed.py
	@$(BIN)/python tests/benchmarks/suite_speed.py

bench-data: $(READY) ## speed of reading photographs, beside ImageFolder and WebDataset, and growth (20 minutes)
	@$(BIN)/python tests/benchmarks/reading_speed.py
	@$(BIN)/python tests/benchmarks/data_growth.py

bench-cluster: $(READY) ## scheduling on 1,000 made-up GPUs, and a leaderboard of 10,000 runs (20 minutes)
	@$(BIN)/python tests/benchmarks/scheduling.py
	@$(BIN)/python tests/benchmarks/leaderboard_speed.py

bench-cli: $(READY) ## wall time of the commands that only read, and of `repro run` with all runs finished (minutes)
	@$(BIN)/python tests/benchmarks/cli_speed.py

bench-report: $(READY) ## wall time of `repro report` with 2,000 runs (minutes)
	@$(BIN)/python tests/benchmarks/report_speed.py

lock: $(READY) ## resolve the dependencies anew
	@$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header \
		--extra dev --extra docs --quiet --upgrade --output-file requirements.lock pyproject.toml
	@$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --quiet \
		--extra s3 --constraint requirements.lock --output-file docker/requirements.lock pyproject.toml \
		docker/server.in

.PHONY: help setup demo test test-slow coverage docs lint check format bench bench-data bench-cluster bench-cli bench-report lock
