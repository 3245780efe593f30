# Two commands on a fresh machine (Python 3.11, make, git): `make demo` and `make test`. Both do all the set-up.
PYTHON ?= python3
BIN := .venv/bin
# Python keeps the bytecode of our modules even where the environment forbids it (containers often do): Ray starts
# hundreds of processes in the tests, and each would compile every module anew
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo article test test-fast lint check-types bench clean

demo: .venv/installed
	$(BIN)/retailray demo --out demo-run

article: .venv/installed  # the article's experiment on generated pictures; the report is in article-run/study
	$(BIN)/python -m retailray.article article-run
	$(BIN)/retailray study --config jobs/configs/article.yaml

test: .venv/installed-test
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not ray"
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m ray

test-fast: .venv/installed-test  # for the inner loop: no Ray, no S3 server, no whole commands, no real photos
	$(BIN)/python -m pytest -n auto -m "not ray and not s3 and not slow and not real"

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check-types: .venv/installed-test
	$(BIN)/mypy

BENCH ?= decode
bench: .venv/installed-test  # make bench BENCH=quality; each module says what it needs
	$(BIN)/python -m benchmarks.$(BENCH)

.venv/installed: pyproject.toml constraints.txt
	@echo "installing PyTorch, Ray and the rest into .venv; this takes some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[applications]'
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,dev]'
	touch $@

clean:
	rm -rf .venv demo-run article-run build *.egg-info
