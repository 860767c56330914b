"""Calls that are refused, other GPUs, memory checkers, and these tests themselves on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fused_rnn import cuda

from ..conftest import Shape, operands, random_like, relative_error
from . import small_calls
from .places import EVERY_BACKEND, ON_CPU

pytestmark = pytest.mark.gpu


def test_tensors_on_different_devices_are_refused(place):
    op = place.operands("lstm", Shape(3, 2, 4, 5))
    for name in ("h_0", "c_0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        elsewhere = op.tensors[name].detach().to("cpu" if place.is_gpu else "meta")
        with pytest.raises(RuntimeError, match=f"{name} is on .* but input is on .*: move one of them"):
            op.run(place.backend, **{name: elsewhere})


def test_the_backend_of_another_device_is_refused(place):
    op = place.operands("gru", Shape(3, 2, 4, 5))
    with pytest.raises(RuntimeError, match=r"backend '\w+' cannot run this call: "):
        op.run("cpu" if place.is_gpu else "cuda")


def test_operators_refuse_what_they_cannot_read(place):
    """A direct caller gets an error and never reads out of bounds."""
    op = place.operands("lstm", Shape(2, 2, 3, 4))
    good = op.arguments()
    with pytest.raises(RuntimeError, match="unknown cell 'lstn'"):
        torch.ops.fused_rnn.forward(*good, "lstn", False, 0.0, "nothing")
    for index in range(1, 7):
        for wrong in (good[index].detach()[..., :-1], good[index].detach().float()):
            with pytest.raises(RuntimeError):
                torch.ops.fused_rnn.forward(*good[:index], wrong, *good[index + 1 :], "lstm", False, 0.0, "nothing")
    place.wait()


def test_second_gpu(place, cell):
    """A call on a GPU that is not the current one runs there, and leaves the current one as it was."""
    if place.is_gpu and torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    second = torch.device("cuda", 1) if place.is_gpu else place.device
    op = operands(cell, Shape(5, 3, 4, 40)).on(second)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(place.backend, d_results), exact) < 1e-11
    if place.is_gpu:
        assert torch.cuda.current_device() == 0
        with pytest.raises(RuntimeError, match="h_0 is on cuda:0 but input is on cuda:1"):
            op.run(place.backend, h_0=op.tensors["h_0"].detach().to("cuda:0"))


def test_nothing_gave_up_waiting(place):
    cuda.raise_timed_out()


@EVERY_BACKEND
@pytest.mark.slow
@pytest.mark.parametrize("tool", small_calls.TOOLS)
def test_compute_sanitizer_finds_nothing(place, tool):
    if place.is_gpu and not small_calls.sanitizer():
        pytest.skip("no compute-sanitizer")
    command = small_calls.command(str(place.device), place.backend, tool)
    run = subprocess.run(command, check=False, capture_output=True, text=True, env=small_calls.environment())
    if small_calls.failed_itself(run.stdout):
        pytest.skip(f"{tool} failed itself, after {run.stdout.count('returned')} calls in which it found nothing")
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert "all calls returned" in run.stdout


@pytest.mark.skipif(ON_CPU or torch.cuda.is_available(), reason="these tests run themselves")
def test_these_tests_on_the_cpu(request):
    """The tests themselves run on the CPU, so that a mistake in one is noticed without a GPU."""
    chosen = "not rnn_ and not gru and not hidden and not opcheck and not sanitizer"
    if not request.config.getoption("--exhaustive"):
        chosen += " and not multiplicative and not gradcheck and not double_backward"
        chosen += " and not test_training and not test_plans and not test_aot"  # their parts have tests on the CPU
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(Path(__file__).parent), "-k", chosen]
    environment = {**os.environ, "FUSED_RNN_GPU_TESTS": "cpu"}
    run = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout
