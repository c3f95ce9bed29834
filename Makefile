# make setup | demo | quick | test | pythons | lint | site | reproduce | report | gallery | soak | lock | audit
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup lock audit demo quick test pythons soak lint site reproduce format report gallery benchmarks clean

setup: .venv/.installed

# Versions stand in constraints.txt, and the hashes of their files in requirements.lock. torch has none there, because a
# wheel of it for CPUs is taken where pip's configuration offers one, and what it needs comes with it.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
.venv/.installed: pyproject.toml constraints.txt requirements.lock hatch_build.py
	$(PYTHON) -m venv .venv
	$(PIP) --constraint constraints.txt torch torchvision
	$(PIP) --no-deps --require-hashes --requirement requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# The hashes anew, after a change of constraints.txt or of the dependencies. What torch brings begins with cuda or nvidia.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--constraint constraints.txt --extra dev --extra docs pyproject.toml | \
		awk '/^[a-z]/ { kept = !/^(torch|torchvision|triton)==|^(cuda|nvidia)-/ } kept' >requirements.lock

demo: setup
	$(BIN)/opposing-signals demo

# Two processes, each of one thread, are faster than one of two; the tests of a module share what they train. A process
# that dies ends the tests: xdist's `loadfile` can wait for ever behind one that takes its place. The order is conftest's.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
test: setup
	$(PYTEST)

# What tells most in under a minute: the risk and its derivatives, records, finding, claims, optimizers and models.
QUICK := tests/signals $(wildcard tests/studies/test_*.py) tests/optim tests/models tests/curvature/test_eigen.py tests/training/test_progress.py \
	tests/record/test_record.py tests/record/test_quantities.py tests/test_rooms.py tests/curvature/test_risk.py tests/curvature/test_second_order.py tests/test_experiments.py
quick: setup
	$(PYTEST) -m "not slow" $(QUICK)

# Known vulnerabilities in what is installed.
audit:
	uvx pip-audit --disable-pip --require-hashes --requirement requirements.lock

# Runs killed, starved, damaged and poisoned at random, 200 times; 15 minutes.
soak: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --rounds 200 --out results/trust

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

# Every figure, those that the paper rests on first; SCALE=paper BUDGET=540 for a lease of ten minutes.
SCALE ?= cpu
reproduce: setup
	$(BIN)/opposing-signals reproduce --scale $(SCALE) $(if $(BUDGET),--budget $(BUDGET))

report: setup
	$(BIN)/opposing-signals report outputs results

# The page that is made of the results; a test holds it to them.
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
