# One target per thing a person does. Each sets up what it needs: a virtual environment in .venv with torch and
# this package built in place. PYTHON picks the interpreter, VENV the environment, TORCH the version of torch, TORCHES
# the oldest and the newest one that test-dist tries.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.13.0
TORCHES ?= 2.11.0 2.15.0
TOOLS := clang-format==23.1.5 mypy==2.4.1 pdoc==16.0.0 ruff==0.17.6
BIN := $(VENV)/bin
CPP := $(shell find csrc -type f -not -name '*.md')
TESTS := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
TEST_CPP := $(shell find tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: demo headers test test-all bench lint format types docs dist test-dist clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@echo "On two cores, after the first build (CUDA kernels for 80 take two minutes, for 90a seven):"
	@echo "make demo    train five cells on the copy task and draw the pictures (three to five minutes)"
	@echo "make test    run the test suite (ten minutes), or all of it: make test-all (half an hour)"
	@echo "make bench   measure speed, memory and how cost grows; write the tables and pictures of the READMEs (half an hour)"
	@echo "make lint    check style; make format repairs it"
	@echo "make types   check the type hints of what users call"
	@echo "make docs    make the reference page in build/docs"
	@echo "make dist    build a source archive and wheels into dist/; make test-dist tries them in clean environments"

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; assert sys.version_info >= (3, 10)' || \
	  { echo "fused_rnn needs Python 3.10 or newer: set PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' || \
	  { echo "Python cannot make virtual environments: on Debian or Ubuntu, apt install python3-venv"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/torch-$(TORCH): | $(BIN)/python
	@command -v $${CXX:-g++} > /dev/null || { echo "no C++ compiler: on Debian or Ubuntu, apt install g++"; exit 1; }
	$(BIN)/python -m pip install --quiet torch==$(TORCH)
	@touch $@

# In-place build: Python sources are used as they lie here, the library is rebuilt when a C++ source is newer.
$(VENV)/installed: $(VENV)/torch-$(TORCH) setup.py pyproject.toml $(CPP)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/tools: Makefile | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TOOLS)
	@touch $@

demo: $(VENV)/installed
	$(BIN)/python -m benchmarks.copy_task --demo

# The tests compile models, for which torch.compile needs Python's headers.
headers: $(VENV)/installed
	@$(BIN)/python -c 'import os, sysconfig; assert os.path.exists(sysconfig.get_path("include") + "/Python.h")' || \
	  { echo "Python's headers are missing: on Debian or Ubuntu, apt install python3-dev"; exit 1; }

# A process for each core; threads that wait do not spin, or the tests of threads would wait for the other processes.
test: headers
	$(TESTS)

test-all: headers
	$(TESTS) --exhaustive

# Half an hour, on a machine that does nothing else.
bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.speed --single-steps
	$(BIN)/python -m benchmarks.speed --all-rivals
	$(BIN)/python -m benchmarks.speed --sweep
	$(BIN)/python -m benchmarks.speed --fills
	$(BIN)/python -m benchmarks.speed --resets
	$(BIN)/python -m benchmarks.report

lint: $(VENV)/tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP) $(TEST_CPP)

format: $(VENV)/tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP) $(TEST_CPP)

# The type hints of the public face.
types: $(VENV)/installed $(VENV)/tools
	$(BIN)/mypy

docs: $(VENV)/installed $(VENV)/tools
	$(BIN)/python -m pdoc --docformat google --no-show-source --output-directory build/docs fused_rnn

# The source archive, and of it a wheel without the CUDA kernels and, where there is nvcc, one with them.
dist: $(VENV)/installed
	rm -rf dist
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build --sdist
	FUSED_RNN_CUDA=0 $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist/cpu dist/*.tar.gz
	if command -v nvcc > /dev/null; then $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist/cuda dist/*.tar.gz; fi

test-dist: dist
	for torch in $(TORCHES); do for wheel in dist/*/*.whl; do \
	  rm -rf build/clean && "$(PYTHON)" -m venv build/clean && \
	  build/clean/bin/python -m pip install --quiet torch==$$torch $$wheel && \
	  build/clean/bin/python tests/clean_install.py || exit 1; done; done

clean:
	rm -rf build dist fused_rnn/_C.so *.egg-info $(VENV)/installed
