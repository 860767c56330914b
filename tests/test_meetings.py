"""The number of synchronisations of CPU threads: a wait lasts long if another program occupies one of the cores."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fused_rnn

# Counts the parallel regions that begin outside of others.
COUNTER = """
#include <dlfcn.h>
long regions = 0;
extern "C" void GOMP_parallel(void (*function)(void*), void* data, unsigned threads, unsigned flags) {
  static auto begin = (decltype(&GOMP_parallel))dlsym(RTLD_NEXT, "GOMP_parallel");
  static auto within = (int (*)())dlsym(RTLD_NEXT, "omp_in_parallel");
  if (!within()) ++regions;
  begin(function, data, threads, flags);
}
"""

# Prints the regions of the backward pass of one chunk of rows and of two, by module. Torch has none at these sizes.
PROGRAM = """
import ctypes, json, sys
import torch
import fused_rnn

regions = ctypes.c_long.in_dll(ctypes.CDLL(sys.argv[1]), "regions")
torch.set_num_threads(2)
found = {}
for name in sys.argv[2:]:
    module, found[name] = getattr(fused_rnn, name)(8, 16, backend="cpu"), []
    for steps in (16, 32):
        output, _ = module(torch.randn(steps, 32, 8, requires_grad=True))
        before = regions.value
        output.sum().backward()
        found[name].append(regions.value - before)
print(json.dumps(found))
"""
MODULES = ("RNN", "LSTM", "GRU", "MultiplicativeLSTM", "MultiplicativeGRU")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts what GNU's OpenMP is asked for on Linux")
def test_threads_meet_twice_for_a_chunk_of_a_backward_pass(tmp_path):
    """They meet after the steps, and after all products that read the steps' results."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler to make the counter with")
    source, library = tmp_path / "counter.cpp", tmp_path / "counter.so"
    source.write_text(COUNTER)
    subprocess.run([compiler, "-D_GNU_SOURCE", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    program = [sys.executable, "-c", PROGRAM, str(library), *MODULES]
    root = Path(fused_rnn.__file__).parents[1]
    counted = subprocess.run(
        program, env={**os.environ, "LD_PRELOAD": str(library)}, cwd=root, check=True, capture_output=True, text=True
    )
    found = json.loads(counted.stdout)
    assert {name: two - one for name, (one, two) in found.items()} == dict.fromkeys(MODULES, 2)
    assert all(one >= 2 for one, _ in found.values())
