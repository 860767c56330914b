"""Forced plans on a GPU: each is right, or refused if it does not fit; the description of the chip is true."""

import pytest
import torch

from fused_rnn import cuda

from ..conftest import Shape, random_like, relative_error

pytestmark = pytest.mark.gpu


FORCED = ["sequences=8,parts=1", "sequences=16,parts=3", "sequences=32,parts=40,segments=4", "sequences=24,parts=8"]


@pytest.mark.parametrize("forced", FORCED)
def test_forced_plans(place, cell, forced, monkeypatch):
    op = place.operands(cell, Shape(7, 37, 33, 130))
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    monkeypatch.setenv(cuda.FORCED, forced)
    assert relative_error(op.results_and_gradients(place.backend, d_results), exact) < 1e-11


@pytest.mark.parametrize(("forced", "message"), [("parts=9999", "does not fit"), ("parts=some", "must be like")])
def test_plans_that_cannot_be(place, forced, message, monkeypatch):
    monkeypatch.setenv(cuda.FORCED, forced)
    op = place.operands("lstm", Shape(2, 3, 4, 5000))
    if place.is_gpu:
        with pytest.raises(RuntimeError, match=message):
            op.run(place.backend)
    else:  # the CPU has no such plans
        op.run(place.backend)


def test_the_chip_is_the_one_that_is_here(place):
    if not place.is_gpu:
        pytest.skip("there is no GPU")
    chip, properties = cuda.current_chip(), torch.cuda.get_device_properties(place.device)
    assert chip.multiprocessors == properties.multi_processor_count
    assert chip.shared_bytes == properties.shared_memory_per_block_optin
    plan = cuda.plan("lstm", torch.bfloat16, 64, 512)
    assert plan.blocks <= chip.multiprocessors
    assert plan.shared_bytes <= chip.shared_bytes
