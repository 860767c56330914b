"""The Triton backend without a GPU: its kernels interpreted and compiled, and what is said where it cannot run.

Triton's interpreter is on or off for a whole process, so the tests of results run in one of their own, beside the
processes that compile.
"""

import importlib
import importlib.util
import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

import fused_rnn
from fused_rnn import ops

from .triton_gate import SHARED_BYTES, Case, Usage, compile_case

ROOT = Path(__file__).parent.parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def installed(package: str) -> tuple[int, int]:
    major, minor = importlib.import_module(package).__version__.split(".")[:2]
    return int(major), int(minor)


def start_python(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], cwd=cwd, env=environment, **pipes)


def run_python(*arguments: str, **options) -> tuple[int, str, str]:
    """The exit status of a program, and what it printed."""
    process = start_python(*arguments, **options)
    output, errors = process.communicate()
    return process.returncode, output, errors


WITHOUT_LIBRARY = """
import torch, fused_rnn
assert "does not exist" in fused_rnn.backends()["cpu"]
assert fused_rnn.backends()["triton"].startswith("available")
fused = fused_rnn.GRU(3, 4, backend="triton")
plain = torch.nn.GRU(3, 4)
plain.load_state_dict(fused.state_dict())
x = torch.randn(2, 2, 3)
torch.testing.assert_close(fused(x)[0], plain(x)[0])
fused(x)[0].sum().backward()
plain(x)[0].sum().backward()
torch.testing.assert_close(fused.weight_hh_l0.grad, plain.weight_hh_l0.grad)
"""


@needs_triton
def test_no_compiled_library_is_needed(tmp_path):
    shutil.copytree(ROOT / "fused_rnn", tmp_path / "fused_rnn", ignore=shutil.ignore_patterns("*.so"))
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": str(tmp_path)}
    status, _, errors = run_python("-c", WITHOUT_LIBRARY, cwd=tmp_path, **environment)
    assert status == 0, errors


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # what an import of it then finds
import torch, fused_rnn
print(fused_rnn.backends()["triton"])
print(fused_rnn.LSTM(2, 3)(torch.zeros(2, 1, 2))[0].shape)
fused_rnn.LSTM(2, 3, backend="triton")(torch.zeros(2, 1, 2))
"""


def test_without_triton_the_rest_works_and_backends_says_so():
    _, output, errors = run_python("-c", WITHOUT_TRITON)
    status, shape = output.splitlines()
    assert status.startswith("Triton cannot be imported")
    assert "pip install 'fused_rnn[triton]'" in status
    assert shape == "torch.Size([2, 1, 3])"
    assert status in errors


@needs_triton
def test_cpu_tensors_are_refused_with_the_reason():
    if torch.cuda.is_available():
        status, reason = "available", "the tensors are on cpu"
    else:
        status = reason = "there is no GPU that Triton could compile for"
    assert fused_rnn.backends()["triton"] == status
    with pytest.raises(RuntimeError, match=f"backend 'triton' cannot run this call: {reason}"):
        fused_rnn.choose_backend("cpu", torch.float32, "triton")


def test_auto_takes_it_on_a_gpu_that_has_no_cuda_kernels(monkeypatch):
    obstacles = {"cuda": "no nvcc was found", "triton": None}
    monkeypatch.setattr(ops, "_obstacle", lambda backend, *_: obstacles[backend])
    choice = fused_rnn.choose_backend("cuda", torch.bfloat16)
    assert (choice.backend, choice.reason) == ("triton", "the fused Triton kernels run it")
    obstacles["triton"] = "Triton cannot be imported"
    choice = fused_rnn.choose_backend("cuda", torch.bfloat16)
    assert choice.backend == "reference"
    assert choice.reason.endswith("no nvcc was found; Triton cannot be imported")


# Plans ------------------------------------------------------------------------------------------------------


@pytest.fixture
def choose_plan():
    pytest.importorskip("triton")
    from fused_rnn.triton.plan import choose_plan

    return choose_plan


def test_weights_stay_on_the_chip_where_they_fit(choose_plan):
    def resident(cell, dtype, I, H, architecture=90):
        plans = [choose_plan(cell, dtype, backward, I, H, SHARED_BYTES[architecture]) for backward in (False, True)]
        assert plans[0].resident == plans[1].resident
        return plans[0].resident

    assert resident("lstm", torch.bfloat16, 999, 128)
    assert resident("lstm", torch.float16, 1, 1)
    assert not resident("lstm", torch.bfloat16, 1, 129)
    assert not resident("lstm", torch.float32, 1, 16)
    assert resident("rnn_relu", torch.bfloat16, 1, 256)
    assert not resident("rnn_relu", torch.bfloat16, 1, 257)
    assert resident("multiplicative_lstm", torch.bfloat16, 128, 64)
    assert not resident("multiplicative_lstm", torch.bfloat16, 32, 128)
    assert resident("multiplicative_lstm_hidden", torch.bfloat16, 999, 128)
    assert not resident("multiplicative_lstm_hidden", torch.bfloat16, 1, 128, architecture=80)
    assert resident("multiplicative_gru", torch.bfloat16, 64, 128)
    assert not resident("multiplicative_gru", torch.bfloat16, 64, 128, architecture=80)
    assert not resident("multiplicative_gru", torch.bfloat16, 129, 1)


@pytest.mark.parametrize("size", [1, 17, 64, 100, 128, 200, 256, 1000, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_size_has_a_plan_that_fits(choose_plan, cell, dtype, size):
    for limit in (64 << 10, 99 << 10, *SHARED_BYTES.values()):
        for backward in (False, True):
            assert choose_plan(cell, dtype, backward, size, size, limit).shared_bytes <= limit


def test_too_little_shared_memory_is_a_clear_error(choose_plan):
    message = r"need \d+ bytes of shared memory for cell 'lstm' in torch.bfloat16, and this device has 16384"
    with pytest.raises(RuntimeError, match=message):
        choose_plan("lstm", torch.bfloat16, False, 512, 512, 16 << 10)


@needs_triton
def test_neither_steps_nor_batch_recompile():
    """T and B are arguments whose values the compiler never sees."""
    from fused_rnn.triton import backward, forward

    kernels = forward.forward_resident, forward.forward_streamed, backward.backward_resident, backward.backward_streamed
    for kernel in kernels:
        by_name = {parameter.name: parameter for parameter in kernel.params}
        assert all(by_name[name].do_not_specialize and not by_name[name].is_constexpr for name in ("T", "B", "reverse"))


# Compilation ------------------------------------------------------------------------------------------------


def largest_resident(cell: str, architecture: int) -> tuple[int, int]:
    """I and H of the most weights that stay on the chip."""
    sizes = {"multiplicative_lstm": (128, 64), "multiplicative_gru": (64 if architecture == 90 else 32, 128)}
    sizes["multiplicative_lstm_hidden"] = (1, 128 if architecture == 90 else 64)
    return sizes.get(cell, (1, 128))


def cases() -> list[Case]:
    """Every cell and direction: with weights on the chip on every architecture, streamed in one dtype on each.

    The streaming kernels are compiled for sizes that 16 divides and for others, so both kinds of size are here.
    """
    found = []
    for cell, backward, architecture in itertools.product(ops.CELLS, (False, True), SHARED_BYTES):
        place = {"cell": cell, "backward": backward, "architecture": architecture}
        I, H = largest_resident(cell, architecture)
        found.append(Case(dtype=torch.bfloat16, I=I, H=H, **place))
        dtype, size = (torch.float32, 79) if architecture == 80 else (torch.float16, 303)
        found.append(Case(dtype=dtype, I=size + backward, H=size + backward, **place))
    return [*found, Case("lstm", True, torch.float32, 90, 80, 80, tf32=True)]


@pytest.fixture(scope="session")
def interpreter():
    """The process that runs triton_interpreted.py."""
    arguments = ["-m", "pytest", "-p", "no:cacheprovider", "tests/triton_interpreted.py"]
    process = start_python(*arguments, TRITON_INTERPRET="1")
    yield process
    process.kill()


@pytest.fixture(scope="session")
def usages(interpreter) -> dict[Case, Usage]:
    """What each case takes, compiled while the interpreter runs."""
    environment = os.environ.pop("TRITON_INTERPRET", None)
    try:
        with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
            return dict(zip(cases(), pool.map(compile_case, cases())))
    finally:
        if environment is not None:
            os.environ["TRITON_INTERPRET"] = environment


@needs_triton
@pytest.mark.parametrize("case", cases(), ids=str)
def test_compiles_within_its_plan_and_without_spills(usages, case):
    usage = usages[case]
    assert usage.resident == (case.dtype == torch.bfloat16)
    assert usage.shared <= usage.promised <= SHARED_BYTES[case.architecture]
    assert 0 < usage.registers <= 255
    assert usage.stack == 0


# Results ----------------------------------------------------------------------------------------------------


@needs_triton
def test_interpreted_kernels(interpreter):
    """All of triton_interpreted.py passes."""
    if installed("triton") < (3, 7) and installed("numpy") >= (2, 4):
        pytest.skip("the interpreter of Triton 3.6 needs numpy < 2.4")
    output, _ = interpreter.communicate()
    assert interpreter.returncode == 0, output[-10_000:]
    assert " passed" in output
