"""The CPU kernels of every instruction set that this processor has, and the choice among them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fused_rnn

from .conftest import some_of

INSTRUCTION_SETS = {
    "generic": [],
    "avx2": ["avx2", "fma"],
    "avx512": ["avx512f", "avx512bw", "avx512dq", "avx512vl"],
    "amx": ["avx512_bf16", "amx_tile", "amx_bf16"],
}
TESTS = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("ops", "few_rows", "lengths", "regularisation")]
TELL = "import torch, fused_rnn; print(torch.ops.fused_rnn.cpu_instruction_set())"


MAY_USE_TILES = "import ctypes; raise SystemExit(ctypes.CDLL(None).syscall(158, 0x1023, 18))"  # ARCH_REQ_XCOMP_PERM


def has_instruction_set(name: str) -> bool:
    """Whether the processor has it and the system lets a process use it, which sandboxes may refuse for AMX."""
    flags = re.search(r"^flags.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    has = set(INSTRUCTION_SETS[name]) <= set(flags[0].split() if flags else [])
    return has and (name != "amx" or run_python(["-c", MAY_USE_TILES]).returncode == 0)


def run_python(arguments: list[str], instruction_set: str | None = None) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "FUSED_RNN_CPU_ISA"}
    if instruction_set:
        environment["FUSED_RNN_CPU_ISA"] = instruction_set
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True)


def test_users_are_told_which_one_runs():
    assert fused_rnn.backends()["cpu"] == f"available ({torch.ops.fused_rnn.cpu_instruction_set()})"


@pytest.mark.parametrize("instruction_set", some_of(INSTRUCTION_SETS, "avx2", "avx512", "amx"))
def test_every_instruction_set(instruction_set, request):
    """The tests of results and gradients pass with the kernels of each instruction set that this processor has."""
    if not has_instruction_set(instruction_set):
        pytest.skip(f"this machine has no {instruction_set}")
    if instruction_set == torch.ops.fused_rnn.cpu_instruction_set() != "amx":
        pytest.skip("all other tests run with these kernels")
    assert run_python(["-c", TELL], instruction_set).stdout.strip() == instruction_set
    chosen = "width_equals_reference or saturated or across_panels or low_precision"
    more = []
    if request.config.getoption("--exhaustive"):
        chosen, more = f"{chosen} or float64_equals_reference or lengths_equal or saved_states", ["--exhaustive"]
    else:
        chosen += " and (lstm or gru_reset_after)"
    if instruction_set == "amx":  # AMX is for bfloat16
        chosen = "bfloat16 or bf16"
    run = run_python(["-m", "pytest", "-p", "no:cacheprovider", *TESTS, "-k", chosen, *more], instruction_set)
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout


def test_without_leave_to_use_amx():
    """Linux refuses AMX if a thread's signal stack cannot hold the registers; AVX-512 is used instead."""
    if not has_instruction_set("amx"):
        pytest.skip("this machine has no amx")
    small_stack = """if True:
        import ctypes
        class Stack(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
        memory = ctypes.create_string_buffer(8192)
        stack = Stack(ctypes.addressof(memory), 0, len(memory))
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
        """
    assert run_python(["-c", small_stack + TELL]).stdout.strip() == "avx512"
    assert run_python(["-c", TELL]).stdout.strip() == "amx"


def test_unknown_instruction_set_is_told():
    code = "import torch, fused_rnn; print(fused_rnn.backends()['cpu']); fused_rnn.LSTM(1, 1, backend='cpu')"
    run = run_python(["-c", code + "(torch.zeros(1, 1, 1))"], "mmx")
    assert run.returncode != 0
    assert run.stdout.startswith("fused_rnn: FUSED_RNN_CPU_ISA names none of")
    assert "FUSED_RNN_CPU_ISA" in run.stderr
