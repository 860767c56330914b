"""The Triton backend without a GPU: its kernels interpreted and compiled, and the messages where it cannot run.

Triton's interpreter is on or off for a whole process, so the tests of results run in one of their own, beside the
processes that compile.
"""

import importlib
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fused_rnn
from fused_rnn import ops, triton_backend

from .conftest import some_of
from .triton_gate import ROOT, SHARED_BYTES, Case, Usage, compile_case, optional, run, translate_case

TRITONS = "3.6.0", "3.9.0"  # the oldest and the newest release that pyproject.toml allows
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def installed(package: str) -> tuple[int, int]:
    major, minor = importlib.import_module(package).__version__.split(".")[:2]
    return int(major), int(minor)


def start_python(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], cwd=cwd, env=environment, **pipes)


def run_python(*arguments: str, **options) -> tuple[int, str, str]:
    """Return the exit status, the output and the errors of a program."""
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


@pytest.mark.parametrize("version", ["3.5.1", "2.1", "4.0.0", "4.1.0a0+git1234"])
def test_a_triton_of_another_time_is_refused_with_the_reason(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    monkeypatch.setattr(triton_backend, "_missing", triton_backend._missing.__wrapped__)
    reason = f"Triton is {version}, and the kernels need at least 3.6 and less than 4 (pip install 'fused_rnn[triton]')"
    assert fused_rnn.backends()["triton"] == reason
    with pytest.raises(RuntimeError) as raised:
        fused_rnn.choose_backend("cpu", torch.float32, "triton")
    assert reason in str(raised.value)


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
    monkeypatch.setattr(fused_rnn.choice, "_obstacle", lambda backend, *_: obstacles[backend])
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


def test_multiplicative_cells_stream_beside_resets_where_registers_are_short(choose_plan):
    """They do in the backward pass, with more units than there are registers for."""
    for cell, I, H, resident in (
        ("multiplicative_gru", 64, 128, False),
        ("multiplicative_lstm_hidden", 1, 128, False),
        ("multiplicative_gru", 64, 64, True),
        ("multiplicative_lstm", 128, 64, True),
        ("gru", 1, 128, True),
    ):
        limit = SHARED_BYTES[90]
        backward, forward = (choose_plan(cell, torch.bfloat16, way, I, H, limit, resets=True) for way in (True, False))
        assert (backward.resident, forward.resident) == (resident, True)
        assert choose_plan(cell, torch.bfloat16, True, I, H, limit).resident


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


RESETS = frozenset(("resets", "h_reset", "c_reset"))
NARROWER = 64  # units of multiplicative cells whose weights stay on the chip beside resets


def largest_resident(cell: str, architecture: int) -> tuple[int, int]:
    """Return the I and H with the most weights that stay on the chip."""
    sizes = {"multiplicative_lstm": (128, 64), "multiplicative_gru": (64 if architecture == 90 else 32, 128)}
    sizes["multiplicative_lstm_hidden"] = (1, 128 if architecture == 90 else 64)
    return sizes.get(cell, (1, 128))


def cases() -> list[Case]:
    """Return cases of each cell and direction: resident on every architecture, and streamed in one dtype on each.

    The streaming kernels are compiled for sizes that 16 divides and for others, so both kinds of size are here.
    """
    found = []
    for cell, backward, architecture in itertools.product(ops.CELLS, (False, True), SHARED_BYTES):
        place = {"cell": cell, "backward": backward, "architecture": architecture}
        I, H = largest_resident(cell, architecture)
        if backward and "multiplicative" in cell and H > NARROWER:  # beside resets it streams
            found.append(Case(dtype=torch.bfloat16, I=I, H=H, without=RESETS, **place))
            H = NARROWER
        found.append(Case(dtype=torch.bfloat16, I=I, H=H, **place))
        dtype, size = (torch.float32, 79) if architecture == 80 else (torch.float16, 303)
        found.append(Case(dtype=dtype, I=size + backward, H=size + backward, **place))
    return [*found, Case("lstm", True, torch.float32, 90, 80, 80, tf32=True)]


def stands_for_others(case: Case) -> bool:
    """Return whether a case has weights on the newest architecture's chip, or is of the one cell tested in full."""
    return case.cell == "multiplicative_gru" or (case.architecture == 90 and case.dtype == torch.bfloat16)


def combinations() -> list[Case]:
    """Return each cell, direction, dtype and place of the weights, with no optional operand, all, or each alone.

    Operands are alone in a single dtype per place, because the translation depends only on whether a dtype has 32 bits,
    and all dtypes would be twice as many calls.
    """
    found = []
    for cell, backward in itertools.product(ops.CELLS, (False, True)):
        names = frozenset(optional(cell, backward))
        extremes, alone = [names, frozenset()], [names - {name} for name in names]
        for dtype, size in itertools.product((torch.float32, torch.bfloat16, torch.float16), (64, 304)):
            resident = size == 64
            if resident and dtype == torch.float32:
                continue  # float32 always streams
            more = alone if dtype == (torch.bfloat16 if resident else torch.float32) else []
            found += [Case(cell, backward, dtype, 90, size, size, without=w) for w in (*extremes, *more)]
    return found


def representatives() -> list[Case]:
    """Return a few cases for all: every kernel, and a cell of every structure, with no optional operand or all."""
    found = []
    for cell, backward, dtype, size, bare in (
        ("lstm", False, torch.float32, 304, True),
        ("multiplicative_gru", True, torch.float32, 80, False),
        ("multiplicative_lstm", False, torch.float16, 304, True),
        ("gru", False, torch.bfloat16, 128, False),
        ("gru_reset_after", True, torch.bfloat16, 128, True),
        ("multiplicative_lstm_hidden", True, torch.float16, 128, False),
    ):
        without = frozenset(optional(cell, backward)) if bare else frozenset()
        found.append(Case(cell, backward, dtype, 90, size, size, without=without))
    return found


@pytest.fixture(scope="session")
def interpreter(request):
    """The process that runs triton_interpreted.py."""
    arguments = ["-m", "pytest", "-p", "no:cacheprovider", "tests/triton_interpreted.py"]
    arguments += ["--exhaustive"] if request.config.getoption("--exhaustive") else []
    process = start_python(*arguments, TRITON_INTERPRET="1")
    yield process
    process.kill()


@pytest.fixture(scope="session")
def usages(interpreter, request) -> dict[Case, Usage]:
    """Return the resources of each case that is tested, compiled while the interpreter runs."""
    tested = [item.callspec.params["case"] for item in request.session.items if "usages" in item.fixturenames]
    return dict(zip(tested, run(compile_case, tested)))


@pytest.fixture(scope="session", params=some_of(TRITONS, TRITONS[0]))  # the installed one is mostly the newest
def triton(request, interpreter) -> Path | None:
    """Return the folder of that Triton version, which pip installs once, or None if it is the installed one."""
    if importlib.import_module("triton").__version__ == request.param:
        return None
    folder = ROOT / "build" / f"triton-{request.param}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as half_done:
            wanted = "--no-deps", "--target", f"{half_done}/triton", f"triton=={request.param}"
            status, _, errors = run_python("-m", "pip", "install", "--quiet", *wanted)
            if status != 0:
                pytest.skip(f"Triton {request.param} could not be installed: {errors.strip()}")
            Path(half_done, "triton").rename(folder)
    return folder


def check(usage: Usage | str, case: Case) -> None:
    assert isinstance(usage, Usage), usage  # otherwise it is the compiler's traceback
    assert usage.shared <= usage.promised <= SHARED_BYTES[case.architecture]
    assert 0 < usage.registers <= 255
    assert usage.stack == 0
    has_nonlinearity = "lstm" in case.cell or (case.cell != "rnn_relu" and not case.backward)
    assert bool(usage.approximate) == (has_nonlinearity and case.dtype != torch.float32)


@needs_triton
@pytest.mark.parametrize("case", some_of(cases(), *(case for case in cases() if stands_for_others(case))), ids=str)
def test_compiles_within_its_plan_without_spills_and_exact_in_float32(usages, case):
    check(usages[case], case)
    assert usages[case].resident == (case.dtype == torch.bfloat16)


@needs_triton
@pytest.mark.exhaustive
def test_every_combination_of_operands_is_translated(triton):
    results = zip(combinations(), run(translate_case, combinations(), triton))
    assert [f"{case}: {error}" for case, error in results if error is not None] == []


@needs_triton
def test_compiles_with_the_oldest_and_the_newest(triton):
    for case, usage in zip(representatives(), run(compile_case, representatives(), triton)):
        check(usage, case)


# Results ----------------------------------------------------------------------------------------------------


@needs_triton
def test_interpreted_kernels(interpreter):
    """All of triton_interpreted.py passes."""
    if installed("triton") < (3, 7) and installed("numpy") >= (2, 4):
        pytest.skip("the interpreter of Triton 3.6 needs numpy < 2.4")
    output, _ = interpreter.communicate()
    assert interpreter.returncode == 0, output[-10_000:]
    assert " passed" in output
