"""The float32 warp kernels on the CPU, by the host shim: products of three bfloat16 terms, values, not rows."""

import ctypes
import math

import pytest
import torch

from fused_rnn import products

from .conftest import FEW_CELLS, Operands, Shape, operands, random_like, regularised, some_of
from .host_kernels import DIRECTIONS, HostKernels, Way, library_of, needs_compiler, plan_of, run_kernels
from .test_cluster_kernels import (
    CELLS,
    H200,
    LENGTHS,
    ONE,
    ONE_PHASE,
    WAITS,
    assert_all_the_same,
    assert_as_exact_as_pytorch,
    assert_finite_alike,
    assert_same_bits,
    drawn,
    way,
)

pytestmark = needs_compiler
F32 = torch.float32
# The compiled sizes: K, blocks of a cluster, shares of K, and octets of sequences; then with features
SIZES = [(32, 1, 1, 1), (32, 2, 1, 1), (64, 2, 2, 2), (64, 4, 1, 1), (128, 8, 4, 1), (256, 16, 2, 1)]
FEATURES = [(32, 1, 1, 1, 32), (32, 2, 1, 1, 32), (64, 4, 1, 1, 32)]
TEAM = (64, 4, 1, 1)  # by messages, in one team
WAYS = {
    "block": way(1),
    "cluster-of-2": way(2, 1, ONE),
    "cluster-of-4": way(4),
    "16-sequences": way(2, 2),
    "messages": Way(4, 232_448, "exchange=messages,parts=4,sequences=8", H200),
}


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> ctypes.CDLL:
    sizes = ",".join(f"Size<{','.join(map(str, size))}>" for size in SIZES + FEATURES)
    sizes += f",TeamSize<{','.join(map(str, TEAM))}>"
    flags = (f"-DFUSED_RNN_CLUSTER_SIZES={sizes}", "-DFUSED_RNN_MESSAGE_STEPS=4", "-DFLOATS", *WAITS)
    return library_of("clusters", tmp_path_factory, *flags, suffix="-of-floats")


def ways_of(cell: str) -> list[str]:
    """Return the ways that have kernels: x̂ of 16 sequences needs too many registers; messages have only one phase."""
    without = ["messages"] if cell not in ONE_PHASE else []
    without += ["16-sequences"] if cell.startswith("multiplicative") else []
    return [name for name in WAYS if name not in without]


CASES = [(cell, name) for cell in CELLS for name in ways_of(cell)]


def hidden_of(name: str) -> int:
    """Return a number of units that does not fill K."""
    return 29 if name in ("block", "cluster-of-2") else 43


# Correctness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("K", "blocks", "shares", "octets"), SIZES)
def test_every_size_is_chosen_by_what_forces_it(library, direction, K, blocks, shares, octets):
    plan = plan_of(library, direction, "lstm", Shape(3, 40, 1, K), way(blocks, octets), F32)
    assert (plan.exchange, plan.parts, plan.sequences, plan.segments) == ("cluster", blocks, 8 * octets, 1)
    assert (plan.teams, plan.workspace_bytes, plan.streamed) == (5 if octets == 1 else 3, 0, 0)


@pytest.mark.parametrize(("cell", "name"), some_of(CASES, *(case for case in CASES if case[0] in FEW_CELLS)))
def test_results_and_gradients(library, cell, name):
    T, count = (2, 5) if cell == "rnn_relu" else (5, 3)  # fewer values, so fewer within rounding of a kink
    assert_as_exact_as_pytorch(library, drawn(cell, Shape(T, 19, 21, hidden_of(name)), F32, count), WAYS[name])


@pytest.mark.parametrize(("blocks", "cell"), [(8, "lstm"), (8, "gru"), (16, "gru_reset_after"), (16, "lstm")])
def test_large_clusters(library, blocks, cell):
    assert_as_exact_as_pytorch(library, drawn(cell, Shape(3, 9, 2, 16 * blocks - 7), F32, count=1), way(blocks))


@pytest.mark.parametrize("shape", [Shape(1, 1, 1, 1), Shape(1, 9, 3, 30), Shape(13, 17, 24, 24)], ids=str)
@pytest.mark.parametrize("cell", some_of(CELLS, *FEW_CELLS))
def test_short_long_and_narrow(library, cell, shape, reverse):
    """Results are right for one step, more than are fetched ahead, and blocks without units."""
    draws = drawn(cell, shape, F32, count=8 if shape.H < 3 else 3, reverse=reverse)
    assert_as_exact_as_pytorch(library, draws, WAYS["cluster-of-2"])


def test_errors_do_not_grow_with_time(library):
    """Errors stay small over many steps of a state that hardly forgets."""
    assert_as_exact_as_pytorch(library, drawn("lstm", Shape(150, 8, 3, 32), F32), WAYS["block"])


@pytest.mark.parametrize(
    ("cell", "name"),
    some_of(
        [*((cell, "cluster-of-2") for cell in CELLS), ("lstm", "16-sequences"), ("lstm", "messages")],
        *(("gru_reset_after", "cluster-of-2"), ("multiplicative_gru", "cluster-of-2"), ("lstm", "messages")),
    ),
)
def test_lengths_zoneout_and_clipping(library, cell, name, reverse):
    """Clipping makes errors of single draws large, PyTorch's and ours, so more draws are compared."""
    draws = drawn(cell, Shape(5, len(LENGTHS), 3, hidden_of(name)), F32, 8, lengths=LENGTHS, reverse=reverse)
    assert_as_exact_as_pytorch(library, draws[:3], WAYS[name])
    assert_as_exact_as_pytorch(library, [regularised(op, drawn=reverse) for op in draws], WAYS[name])


# Small, large and non-finite numbers --------------------------------------------------------------------------------


def scaled(op: Operands, factor: float) -> Operands:
    """Multiply every operand of a call by a factor, in place."""
    with torch.no_grad():
        for tensor in op.tensors.values():
            tensor.mul_(factor)
    return op


@pytest.mark.parametrize("exponent", [-40, -12, 5])
def test_small_and_large_numbers(library, exponent):
    """Products of three terms are equally exact for every exponent; h shows them, because a ReLU has no bound."""
    draws = [scaled(op, 2.0**exponent) for op in drawn("rnn_relu", Shape(2, 9, 4, 30), F32, count=5)]
    assert_as_exact_as_pytorch(library, draws, WAYS["cluster-of-2"])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", ["weight_hh", "h_0", "input", "bias_ih"])
@pytest.mark.parametrize(
    "cell", some_of(["lstm", "gru", "rnn_relu", "rnn_tanh", "multiplicative_lstm"], "gru", "multiplicative_lstm")
)
def test_infinities_and_nan_are_where_the_reference_has_them(library, cell, where, value):
    """This includes values whose second and third terms are zero: times an infinite weight these would be NaN."""
    op = operands(cell, Shape(3, 9, 4, 29), dtype=F32)
    with torch.no_grad():
        op.tensors["h_0"][1] = 0.5
        op.tensors[where].view(-1)[5] = value
    exact = op.run("reference")
    d_results = random_like(exact)
    ours = run_kernels(op, d_results, HostKernels(library, WAYS["cluster-of-2"]))[: len(exact)]
    assert_finite_alike(ours, exact)
    assert not all(result.isfinite().all() for result in exact) or math.isinf(value)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_gradients_that_are_not_finite(library, value):
    op = operands("lstm", Shape(3, 9, 4, 29), dtype=F32)
    results = op.run("reference")
    d_results = random_like(results)
    d_results[0][1, 3, 7] = value
    ours = run_kernels(op, d_results, HostKernels(library, WAYS["cluster-of-2"]))
    assert_finite_alike(ours, op.results_and_gradients("reference", d_results))


# The same bits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "name"),
    [("lstm", "16-sequences"), ("lstm", "messages"), ("multiplicative_gru", "cluster-of-4")],
)
def test_order_of_threads_does_not_matter(library, cell, name):
    op = operands(cell, Shape(3, 19, 3, 40), dtype=F32, lengths=[3, 2, 0, 2] * 4 + [1, 3, 2])
    kernels = [HostKernels(library, WAYS[name], seed) for seed in range(2)]
    assert_all_the_same(op, *kernels)
    assert_all_the_same(regularised(op), *kernels)


@pytest.mark.parametrize("cell", some_of(CELLS, *FEW_CELLS))
def test_where_tensors_begin_does_not_matter(library, cell):
    """The input's gradient is left out: the order of sums in a product of the library may depend on the address."""
    op = operands(cell, Shape(7, 11, 8, 24), dtype=F32, lengths=[7, 6, 0, 1, 5, 7, 7, 2, 3, 6, 4])
    results = op.run("reference")
    d_results = random_like(results)
    runs = [run_kernels(op, d_results, HostKernels(library, WAYS["cluster-of-2"], misaligned=m)) for m in (False, True)]
    of_input = len(results) + list(op.tensors).index("input")
    for made in runs:
        del made[of_input]
    assert_same_bits(*runs)


@pytest.mark.parametrize("cell", ["lstm", "multiplicative_gru"])
def test_gives_out_cell_states_alone_or_nothing(library, cell):
    op, kernels = operands(cell, Shape(3, 11, 3, 24), dtype=F32), HostKernels(library, WAYS["cluster-of-2"])
    with torch.no_grad():
        expected, *runs = (
            products.forward(*op.arguments(), cell, False, 0.0, save, kernels=kernels)
            for save in ("everything", "states", "nothing")
        )
    for run in runs:
        given = [(a, b) for a, b in zip(run, expected) if a.numel()]
        assert given
        assert all(torch.equal(a, b) for a, b in given)


# Waits that fail ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", some_of(CELLS, *FEW_CELLS))
@torch.no_grad()
def test_a_state_that_does_not_arrive(library, cell):
    """Results that could not be computed are NaN, to the end and in later tiles."""
    op = operands(cell, Shape(6, 27, 3, 64), dtype=F32)
    for seed, lost in enumerate((1, 2500)):
        kernels = HostKernels(library, way(4, 1, ONE), seed, missing=lost)
        output, h_n, *_ = products.forward(*op.arguments(), cell, False, 0.0, "everything", kernels=kernels)
        assert output[5].isnan().all()
        assert h_n.isnan().all()
        if lost > 1 or cell in ONE_PHASE:  # otherwise the first step itself waits for the lost store
            assert not output[0, :8].isnan().any()


@pytest.mark.parametrize("cell", some_of(CELLS, *FEW_CELLS))
@torch.no_grad()
def test_a_sum_that_does_not_arrive(library, cell):
    op = operands(cell, Shape(6, 27, 3, 64), dtype=F32)
    how = (*op.arguments(), cell, False, 0.0)
    *results, saved = products.forward(*how, "everything", kernels=HostKernels(library, way(4, 1, ONE)))
    d_results = [d if d.numel() else None for d in random_like(results)]
    for seed in range(2):
        kernels = HostKernels(library, way(4, 1, ONE), seed, missing=1)
        made = products.backward(*d_results, results[0], results[3], saved, *how, True, False, kernels=kernels)
        d_input, *d_states = (d for d in made[:3] if d is not None and d.numel())
        for result in (d_input[0], *d_states):
            assert result.isnan().all()


# Unsupported plans --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_cannot_be_forced_says_what_there_is(library, direction):
    message = "kernels in clusters are for float32, bfloat16 and float16, not for float64$"
    with pytest.raises(RuntimeError, match=message):
        plan_of(library, direction, "lstm", Shape(3, 9, 4, 20), way(2), torch.float64)
    with pytest.raises(RuntimeError, match="no kernel in clusters is compiled for H = 257 so, but for H up to 32 with"):
        plan_of(library, direction, "lstm", Shape(3, 9, 4, 257), way(2), F32)
    assert plan_of(library, direction, "lstm", Shape(3, 9, 4, 20), way(2, 1, H200), F32).parts == 2
