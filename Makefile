# The two commands a newcomer types: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# two processes, a test file each: every test computes with one thread
PARALLEL := -n 2 --dist loadfile
# what was compiled stays, whatever the environment says: the tests once, segrow for its own processes
test test-slow: export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-slow test-oldest bench gpu lint format clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev,lite0,coco]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/segrow demo --out demo

test: $(STAMP)
	$(BIN)/pytest $(PARALLEL) -m "not slow" --durations=10

test-slow: $(STAMP)
	$(BIN)/pytest $(PARALLEL) -m slow --durations=10

# with the oldest permitted version of every package that segrow needs, in an environment of its own
OLDEST ?= .venv-oldest
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) -c 'import re, tomllib; needs = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]; \
	print(*(re.sub(r"\[.*\]", "", each).replace(">=", "==") for each in [*needs, "setuptools<81"]), sep="\n")' \
	> $(OLDEST)/oldest.txt
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check --constraint $(OLDEST)/oldest.txt \
	--editable ".[dev,lite0,coco]"
	$(OLDEST)/bin/pytest $(PARALLEL) -m "not slow"

# ours beside the reference loop; fails when a ratio fell below its floor (benchmarks/guard.json)
bench: $(STAMP)
	$(BIN)/python -m benchmarks

# on a machine with a GPU: everything that only a GPU shows, against the CPU and expectations, in nine minutes
gpu: $(STAMP)
	$(BIN)/python -m benchmarks.gpu

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OLDEST) demo runs build dist *.egg-info bench.json bench-growth.png gpu.json
