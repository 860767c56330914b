"""The exchange within a cluster and two kernels of warps that use it: on the host shim, and as nvcc compiles them."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from .conftest import find_nvcc
from .host_kernels import ROOT, SHIM, changed_tree

CLUSTER, SPLIT = "csrc/cuda/exchange/cluster.h", "csrc/cuda/exchange/split.h"
LSTM, SUMS = f"{SHIM}/warp_lstm.h", f"{SHIM}/warp_sums.h"
COMPILER = os.environ.get("CXX", "g++")
# By blocks of a cluster and shares of K
CHECKS = [f"lstm-{size}" for size in ("1-1", "1-2", "2-1", "2-2", "4-1", "4-2", "8-1", "8-2", "16-1", "16-4")]
CHECKS += [f"sums-{blocks}" for blocks in (1, 2, 4, 8, 16)]
# ThreadSanitizer's programs check results, too; the largest clusters take it long
LARGEST = ("lstm-16-4", "sums-16")
RUNS = [("plain" if check in LARGEST else "thread", check) for check in CHECKS]
RUNS += [("address", check) for check in ("lstm-1-2", "lstm-4-2", "lstm-16-4", "sums-4")]
# What is changed in which file how often, the check and the kind of program that must see it, and what that says
ENDS = "the other block has ended|the block ends (with [0-9]+ pushes|while an mbarrier)"
RACE = "data race"
FAULTS = {
    "no-wait": (CLUSTER, r"return Base::wait\(share, [^;]*;", "return true;", 2, "lstm-4-2", "thread", RACE),
    "no-wait-for-sums": (CLUSTER, r"return Base::wait\(0, [^;]*;", "return true;", 1, "sums-4", "thread", RACE),
    "wait-in-block-scope": (CLUSTER, "wait_for_phase", "wait_for_phase<false>", 1, "lstm-4-2", "thread", RACE),
    "one-copy": (CLUSTER, r"(made|read)\(\) \* copy_bytes", "0 * copy_bytes", 5, "lstm-4-2", "thread", RACE),
    "one-copy-of-sums": (CLUSTER, r"(made|read)\(\) \* copy_bytes", "0 * copy_bytes", 5, "sums-4", "thread", RACE),
    "too-few-bytes": (CLUSTER, r"expect\(share, ", "expect(share, -16 + ", 1, "lstm-4-2", "plain", "mbarrier"),
    "too-many-bytes": (
        CLUSTER,
        r"expect\(share, ",
        "expect(share, 16 + ",
        1,
        "lstm-4-2",
        "plain",
        "an mbarrier misses|flag of",
    ),
    "expected-twice": (LSTM, " && group_ == 0", "", 1, "lstm-4-2", "plain", "one arrival too many"),
    "push-in-the-last-step": (LSTM, r"if \(t \+ 1 < q_.steps\) h_.push", "h_.push", 1, "lstm-4-2", "plain", ENDS),
    "contribution-in-the-last-step": (SUMS, r"if \(!last\) multiply", "multiply", 1, "sums-4", "plain", ENDS),
    "block-leaves-early": (
        LSTM,
        r"(t < q_.steps; \+\+t\)) (step\(t\);)",
        r"\1 if (t == 2 && cluster_rank() == 1) return; else \2",
        1,
        "lstm-4-2",
        "plain",
        ENDS,
    ),
    "no-barrier-between-tiles": (
        LSTM,
        r"(team_.start\(\[&\] \{ load_state\(\); \}\);)",
        r"if (static_cast<unsigned>(tile) < gridDim.x / blocks) \1 else load_state(), __syncthreads();",
        1,
        "lstm-4-2",
        "thread",
        RACE,
    ),
    "one-named-barrier": (SPLIT, r"barrier_ \+ turn_", "barrier_", 3, "lstm-8-2", "thread", "arrives again|" + RACE),
    "one-buffer-of-shares": (SPLIT, r"turn_ \* buffer", "0 * buffer", 2, "lstm-8-2", "thread", RACE),
    "one-buffer-of-y": (SUMS, r"t % 2 \* 8", "0 * 8", 1, "sums-4", "thread", RACE),
}


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Callable[..., Path]:
    """A function that compiles warps.cpp of a tree; the shim's runtime goes without sanitizers, and is made once."""
    if not shutil.which(COMPILER):
        pytest.skip(f"no C++ compiler: {COMPILER}")
    runtime = tmp_path_factory.mktemp("runtime") / "host_shim.o"
    common = [COMPILER, "-std=c++17", "-Wall", "-Werror"]
    subprocess.run([*common, "-O2", "-c", ROOT / SHIM / "host_shim.cpp", "-o", runtime], check=True)

    def program(root: Path, target: Path, sanitizer: str, *flags: str) -> Path:
        shim = root / SHIM
        flags = [*flags, "-O1", "-g1", f"-I{shim}", "-DFUSED_RNN_WAIT_CYCLES=3000", "-DFUSED_RNN_DRAIN_CYCLES=500"]
        if sanitizer != "plain":
            flags.append(f"-fsanitize={sanitizer}")
        subprocess.run([*common, *flags, shim / "warps.cpp", runtime, "-o", target], check=True)
        return target

    return program


def run(program: Path, check: str, seed: int) -> subprocess.CompletedProcess:
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    command = [program, check, str(seed)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600, env=environment)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("ThreadSanitizer does not run with this kernel's address space randomisation")
    return result


@pytest.fixture(scope="module")
def programs(build, tmp_path_factory) -> Callable[[str], Path]:
    """A function of what watches the kernels that compiles them, once."""
    return cache(lambda kind: build(ROOT, tmp_path_factory.mktemp("warps") / kind, kind))


@pytest.mark.parametrize(("kind", "check"), RUNS)
def test_kernels_of_warps_are_right_and_without_races(programs, kind, check):
    for seed in (0, 1, 2) if kind == "plain" else (1,):
        result = run(programs(kind), check, seed)
        assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.parametrize("fault", FAULTS)
def test_seeded_faults_are_reported(build, tmp_path, fault):
    name, pattern, replacement, times, check, sanitizer, report = FAULTS[fault]
    tree = changed_tree(tmp_path, name, pattern, replacement, times)
    program = build(tree, tmp_path / "faulty", sanitizer, "-DSHORT")
    result = run(program, check, seed=1)
    assert result.returncode != 0
    assert re.search(report, result.stderr), result.stderr[-4000:]


def test_a_wait_that_fails_ends_the_kernel(build, tmp_path):
    """One block pushes nothing in a step: all others give up, in time, and no push comes to a block that has ended."""
    silent = r"if (t + 1 < q_.steps && !(t == 1 && cluster_rank() == 2)) h_.push"
    tree = changed_tree(tmp_path, LSTM, r"if \(t \+ 1 < q_.steps\) h_.push", silent, 1)
    program = build(tree, tmp_path / "silent", "plain", "-DSHORT")
    for seed in (0, 1, 2):
        result = run(program, "failing-lstm-4-2", seed)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("kernel", [LSTM, SUMS])
def test_kernels_know_nothing_of_how_the_exchange_works(kernel):
    text = (ROOT / kernel).read_text()
    assert not re.search(r"mbarrier|shared_address|address_in_block|cluster_barrier|barrier_(arrive|sync)|parity", text)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_nothing_is_spilled(tmp_path, architecture):
    """Everything stays in registers; for architectures without clusters the kernels are there, and empty."""
    command = [find_nvcc(), "-std=c++17", "-O3", "-Werror=all-warnings", f"-arch={architecture}", "-cubin"]
    command += ["-Xptxas", "-v", ROOT / SHIM / "warps.cu", "-o", tmp_path / "warps.cubin"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    kernels = report.count("Compiling entry function")
    assert kernels == 6
    assert report.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == kernels
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", report)]
    assert all((count > 32) == (architecture == "sm_90a") for count in registers)


def test_nvcc_compiles_the_checks(tmp_path):
    """The program that tests/gpu runs; without a GPU it says so."""
    command = [find_nvcc(), "-std=c++17", "-Werror=all-warnings", "-arch=sm_90a", "-DSHORT", "-x", "cu"]
    subprocess.run([*command, ROOT / SHIM / "warps.cpp", "-o", tmp_path / "warps"], check=True)
    result = run(tmp_path / "warps", "sums-4", 0)
    assert result.returncode == 0 or "cudaMallocManaged: " in result.stderr
