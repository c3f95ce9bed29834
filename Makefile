# make setup | demo | quick | test | pythons | lint | report | gallery | benchmarks
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo quick test pythons lint format report gallery benchmarks clean

setup: .venv/.installed

# Pins stand in constraints.txt; a wheel of torch for CPUs is taken where pip's configuration offers one.
.venv/.installed: pyproject.toml constraints.txt hatch_build.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/opposing-signals demo

# Two processes, each of one thread, are faster than one of two; the tests of a module share what they train. A process
# that dies ends the tests: xdist's `loadfile` can wait for ever behind one that takes its place.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 0

# What tells most in half a minute: the risk and its derivatives, records, finding, claims, optimizers and models.
QUICK := tests/signals tests/studies tests/optim tests/models tests/curvature/test_eigen.py tests/training/test_progress.py \
	tests/test_record.py tests/curvature/test_risk.py tests/curvature/test_second_order.py tests/test_experiments.py
quick: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 0 -m "not slow" $(QUICK)

# Set-up and an experiment on each Python that is here, and with the newest torch.
pythons:
	.ci/pythons

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

report: setup
	$(BIN)/opposing-signals report outputs results

# The pages that are made of results and configuration; tests hold them to these.
gallery: setup
	$(BIN)/opposing-signals gallery results
	$(BIN)/opposing-signals list --markdown > docs/experiments.md

benchmarks: setup
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/record_size.py

clean:
	rm -rf .venv outputs dist .pytest_cache .mypy_cache .ruff_cache
