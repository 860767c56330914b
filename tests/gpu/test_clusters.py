"""The kernels of warps in clusters on a GPU that has clusters, forced: every compiled size, with every option."""

from dataclasses import replace
from statistics import fmean, median

import pytest
import torch

from fused_rnn import cuda

from ..conftest import Operands, Shape, operands, random_like, regularised, relative_error
from .places import Place

pytestmark = pytest.mark.gpu
OF_INPUT = ["multiplicative_lstm", "multiplicative_gru"]
PHASES = ["gru", "multiplicative_lstm_hidden", *OF_INPUT]  # cells whose steps exchange more than h
CELLS = ["lstm", "gru_reset_after", "rnn_tanh", "rnn_relu", *PHASES]
# Full tiles and half empty ones, more tiles than clusters, units that fill no row, every K
SHAPES = [
    *(Shape(9, 5, 12, 128), Shape(7, 16, 3, 64), Shape(5, 21, 8, 100), Shape(6, 33, 5, 256), Shape(6, 9, 5, 251)),
    *(Shape(5, 19, 4, 384), Shape(6, 40, 4, 512), Shape(4, 130, 4, 500), Shape(5, 17, 4, 768), Shape(4, 3, 4, 650)),
]
# Up to 128 features, or 256 of few units; that fill the blocks that own some, that fill whole rows, and that do not
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


def most_units(cell: str) -> int:
    """That kernels are compiled for."""
    return 512 if cell.startswith("multiplicative") else 768


CASES = [(cell, shape) for cell in CELLS for shape in SHAPES if most_units(cell) >= shape.H]
CASES += [(cell, shape) for cell in OF_INPUT for shape in MODULATED]


@pytest.fixture(autouse=True)
def clusters(place, monkeypatch):
    if not place.is_gpu or torch.cuda.get_device_capability(place.device) < (9, 0):
        pytest.skip("there is no GPU with clusters")
    monkeypatch.setenv(cuda.FORCED, "exchange=cluster")


def errors(place: Place, op: Operands) -> tuple[float, float]:
    """Of the kernels and of the reference in the same dtype."""
    d_results = random_like(op.run("reference"))
    exact = op.to(torch.float64).results_and_gradients("reference", d_results)
    ours, theirs = (op.results_and_gradients(name, d_results) for name in (place.backend, "reference"))
    return relative_error(ours, exact), relative_error(theirs, exact)


def assert_right(place: Place, draws: list[Operands]) -> None:
    """Over some draws the error is at most twice that of PyTorch.

    In the mean; with a ReLU in the median, because rounding may move a unit of some draw across its kink.
    """
    average = median if draws[0].cell == "rnn_relu" else fmean
    ours, theirs = map(average, zip(*(errors(place, op) for op in draws)))
    place.wait()
    cuda.raise_timed_out()
    assert ours <= 2 * theirs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("cell", "shape"), CASES, ids=str)
def test_results_and_gradients(place, cell, shape, dtype, reverse):
    how, draws = {"scale": 1.0, "dtype": dtype, "reverse": reverse}, 2
    if cell == "rnn_relu":
        shape, draws = replace(shape, T=2), 5  # fewer values, of which fewer are within rounding of a kink
    assert_right(place, [place.operands(cell, shape, **how, seed=seed) for seed in range(draws)])


@pytest.mark.parametrize("shape", SHAPES[::2], ids=str)
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "rnn_relu"])
def test_kernels_of_blocks_beside_them(place, monkeypatch, cell, shape):
    """Which a GPU runs no more where the others are ahead."""
    monkeypatch.setenv(cuda.FORCED, "exchange=blocks")
    assert_right(place, [place.operands(cell, shape, dtype=torch.bfloat16, seed=seed) for seed in range(2)])


@pytest.mark.parametrize("shape", [Shape(6, 21, 5, 128), Shape(6, 21, 5, 509), Shape(6, 21, 5, 256)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_zoneout_and_clipping(place, cell, shape, reverse):
    lengths = [(5 * b) % (shape.T + 1) for b in range(shape.B)]
    how = {"dtype": torch.bfloat16, "reverse": reverse, "lengths": lengths}
    assert_right(place, [place.operands(cell, shape, **how, seed=seed) for seed in range(2)])
    draws = [regularised(operands(cell, shape, **how, seed=seed)).on(place.device) for seed in range(2)]
    assert_right(place, draws)


DIVISIONS = ["parts=4", "parts=8", "parts=16", "parts=8,sequences=16", "parts=16,sequences=16"]


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_after", "gru", "rnn_tanh"])
def test_clusters_of_one_block(place, monkeypatch, cell):
    """Which have no room for the weights of multiplicative cells."""
    monkeypatch.setenv(cuda.FORCED, "exchange=cluster,parts=1")
    assert_right(place, [place.operands(cell, Shape(6, 30, 5, 120), dtype=torch.bfloat16, seed=s) for s in range(3)])


@pytest.mark.parametrize("forced", DIVISIONS)
@pytest.mark.parametrize("cell", ["lstm", *PHASES])
def test_every_division(place, monkeypatch, cell, forced):
    monkeypatch.setenv(cuda.FORCED, f"exchange=cluster,{forced}")
    assert_right(place, [place.operands(cell, Shape(6, 30, 5, 120), dtype=torch.bfloat16, seed=s) for s in range(3)])


@pytest.mark.parametrize("cell", CELLS)
def test_sizes_that_are_not_compiled_are_refused(place, cell):
    sizes = [(most_units(cell) + 8, 4), *([(512, 129), (256, 257)] if cell in OF_INPUT else [])]
    for hidden, features in sizes:
        with pytest.raises(RuntimeError, match="no kernel in clusters is compiled for H = "):
            place.operands(cell, Shape(3, 2, features, hidden), dtype=torch.bfloat16).run(place.backend)


@pytest.mark.parametrize("cell", ["lstm", *PHASES])
def test_the_same_call_gives_the_same_bits(place, cell):
    op = place.operands(cell, Shape(200, 40, 5, 512), dtype=torch.bfloat16)
    d_results = random_like(op.run(place.backend))
    first, *others = (op.results_and_gradients(place.backend, d_results) for _ in range(4))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other))


@pytest.mark.parametrize("cell", ["lstm", *PHASES])
def test_a_long_sequence(place, cell):
    """What reaches the gradients through many steps is as exact as PyTorch's."""
    assert_right(place, [place.operands(cell, Shape(512, 9, 4, 512), dtype=torch.bfloat16)])
