# Two commands on a fresh machine: `make demo` (the main job) and `make test`.
# TORCH picks the torch to install (any pip requirement), PYTHON the interpreter (3.10 to 3.12).
PYTHON ?= python3
TORCH ?= torch
WORLD ?= runs/world
RUN ?= runs/demo
ARGS ?=
N ?= 10000
# One test process per core, one thread each: threads of one core's share would wait for each other.
JOBS ?= $(shell nproc)
PYTEST := -n $(JOBS) --dist loadfile

V := .venv
# The oldest supported torch has a venv of its own; TORCH=... on the command line or in the environment replaces it.
OLDEST_TORCH := torch==2.11.0
CORE_TORCH := $(if $(filter command environment,$(firstword $(origin TORCH))),$(TORCH),$(OLDEST_TORCH))
CORE := .venv-core
BUILD_REQUIRES := setuptools wheel ninja cmake pybind11
NATIVE := setup.py CMakeLists.txt $(shell find cmake csrc -type f 2>/dev/null)
CORE_SOURCES := $(NATIVE) pyproject.toml $(shell find mim4d -name '*.py')
CORE_TESTS := tests/ops tests/nn tests/test_registration.py tests/test_compile.py tests/test_backends.py

# A stamp per requirement and per kind of build: another TORCH or MIM4D_BUILD is noticed.
sum = $(shell printf %s '$(1)' | cksum | cut -d ' ' -f 1)
stamp = $(1)/.torch-$(call sum,$(2))
built = $(1)/.built-$(or $(MIM4D_BUILD),auto)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-core lint format bench fuzz kernels gpu clean

help:
	@echo 'make demo        synthetic world -> pre-training -> $(RUN)/report.html (under 10 minutes on two cores)'
	@echo 'make test        every test that needs no GPU'
	@echo 'make test-core   builds and tests mim4d.ops and mim4d.nn alone on the oldest supported torch ($(OLDEST_TORCH))'
	@echo 'make setup       .venv with everything, native libraries built in place; later only what changed'
	@echo 'make lint        ruff, mypy, clang-format          make format   applies them'
	@echo 'make bench       op benchmarks on this machine: a table and a plot of ratios, only for results that are right'
	@echo 'make fuzz        random inputs for every op, N of them (N=100000)'
	@echo 'make kernels     registers, spills, shared memory and occupancy of every CUDA and Triton kernel; no GPU'
	@echo 'make gpu         on a machine with a GPU: tests, compute-sanitizer, ceilings, benchmarks, one step (PYTHON=python3)'
	@echo 'variables: TORCH="torch==2.13.0"  PYTHON=python3.12  MIM4D_BUILD=auto|cpu|cuda|none  ARGS="-k voxel_sample"'

# --- environment ------------------------------------------------------------------------------------------------------
$(call stamp,$(V),$(TORCH)):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 12) or sys.exit("mim4d: Python %d.%d found, 3.10 to 3.12 wanted; choose one with PYTHON=python3.12" % v)'
	test -x $(V)/bin/python || $(PYTHON) -m venv $(V)
	$(V)/bin/python -m pip install '$(TORCH)' $(BUILD_REQUIRES) 'numpy<2'  # nuscenes-devkit's bound; the core takes 2.x
	$(V)/bin/python -m pip list --format=freeze | grep '^torch==' > $(V)/constraints.txt  # no extra may replace it
	rm -f $(V)/.torch-* && touch $@

$(V)/.installed: pyproject.toml $(call stamp,$(V),$(TORCH))
	$(V)/bin/python -m pip install --quiet --no-build-isolation -c $(V)/constraints.txt -e '.[train,world,test,bench,dev]'
	rm -f $(V)/.built-* && touch $@ $(call built,$(V))

$(call built,$(V)): $(NATIVE) $(V)/.installed
	$(V)/bin/python setup.py --quiet build_ext --inplace
	rm -f $(V)/.built-* && touch $@

setup: $(V)/.installed $(call built,$(V))

# --- the main job -----------------------------------------------------------------------------------------------------
demo: setup
	$(V)/bin/mim4d world $(WORLD) --seed 0 --scenes 2 --seconds 4 --image-size 128x224
	$(V)/bin/mim4d pretrain --preset demo --data.root $(WORLD) --data.version v1.0-mini --out $(RUN) $(ARGS)

# --- checks -----------------------------------------------------------------------------------------------------------
test: setup
	OMP_NUM_THREADS=1 $(V)/bin/python -m pytest $(PYTEST) $(ARGS)

$(call stamp,$(CORE),$(CORE_TORCH)):
	test -x $(CORE)/bin/python || $(PYTHON) -m venv $(CORE)
	$(CORE)/bin/python -m pip install '$(CORE_TORCH)' $(BUILD_REQUIRES) numpy pytest pytest-xdist hypothesis
	rm -f $(CORE)/.torch-* && touch $@

# Not editable: what is tested is the built wheel, beside (not over) the libraries that `make setup` built in place.
$(call built,$(CORE)): $(CORE_SOURCES) $(call stamp,$(CORE),$(CORE_TORCH))
	$(CORE)/bin/python -m pip install --quiet --no-build-isolation --no-deps --force-reinstall .
	rm -f $(CORE)/.built-* && touch $@

test-core: $(call built,$(CORE))
	OMP_NUM_THREADS=1 $(CORE)/bin/pytest $(PYTEST) $(CORE_TESTS) $(ARGS)

lint: setup
	$(V)/bin/ruff check .
	$(V)/bin/ruff format --check .
	$(V)/bin/mypy
	$(V)/bin/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

format: setup
	$(V)/bin/ruff check --fix .
	$(V)/bin/ruff format .
	$(V)/bin/clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

fuzz: setup
	OMP_NUM_THREADS=1 $(V)/bin/python -m pytest -n $(JOBS) tests/ops/test_fuzz.py --fuzz $(N) $(ARGS)

# --- numbers ----------------------------------------------------------------------------------------------------------
bench: setup
	$(V)/bin/python -m benchmarks.run $(ARGS)

kernels: setup
	$(V)/bin/python -m benchmarks.kernels $(ARGS)
	$(V)/bin/python -m benchmarks.triton_kernels

# With the interpreter and the torch that are there: nothing is fetched, no environment is made. Parts can be run alone.
GPU_PARTS := $(addprefix gpu-,build test sanitize ceilings bench step)
.PHONY: $(GPU_PARTS)
gpu:
	$(PYTHON) -m benchmarks.gpu all $(ARGS)

$(GPU_PARTS): gpu-%:
	$(PYTHON) -m benchmarks.gpu $* $(ARGS)

clean:
	rm -rf build dist *.egg-info mim4d/*.so $(V)/.built-* $(CORE)/.built-*
