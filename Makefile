# make setup | demo | quick | test | pythons | lint | site | reproduce | report | gallery | soak | lock | audit
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup lock audit demo quick test pythons soak lint site reproduce format report gallery benchmarks clean

setup: .venv/.installed

# Versions are in constraints.txt, the hashes of their files in requirements.lock. torch and its dependencies have none
# there, because pip's configuration may offer a CPU wheel.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
.venv/.installed: pyproject.toml constraints.txt requirements.lock hatch_build.py
	$(PYTHON) -m venv .venv
	$(PIP) --constraint constraints.txt torch torchvision
	$(PIP) --no-deps --require-hashes --requirement requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# New hashes, after a change of constraints.txt or of the dependencies. torch's dependencies begin with cuda or nvidia.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--constraint constraints.txt --extra dev --extra docs pyproject.toml | \
		awk '/^[a-z]/ { kept = !/^(torch|torchvision|triton)==|^(cuda|nvidia)-/ } kept' >requirements.lock

demo: setup
	$(BIN)/opposing-signals demo

# Two processes of one thread each are faster than one of two; the tests of a module share their trained runs. A process
# that dies ends the tests: xdist's `loadfile` can hang after replacing one. conftest sets the order.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
test: setup
	$(PYTEST)

# The most telling tests, in under a minute: the risk and its derivatives, records, finding, claims, optimizers and models.
QUICK := tests/signals $(wildcard tests/studies/test_*.py) tests/optim tests/models tests/curvature/test_eigen.py tests/training/test_progress.py \
	tests/record/test_record.py tests/record/test_quantities.py tests/test_rooms.py tests/curvature/test_risk.py tests/curvature/test_second_order.py tests/test_experiments.py
quick: setup
	$(PYTEST) -m "not slow" $(QUICK)

# Known vulnerabilities in what is installed.
audit:
	uvx pip-audit --disable-pip --require-hashes --requirement requirements.lock

# Runs randomly killed, starved, damaged and poisoned, 200 times; 15 minutes.
soak: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --rounds 200 --out results/trust

# Set-up and an experiment on each installed Python, and with the newest torch.
pythons:
	.ci/pythons

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every figure, the paper's central ones first; SCALE=paper BUDGET=540 for a lease of ten minutes.
SCALE ?= cpu
reproduce: setup
	$(BIN)/opposing-signals reproduce --scale $(SCALE) $(if $(BUDGET),--budget $(BUDGET))

report: setup
	$(BIN)/opposing-signals report outputs results

# The page made from the results; a test keeps it in step with them.
gallery: setup
	$(BIN)/opposing-signals gallery results
	$(BIN)/opposing-signals sweep --all sweeps

# The documentation with the report of the committed results, outputs/site/index.html. A warning is an error.
site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --site-dir outputs/site

benchmarks: setup
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/record_size.py

clean:
	rm -rf .venv outputs dist .pytest_cache .mypy_cache .ruff_cache
