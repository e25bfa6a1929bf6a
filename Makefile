# Everything a fresh machine needs: `make demo`, `make test`. It wants git, make, Python 3.11 to 3.13 and a package index.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# Demo and tests start clusters of their own, whatever cluster this shell points at.
unexport RAY_ADDRESS
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: demo test test-browser test-docs test-stress stress fuzz check audit install clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 to 3.13 found; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Draws a data set, trains on two workers, scores it, and says where everything is.
demo: .venv/installed
	$(BIN)/python jobs/demo.py

test: .venv/installed check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The commands of README and docs, on small pictures, and the notebook: thirteen minutes.
test-docs: .venv/installed
	$(BIN)/python -m pytest tests/docs

# The page in real Chromium, and the API against its description: two minutes.
test-browser: .venv/installed
	@test -n "$(CHROMIUM)$$(command -v chromium chromium-browser google-chrome)" || ls ~/.cache/ms-playwright/chromium* \
		>/dev/null 2>&1 || { echo "make: no Chromium found: apt-get install chromium, or $(BIN)/playwright install chromium"; exit 1; }
	$(BIN)/python -m pytest tests/browser

# Programs stopped at every file-system call, and processes killed in real runs: less than an hour. SEED= replays it,
# TRIES= bounds it, KINDS= kills these alone (see benchmarks/reliability.py). Writes benchmarks/reliability.md.
SEED ?= 0
stress: .venv/installed
	$(if $(KINDS),,SEED=$(SEED) $(BIN)/python -m pytest tests/stress/test_stops.py)
	$(BIN)/python benchmarks/reliability.py stress --seed $(SEED) $(if $(KINDS),--kinds $(KINDS)) $(if $(TRIES),--tries $(TRIES))

# What takes too long for `make test`: full disks, hanging processes, lost nodes, a bucket that fails, three machines in
# network namespaces, every architecture, bad images in number.
test-stress: .venv/installed
	$(BIN)/python -m pytest tests/stress --ignore tests/stress/test_stops.py

# Coverage-guided fuzzing of all that reads files, SECONDS= for each reader. Wheels of atheris are for Linux.
SECONDS ?= 60
READERS := decode read_bundle read_catalog read_part read_labels read_keys check_submission walk_archive read_parquet
fuzz: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	for reader in $(READERS); do $(BIN)/python tests/stress/fuzz.py $$reader --seconds $(SECONDS) || exit 1; done

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Compares the pinned versions with the public list of known vulnerabilities.
audit: .venv/installed
	$(BIN)/pip-audit --no-deps --disable-pip -r constraints.txt

clean:
	rm -rf .venv data/demo runs/demo
