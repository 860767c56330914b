# One target per thing a person does. Each sets up what it needs: a virtual environment in .venv with torch and
# this package built in place. PYTHON picks the interpreter, VENV the environment, TORCH the version of torch.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.13.0
LINTERS := clang-format==23.1.5 ruff==0.17.6
BIN := $(VENV)/bin
CPP := $(shell find csrc -type f)
TEST_CPP := $(shell find tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: demo test bench lint format clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@echo "make demo    train every cell on the copy task and draw the pictures (about five minutes)"
	@echo "make test    run the test suite"
	@echo "make bench   measure speed and memory, and write the tables into README.md"
	@echo "make lint    check style; make format repairs it"

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

$(VENV)/linters: Makefile | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(LINTERS)
	@touch $@

demo: $(VENV)/installed
	$(BIN)/python -m benchmarks.copy_task --demo

# A process for each core; threads that wait do not spin, or the tests of threads would wait for the other processes.
test: $(VENV)/installed
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --dist loadfile

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.report

lint: $(VENV)/linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP) $(TEST_CPP)

format: $(VENV)/linters
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP) $(TEST_CPP)

clean:
	rm -rf build fused_rnn/_C.so *.egg-info $(VENV)/installed
