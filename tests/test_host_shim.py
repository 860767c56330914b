"""The shim that runs CUDA kernels on the CPU: right kernels pass, and each fault seeded into one is reported."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from .conftest import find_nvcc, some_of

HERE = Path(__file__).parent / "host_shim"
CHECKS = [
    "recurrence",
    "product_bfloat16",
    "product_half",
    "shuffles",
    "exchange",
    "conversions",
    "indices",
    "bounded_wait",
    "hand_over",
    "transposition",
    "stored_matrices",
    "approximations",
    "passing_on",
    "words_of_messages",
    "cluster_sums",
    "gathering",
    "bounded_phase",
]
SANITIZERS = ["plain", "thread", "address"]
# A fault, the check whose kernel it breaks, the sanitizer that must report it, and the report: a regular expression,
# because the order of turns decides which error comes first.
FAULTS = [
    ("NO_GRID_BARRIER", "recurrence", "thread", "data race"),
    ("RELAXED_WAIT", "recurrence", "thread", "data race"),
    ("SINGLE_BUFFER", "recurrence", "thread", "data race"),
    ("NO_SYNCTHREADS", "recurrence", "thread", "data race"),
    ("NO_SYNCTHREADS", "recurrence", "plain", "wrong y"),
    ("NO_SYNCWARP", "product_half", "thread", "data race"),
    ("NO_COPY_WAIT", "recurrence", "plain", "wrong y"),
    ("SHARED_OVERRUN", "recurrence", "address", "heap-buffer-overflow"),
    ("ONE_NAMED_BARRIER", "hand_over", "plain", "arrives again at a named barrier"),
    ("ONE_NAMED_BARRIER", "hand_over", "thread", "arrives again at a named barrier|data race"),
    ("NO_NAMED_WAIT", "hand_over", "thread", "data race"),
    ("NO_SYNC_AFTER_STORE", "stored_matrices", "thread", "data race"),
    ("RELAXED_CLUSTER_BARRIER", "cluster_sums", "thread", "data race"),
    ("NO_LAST_CLUSTER_BARRIER", "cluster_sums", "plain", "the other block has ended"),
    ("NO_BARRIER_AFTER_INIT", "gathering", "plain", "the mbarrier has not been set up"),
    ("NO_PHASE_WAIT", "gathering", "plain", "wrong number|one arrival too many"),
    ("NO_PHASE_WAIT", "gathering", "thread", "data race"),
    ("WAIT_IN_BLOCK_SCOPE", "gathering", "thread", "data race"),
    ("ONE_COPY", "gathering", "thread", "data race"),
    ("WRONG_BYTES", "gathering", "plain", "more bytes have come|an mbarrier misses -48 bytes"),
    (
        "PUSH_IN_LAST_STEP",
        "gathering",
        "plain",
        "the block ends (with [0-9]+ pushes|while an mbarrier)",
    ),
    ("LEAVE_EARLY", "gathering", "plain", "the other block has ended|the block ends with [0-9]+ pushes"),
]
HANGS = {
    "return_early": "deadlock, all threads wait:",
    "meet_apart": "others wait at __syncthreads",
    "spin": "no end in sight",
    "load_misaligned": "misaligned address at load_l2",
    "arrive_twice": "a thread arrives again at a named barrier",
    "expect_others": "others expect 64 threads at the named barrier, not 32",
    "arrive_at_no_barrier": "named barriers are numbered 1 to 15, not 16",
    "arrive_twice_in_cluster": "a thread arrives twice at its cluster's barrier",
    "leave_others_in_cluster": "deadlock, all threads wait:",
    "push_nowhere": "the mbarrier has not been set up",
    "map_beyond_the_cluster": "the cluster has no block 2",
    "expect_twice": "an mbarrier",
    "expect_too_much": "an mbarrier cannot count so many bytes",
}
ENDS = {
    "arrive_and_leave": "a named barrier is half complete",
    "expect_in_vain": "an mbarrier misses 16 bytes",
}

Build = Callable[..., Path]


@pytest.fixture(scope="session")
def build(tmp_path_factory) -> Build:
    """Return a function that builds the checks with a sanitizer, once, and returns the program."""
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        pytest.skip(f"no C++ compiler: {compiler}")
    folder = tmp_path_factory.mktemp("host_shim")

    def compile_to(target: Path, *arguments: str | Path) -> Path:
        command = [compiler, "-std=c++17", "-Wall", "-Werror", *arguments, "-o", target]
        subprocess.run(command, check=True)
        return target

    @cache
    def runtime() -> Path:
        return compile_to(folder / "host_shim.o", "-O2", "-c", HERE / "host_shim.cpp")

    @cache
    def program(sanitizer: str) -> Path:
        flags = ["-O1", "-g1", f"-I{HERE}", "-DFUSED_RNN_WAIT_POLLS=1000", "-DFUSED_RNN_WAIT_CYCLES=1000"]
        if sanitizer != "plain":
            flags.append(f"-fsanitize={sanitizer}")
        return compile_to(folder / sanitizer, *flags, HERE / "checks.cpp", runtime())

    return program


def run(program: Path, check: str, seed: int = 0, fault: str = "") -> subprocess.CompletedProcess:
    result = subprocess.run(
        [program, check, str(seed), fault], check=False, capture_output=True, text=True, timeout=600
    )
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("ThreadSanitizer does not run with this kernel's address space randomisation")
    return result


@pytest.mark.parametrize("seed", some_of([0, 1, 2], 0))
@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("check", CHECKS)
def test_right_kernels_pass(build, check, sanitizer, seed):
    result = run(build(sanitizer), check, seed)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("seed", some_of([0, 1], 0))
@pytest.mark.parametrize(("fault", "check", "sanitizer", "report"), FAULTS, ids=[f"{f[0]}-{f[2]}" for f in FAULTS])
def test_seeded_faults_are_reported(build, fault, check, sanitizer, report, seed):
    result = run(build(sanitizer), check, seed, fault)
    assert result.returncode != 0
    assert re.search(report, result.stderr)


@pytest.mark.parametrize("sanitizer", ["plain", "thread"])
@pytest.mark.parametrize("check", HANGS)
def test_hangs_and_misuse_are_described(build, check, sanitizer):
    result = run(build(sanitizer), check)
    assert result.returncode == 1
    assert result.stderr.startswith("host_shim: ")
    assert HANGS[check] in result.stderr
    assert "block (0, 0, 0)" in result.stderr
    assert "kernels.h:" in result.stderr


@pytest.mark.parametrize("check", ENDS)
def test_blocks_that_end_in_the_middle_of_something_are_described(build, check):
    result = run(build("plain"), check)
    assert result.returncode == 1
    assert result.stderr.startswith(f"host_shim: the block ends while {ENDS[check]}")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_nvcc_compiles_the_same_kernels(tmp_path, architecture):
    target = tmp_path / "kernels.cubin"
    command = [
        find_nvcc(),
        "-std=c++17",
        "-Werror=all-warnings",
        f"-arch={architecture}",
        "-cubin",
        HERE / "kernels.cu",
    ]
    subprocess.run([*command, "-o", target], check=True)
    assert target.stat().st_size > 0
