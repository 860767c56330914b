"""Warp kernels whose blocks exchange messages through L2, forced on a GPU that has room for a team."""

import pytest
import torch

from fused_rnn import cuda

from ..conftest import Shape, operands, random_like, regularised
from ..test_cluster_kernels import ONE_PHASE as CELLS
from .test_clusters import assert_right

pytestmark = pytest.mark.gpu
# More tiles than teams, half empty ones, units that fill no row, and more steps than there are places for messages
SHAPES = [
    Shape(40, 19, 5, 1024),
    Shape(9, 40, 3, 1000),
    Shape(30, 5, 4, 777),
    Shape(30, 19, 4, 2048),
    Shape(9, 8, 4, 1500),
]
IN_FLOAT32 = [Shape(40, 40, 5, 512), Shape(9, 19, 3, 457)]
CASES = [(shape, dtype) for dtype in (torch.bfloat16, torch.float16) for shape in SHAPES]
CASES += [(shape, torch.float32) for shape in IN_FLOAT32]


@pytest.fixture(autouse=True)
def messages(place, monkeypatch):
    if not place.is_gpu or torch.cuda.get_device_capability(place.device) < (9, 0):
        pytest.skip("there is no GPU of compute capability 9.0")
    if torch.cuda.get_device_properties(place.device).multi_processor_count < 128:
        pytest.skip("the GPU has no room for a team of 128 blocks")
    monkeypatch.setenv(cuda.FORCED, "exchange=messages")


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_results_and_gradients(place, cell, shape, dtype, reverse):
    how, draws = {"scale": 1.0, "dtype": dtype, "reverse": reverse}, 2
    if cell == "rnn_relu":
        shape, draws = Shape(2, shape.B, shape.I, shape.H), 8  # fewer values that are within rounding of a kink
    assert_right(place, [place.operands(cell, shape, **how, seed=seed) for seed in range(draws)])


@pytest.mark.parametrize(
    ("hidden", "dtype", "draws"),
    [(1024, torch.bfloat16, 2), (1999, torch.bfloat16, 2), (500, torch.float32, 8)],
    ids=str,
)
@pytest.mark.parametrize("cell", CELLS[:3])
def test_lengths_zoneout_and_clipping(place, cell, hidden, dtype, draws, reverse):
    shape = Shape(7, 21, 5, hidden)
    how = {"dtype": dtype, "reverse": reverse, "lengths": [(5 * b) % (shape.T + 1) for b in range(shape.B)]}
    assert_right(place, [regularised(operands(cell, shape, **how, seed=s)).on(place.device) for s in range(draws)])


@pytest.mark.parametrize(
    ("hidden", "dtype"), [(1024, torch.bfloat16), (2048, torch.bfloat16), (512, torch.float32)], ids=str
)
@pytest.mark.parametrize("cell", CELLS)
def test_the_same_call_gives_the_same_bits(place, cell, hidden, dtype):
    """The bits are the same after many uses of each place for messages."""
    op = place.operands(cell, Shape(500, 19, 5, hidden), dtype=dtype)
    d_results = random_like(op.run(place.backend))
    first, *others = (op.results_and_gradients(place.backend, d_results) for _ in range(4))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other))
    cuda.raise_timed_out()
