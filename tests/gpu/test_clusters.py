"""The warp kernels in clusters, forced, on a GPU that has clusters: every compiled size, with every option."""

import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from fused_rnn import cuda

from ..conftest import Operands, Shape, operands, random_like, regularised, relative_error
from ..precision import Yardstick
from ..test_cluster_kernels import assert_finite_alike
from .places import FLOATS, Place

pytestmark = pytest.mark.gpu
OF_INPUT = ["multiplicative_lstm", "multiplicative_gru"]
PHASES = ["gru", "multiplicative_lstm_hidden", *OF_INPUT]  # cells whose steps exchange more than h
CELLS = ["lstm", "gru_reset_after", "rnn_tanh", "rnn_relu", *PHASES]
# Full tiles and half empty ones, more tiles than clusters, units that fill no row, every K
SHAPES = [
    *(Shape(9, 5, 12, 128), Shape(7, 16, 3, 64), Shape(5, 21, 8, 100), Shape(6, 33, 5, 256), Shape(6, 9, 5, 251)),
    *(Shape(5, 19, 4, 384), Shape(6, 40, 4, 512), Shape(4, 130, 4, 500), Shape(5, 17, 4, 768), Shape(4, 3, 4, 650)),
]
# Up to 128 features, or 256 with few units: some fill the blocks that own features, some fill whole rows, some do not
MODULATED = [
    *(Shape(6, 17, 128, 128), Shape(5, 9, 100, 250), Shape(5, 33, 64, 256), Shape(4, 19, 125, 384)),
    *(
        Shape(5, 40, 128, 512),
        Shape(4, 130, 72, 512),
        Shape(4, 9, 1, 509),
        Shape(5, 17, 256, 256),
        Shape(5, 9, 200, 100),
    ),
]


def most_units(cell: str, dtype: torch.dtype) -> int:
    """Return the largest number of units that kernels are compiled for."""
    if dtype == torch.float32:
        return 256
    return 512 if cell.startswith("multiplicative") else 768


def most_features(dtype: torch.dtype) -> int:
    """Return the largest number of features, if units are few."""
    return 128 if dtype == torch.float32 else 256


DTYPES = [torch.bfloat16, torch.float16, torch.float32]
CASES = [
    *((cell, shape, dtype) for dtype in DTYPES for cell in CELLS for shape in SHAPES),
    *((cell, shape, dtype) for dtype in DTYPES for cell in OF_INPUT for shape in MODULATED),
]
CASES = [
    (cell, shape, dtype)
    for cell, shape, dtype in CASES
    if most_units(cell, dtype) >= shape.H and (cell not in OF_INPUT or most_features(dtype) >= shape.I)
]


@pytest.fixture(autouse=True)
def clusters(place, monkeypatch):
    if not place.is_gpu or torch.cuda.get_device_capability(place.device) < (9, 0):
        pytest.skip("there is no GPU with clusters")
    monkeypatch.setenv(cuda.FORCED, "exchange=cluster")


def errors(place: Place, op: Operands) -> tuple[float, float]:
    """Return the errors of the kernels and of the reference in the same dtype."""
    d_results = random_like(op.run("reference"))
    exact = op.to(torch.float64).results_and_gradients("reference", d_results)
    ours, theirs = (op.results_and_gradients(name, d_results) for name in (place.backend, "reference"))
    return relative_error(ours, exact), relative_error(theirs, exact)


def assert_right(place: Place, draws: list[Operands]) -> None:
    """Assert that the error over some draws is at most twice that of PyTorch.

    The error is the mean, or with a ReLU that of the best draw, because rounding moves a unit of about every second
    draw across its kink, while a fault shows in all of them.
    """
    average = min if draws[0].cell == "rnn_relu" else fmean
    ours, theirs = map(average, zip(*(errors(place, op) for op in draws)))
    place.wait()
    cuda.raise_timed_out()
    assert ours <= 2 * theirs


@pytest.mark.parametrize(("cell", "shape", "dtype"), CASES, ids=str)
def test_results_and_gradients(place, cell, shape, dtype, reverse):
    how, draws = {"scale": 1.0, "dtype": dtype, "reverse": reverse}, 2
    if shape.I == 1:
        draws = 8  # a sequence's single m decides, so one draw says little
    if cell == "rnn_relu":
        shape, draws = replace(shape, T=2), 8  # with fewer values, fewer are within rounding of a kink
    assert_right(place, [place.operands(cell, shape, **how, seed=seed) for seed in range(draws)])


@pytest.mark.parametrize("shape", SHAPES[::2], ids=str)
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "rnn_relu"])
def test_kernels_of_blocks_beside_them(place, monkeypatch, cell, shape):
    """Block kernels are tested by force, because the choice no longer runs them where warp kernels are ahead."""
    monkeypatch.setenv(cuda.FORCED, "exchange=blocks")
    assert_right(place, [place.operands(cell, shape, dtype=torch.bfloat16, seed=seed) for seed in range(2)])


UNITS = [(hidden, torch.bfloat16) for hidden in (128, 509, 256)]
UNITS += [(hidden, torch.float32) for hidden in (128, 251, 256)]


@pytest.mark.parametrize(("hidden", "dtype"), UNITS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_zoneout_and_clipping(place, cell, hidden, dtype, reverse):
    shape = Shape(6, 21, 5, hidden)
    lengths = [(5 * b) % (shape.T + 1) for b in range(shape.B)]
    how = {"dtype": dtype, "reverse": reverse, "lengths": lengths}
    draws = 8 if cell == "rnn_relu" else 2
    assert_right(place, [place.operands(cell, shape, **how, seed=seed) for seed in range(draws)])
    count = 8 if dtype == torch.float32 else 2  # in float32 clipping makes single draws' errors large
    draws = [regularised(operands(cell, shape, **how, seed=seed)).on(place.device) for seed in range(count)]
    assert_right(place, draws)


# Divisions in 16 bits; and all divisions in float32, each with units and features for which it is chosen.
DIVISIONS = ["parts=4", "parts=8", "parts=16", "parts=8,sequences=16", "parts=16,sequences=16"]
SIZES_IN_FLOAT32 = [
    *((cell, 60, 5, "parts=1") for cell in CELLS if not cell.startswith("multiplicative")),
    *((cell, 60, 5, "parts=4,sequences=8") for cell in CELLS if cell not in OF_INPUT),
    *((cell, 120, 5, "parts=4,sequences=8") for cell in CELLS if cell not in OF_INPUT),
    *((cell, 128, 5, "parts=4,sequences=16") for cell in CELLS if not cell.startswith("multiplicative")),
    *((cell, 100, 5, "parts=8") for cell in CELLS),
    *((cell, 250, 5, "parts=8") for cell in CELLS if not cell.startswith("multiplicative")),
    *((cell, 256, 5, "parts=16") for cell in CELLS),
    *((cell, 125, 128, "parts=8") for cell in OF_INPUT),
    *((cell, 252, 125, "parts=16") for cell in OF_INPUT),
]


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_after", "gru", "rnn_tanh"])
def test_clusters_of_one_block(place, monkeypatch, cell):
    """A cluster of one block has no room for the weights of multiplicative cells."""
    monkeypatch.setenv(cuda.FORCED, "exchange=cluster,parts=1")
    assert_right(place, [place.operands(cell, Shape(6, 30, 5, 120), dtype=torch.bfloat16, seed=s) for s in range(3)])


@pytest.mark.parametrize("forced", DIVISIONS)
@pytest.mark.parametrize("cell", ["lstm", *PHASES])
def test_every_division(place, monkeypatch, cell, forced):
    monkeypatch.setenv(cuda.FORCED, f"exchange=cluster,{forced}")
    assert_right(place, [place.operands(cell, Shape(6, 30, 5, 120), dtype=torch.bfloat16, seed=s) for s in range(3)])


@pytest.mark.parametrize(("cell", "hidden", "features", "forced"), SIZES_IN_FLOAT32)
def test_every_size_in_float32(place, monkeypatch, cell, hidden, features, forced):
    monkeypatch.setenv(cuda.FORCED, f"exchange=cluster,{forced}")
    shape = Shape(2 if cell == "rnn_relu" else 6, 30, features, hidden)
    assert_right(place, [place.operands(cell, shape, dtype=torch.float32, seed=seed) for seed in range(3)])


@FLOATS
@pytest.mark.parametrize("cell", CELLS)
def test_sizes_that_are_not_compiled_are_refused(place, cell, dtype):
    sizes = [(most_units(cell, dtype) + 8, 4)]
    if cell in OF_INPUT:
        sizes += [(most_units(cell, dtype), 129), (256, most_features(dtype) + 1)]
    for hidden, features in sizes:
        with pytest.raises(RuntimeError, match="no kernel in clusters is compiled for H = "):
            place.operands(cell, Shape(3, 2, features, hidden), dtype=dtype).run(place.backend)


@pytest.mark.parametrize(("hidden", "dtype"), [(512, torch.bfloat16), (256, torch.float32)], ids=str)
@pytest.mark.parametrize("cell", ["lstm", *PHASES])
def test_the_same_call_gives_the_same_bits(place, cell, hidden, dtype):
    op = place.operands(cell, Shape(200, 40, 5, hidden), dtype=dtype)
    d_results = random_like(op.run(place.backend))
    first, *others = (op.results_and_gradients(place.backend, d_results) for _ in range(4))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other))


@pytest.mark.parametrize("cell", ["lstm", *PHASES])
def test_a_long_sequence(place, cell):
    """Gradients through many steps are as exact as PyTorch's."""
    assert_right(place, [place.operands(cell, Shape(512, 9, 4, 512), dtype=torch.bfloat16)])


# Every size of one cell, and the largest of every cell but the one with kinks
LONG = [case for case in SIZES_IN_FLOAT32 if case[0] == "lstm" or case[1] == 256]
LONG = [case for case in LONG if case[0] != "rnn_relu"]


@pytest.mark.parametrize(("cell", "hidden", "features", "forced"), LONG)
def test_a_long_sequence_in_float32(place, monkeypatch, cell, hidden, features, forced):
    """Rounding errors do not add up, though tensor cores may round all sums of 16 in the same direction."""
    monkeypatch.setenv(cuda.FORCED, f"exchange=cluster,{forced}")
    yardstick = Yardstick([place.operands(cell, Shape(1024, 9, features, hidden), dtype=torch.float32)])
    yardstick.assert_no_worse(lambda op, d_results: op.results_and_gradients(place.backend, d_results))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", ["weight_hh", "h_0", "input", "bias_ih"])
@pytest.mark.parametrize("cell", CELLS)
def test_infinities_and_nan_are_where_the_reference_has_them(place, cell, where, value):
    """In float32 some states have zero second and third terms, which times an infinite weight are NaN."""
    op = place.operands(cell, Shape(3, 9, 4, 250), dtype=torch.float32)
    with torch.no_grad():
        op.tensors["h_0"][1] = 0.5
        op.tensors[where].view(-1)[5] = value
        expected = op.run("reference")
        assert_finite_alike(op.run(place.backend), expected)
    assert not all(result.isfinite().all() for result in expected) or math.isinf(value)


# Excludes cases where a kernel multiplies by zero what torch omits, or by one the difference of two infinities
@pytest.mark.parametrize(
    ("cell", "value"), [("lstm", math.inf), *((cell, math.nan) for cell in CELLS if cell != "rnn_relu")]
)
def test_gradients_that_are_not_finite(place, cell, value):
    op = place.operands(cell, Shape(3, 9, 4, 250), dtype=torch.float32)
    d_results = random_like(op.run("reference"))
    d_results[0][1, 3, 7] = value
    expected = op.results_and_gradients("reference", d_results)
    assert_finite_alike(op.results_and_gradients(place.backend, d_results), expected)
    assert not expected[-1].isfinite().all()
