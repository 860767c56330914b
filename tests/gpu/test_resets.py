"""Episodes within sequences on a GPU: as exact as PyTorch, in every division of the work, and in a CUDA graph."""

from dataclasses import replace

import pytest
import torch

from ..conftest import LENGTHS, Shape, operands, random_like, regularised, relative_error, with_resets
from ..precision import Yardstick
from .places import EVERY_BACKEND, EVERY_SHAPE, FLOATS, Place, skip_unless_it_computes_in

pytestmark = pytest.mark.gpu


@EVERY_SHAPE
def test_float64_equals_reference(place: Place, cell, reverse, shape):
    op = with_resets(operands(cell, shape, reverse=reverse)).on(place.device)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(place.backend, d_results), exact) < 1e-11


@EVERY_BACKEND
@FLOATS
def test_error_is_at_most_twice_that_of_pytorch(place: Place, cell, dtype):
    """The calls have lengths and zoneout, and errors are means of several draws, of which rnn_relu needs the most."""
    skip_unless_it_computes_in(place, dtype)
    draws = []
    for seed in range(8 if cell == "rnn_relu" else 4):
        op = operands(cell, Shape(7, len(LENGTHS), 24, 72), lengths=LENGTHS, dtype=dtype, seed=seed)
        # calls without resets are tested with clipping
        draws.append(replace(regularised(with_resets(op)), gradient_clip=None).on(place.device))
    Yardstick(draws).assert_no_worse(lambda op, d_results: op.results_and_gradients(place.backend, d_results))


@EVERY_BACKEND
def test_where_no_episode_begins_nothing_changes(place: Place, cell):
    op = place.operands(cell, Shape(9, 5, 12, 72), dtype=torch.float32)
    d_results = random_like(op.run("reference"))
    never = replace(op, resets=torch.zeros(9, 5, dtype=torch.bool, device=place.device))
    first, second = (each.results_and_gradients(place.backend, d_results) for each in (op, never))
    # without resets cluster kernels may run, which sum in another order
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@EVERY_BACKEND
def test_a_graph_reads_the_boundaries_that_are_there_when_it_is_replayed(place: Place):
    op = with_resets(operands("lstm", Shape(9, 5, 12, 40), dtype=torch.float32)).on(place.device)
    d_results = random_like(op.run("reference"))
    replay = place.captured(lambda: op.results_and_gradients(place.backend, d_results))
    for share in (0.5, 0.0):
        op.resets.copy_(torch.rand(9, 5) < share)
        expected = op.results_and_gradients(place.backend, d_results)
        torch.testing.assert_close(replay(), expected)
