"""Warp kernels on the CPU, by the host shim, against the float64 reference; timeouts and refusals."""

import ctypes
from collections.abc import Callable
from statistics import fmean, median

import pytest
import torch
from torch import Tensor

from fused_rnn import products

from .conftest import FEW_CELLS, Operands, Shape, operands, random_like, regularised, some_of
from .host_kernels import DIRECTIONS, HostKernels, Way, library_of, needs_compiler, plan_of, run_kernels
from .precision import Yardstick

pytestmark = needs_compiler
ONE_PHASE = ["lstm", "gru_reset_after", "rnn_tanh", "rnn_relu"]
CELLS = [*ONE_PHASE, "gru", "multiplicative_lstm", "multiplicative_lstm_hidden", "multiplicative_gru"]
# Kernels for float16 have the same source; only exhaustive runs compile and test them.
DTYPES = some_of([torch.bfloat16, torch.float16], torch.bfloat16)
# Numbers of clusters of 1, 2, 4, 8 and 16 blocks that run at the same time
H200, ONE = (132, 66, 30, 15, 7), (1, 1, 1, 1, 1)
# The compiled sizes: K, blocks of a cluster, shares of K, and octets of sequences
SIZES = [(32, 1, 1, 1), (64, 1, 2, 2), (32, 2, 1, 1), (64, 2, 2, 2), (64, 4, 1, 1), (128, 8, 4, 1), (256, 16, 2, 1)]
# The same with features, for cells that modulate the input; half of 4 or 8 blocks have features.
FEATURES = [(32, 1, 1, 1, 32), (64, 1, 2, 2, 64), (32, 2, 1, 1, 32), (64, 2, 2, 2, 64), (64, 4, 1, 1, 32)]
FEATURES.append((256, 8, 1, 1, 64))
# A wait times out after 1000 rounds of all threads, and then a block stays for as long as stores may take.
WAITS = ["-DFUSED_RNN_WAIT_CYCLES=1000", "-DFUSED_RNN_DRAIN_CYCLES=200"]


def way(blocks: int, octets: int = 1, clusters: tuple[int, ...] = H200) -> Way:
    """Return the way that selects the one size with these blocks and octets."""
    forced = f"exchange=cluster,parts={blocks},sequences={8 * octets}"
    return Way(132, 232_448, forced, clusters, tight=clusters != H200)


# One, two and four blocks, with a cluster for each tile or one for all tiles
WAYS = {
    "block": way(1),
    "block-of-16-sequences": way(1, 2, ONE),
    "cluster-of-2": way(2, 1, ONE),
    "cluster-of-2-and-16-sequences": way(2, 2),
    "cluster-of-4": way(4),
}


@pytest.fixture(scope="session")
def library(request, tmp_path_factory) -> ctypes.CDLL:
    sizes = ",".join(f"Size<{','.join(map(str, size))}>" for size in SIZES + FEATURES)
    return library_of("clusters", tmp_path_factory, f"-DFUSED_RNN_CLUSTER_SIZES={sizes}", *WAITS, *half(request.config))


def half(config: pytest.Config) -> list[str]:
    """Return the compiler flags for float16, if its tests run."""
    return ["-DHALF"] if config.getoption("--exhaustive") else []


def assert_as_exact_as_pytorch(library, draws: list[Operands], way: Way) -> None:
    # A single draw may be far off with kinks, or with a single unit whose pre-activations are products of three
    # numbers: σ(-13), which is nearly 0, is rounded to 0.
    cell, values = draws[0].cell, draws[0].tensors["h_0"].numel()
    may_be_off = cell == "rnn_relu" or (values == 1 and cell.startswith("multiplicative"))
    yardstick = Yardstick(draws, average=median if may_be_off else fmean)
    yardstick.assert_no_worse(lambda op, d_results: run_kernels(op, d_results, HostKernels(library, way)))


def drawn(cell: str, shape: Shape, dtype: torch.dtype = torch.bfloat16, count: int = 3, **how) -> list[Operands]:
    """Return several draws of a call, because PyTorch's error in a single one may be small by luck."""
    return [operands(cell, shape, scale=1.0, dtype=dtype, seed=seed, **how) for seed in range(count)]


# Correctness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("K", "blocks", "shares", "octets"), SIZES)
def test_every_size_is_chosen_by_what_forces_it(library, direction, K, blocks, shares, octets):
    plan = plan_of(library, direction, "lstm", Shape(3, 40, 1, K), way(blocks, octets), torch.bfloat16)
    assert (plan.exchange, plan.parts, plan.sequences, plan.segments) == ("cluster", blocks, 8 * octets, 1)
    assert (plan.teams, plan.workspace_bytes, plan.streamed) == (5 if octets == 1 else 3, 0, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("cell", CELLS)
def test_results_and_gradients(library, cell, name, dtype):
    """Results are right for more than a tile of sequences, and units that do not fill K, in whole rows or not."""
    H = {"block": 21, "cluster-of-2": 32}.get(name, 48 if dtype == torch.float16 else 53)
    I = 5 if cell in ONE_PHASE else 24 if H % 8 == 0 else 21
    T, count = (2, 5) if cell == "rnn_relu" else (5, 3)  # fewer values, so fewer within rounding of a kink
    assert_as_exact_as_pytorch(library, drawn(cell, Shape(T, 19, I, H), dtype, count), WAYS[name])


@pytest.mark.parametrize(
    ("blocks", "cell"),
    [(8, "lstm"), (8, "gru_reset_after"), (8, "gru"), (16, "lstm"), (16, "multiplicative_lstm_hidden")],
)
def test_large_clusters(library, blocks, cell):
    assert_as_exact_as_pytorch(library, drawn(cell, Shape(3, 9, 2, 16 * blocks - 8), count=1), way(blocks))


@pytest.mark.parametrize("cell", ["multiplicative_lstm", "multiplicative_gru"])
def test_fewer_tiles_of_features_than_of_units(library, cell):
    """A warp of the backward kernel has one tile of features and two of units."""
    assert_as_exact_as_pytorch(library, drawn(cell, Shape(3, 9, 40, 200), count=1), way(8))


@pytest.mark.parametrize(
    "shape", [Shape(1, 1, 1, 1), Shape(1, 9, 3, 30), Shape(9, 7, 3, 2), Shape(13, 17, 24, 24)], ids=str
)
@pytest.mark.parametrize("cell", some_of(CELLS, *FEW_CELLS))
def test_short_long_narrow_and_whole(library, cell, shape, reverse):
    """Results are right for one step, more than are fetched ahead, blocks without units, and only whole rows."""
    draws = drawn(cell, shape, count=8 if shape.H < 3 else 3, reverse=reverse)
    assert_as_exact_as_pytorch(library, draws, WAYS["cluster-of-2"])


# The second tile ends early, the third never begins
LENGTHS = [3, 5, 0, 1, 5, 5, 2, 0, *(2, 0, 0, 3, 1, 0, 2, 3), *(0, 0, 0)]


@pytest.mark.parametrize("name", ["block-of-16-sequences", "cluster-of-2", "cluster-of-4"])
@pytest.mark.parametrize("cell", some_of(CELLS, *FEW_CELLS))
def test_lengths(library, cell, name, reverse):
    H = 24 if name == "cluster-of-2" else 43
    draws = drawn(cell, Shape(5, len(LENGTHS), 3, H), lengths=LENGTHS, reverse=reverse)
    assert_as_exact_as_pytorch(library, draws, WAYS[name])


@pytest.mark.parametrize("name", ["block-of-16-sequences", "cluster-of-2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", some_of(CELLS, *FEW_CELLS))
def test_zoneout_and_clipping(library, cell, dtype, name, reverse):
    """Masks hold zeros and ones with whole rows, and fractions with other rows."""
    H = 24 if reverse else 27
    draws = drawn(cell, Shape(5, len(LENGTHS), 3, H), dtype, lengths=LENGTHS, reverse=reverse)
    assert_as_exact_as_pytorch(library, [regularised(op, drawn=reverse) for op in draws], WAYS[name])


@pytest.mark.parametrize("cell", some_of(CELLS, *FEW_CELLS))
def test_without_biases(library, cell):
    assert_as_exact_as_pytorch(library, drawn(cell, Shape(4, 9, 3, 24), bias=False), WAYS["cluster-of-2"])


def assert_finite_alike(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.isnan(), theirs.isnan())
        torch.testing.assert_close(ours.isposinf(), theirs.isposinf())
        torch.testing.assert_close(ours.isneginf(), theirs.isneginf())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("cell", "features"),
    [*((cell, 5) for cell in ("lstm", "gru_reset_after", "rnn_tanh")), ("gru", 21), ("multiplicative_lstm", 1)],
)
def test_an_infinite_state_does_not_reach_units_that_there_are_not(library, cell, features, dtype):
    """The padding's weights of zero, times infinity, would be NaN there and then everywhere.

    A gate that is nearly zero may or may not round to zero in low precision, so its product with infinity may or may
    not be NaN. So units are tried until the infinity of one leaves finite values in the reference.
    """
    op = operands(cell, Shape(4, 9, features, 29), dtype=dtype)
    initial = op.tensors["h_0"].detach().clone()
    for unit in range(29):
        with torch.no_grad():
            op.tensors["h_0"].copy_(initial)[2, unit] = torch.inf
        expected = op.run("reference")
        if expected[0][:, 2].isfinite().any():
            break
    ours = run_kernels(op, random_like(expected), HostKernels(library, WAYS["cluster-of-2"]))
    assert expected[0][:, 2].isfinite().any()
    assert not (ours[0].isnan() & ~expected[0].isnan()).any()


# The same bits ------------------------------------------------------------------------------------------------------


def assert_same_bits(values: list[Tensor], *others: list[Tensor]) -> None:
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(values, other, strict=True))


def assert_all_the_same(op: Operands, *kernels: HostKernels) -> None:
    d_results = random_like(op.run("reference"))
    assert_same_bits(*(run_kernels(op, d_results, each) for each in kernels))


@pytest.fixture(params=[False, True], ids=["plain", "regularised"])
def options(request) -> Callable[[Operands], Operands]:
    """Return a function that gives a call all options or none, because kernels differ between the two."""
    return regularised if request.param else lambda op: op


@pytest.mark.parametrize("name", ["cluster-of-2-and-16-sequences", "cluster-of-4"])
@pytest.mark.parametrize("cell", some_of(CELLS, *FEW_CELLS))
def test_order_of_threads_does_not_matter(library, cell, name, options):
    op = operands(cell, Shape(3, 19, 3, 40), dtype=torch.bfloat16, lengths=[3, 2, 0, 2] * 4 + [1, 3, 2])
    assert_all_the_same(options(op), *(HostKernels(library, WAYS[name], seed) for seed in range(3)))


@pytest.mark.parametrize("cell", some_of(CELLS, *FEW_CELLS))
def test_where_tensors_begin_does_not_matter(library, cell, options):
    """Rows of 24 units travel as a whole, or value by value if the tensors begin at an odd element."""
    op = operands(cell, Shape(7, 11, 8, 24), dtype=torch.bfloat16, lengths=[7, 6, 0, 1, 5, 7, 7, 2, 3, 6, 4])
    assert_all_the_same(options(op), *(HostKernels(library, way(2), misaligned=odd) for odd in (False, True)))


@pytest.mark.parametrize("cell", some_of(CELLS, *FEW_CELLS))
def test_how_many_clusters_there_are_does_not_matter(library, cell):
    op = operands(cell, Shape(3, 43, 3, 24), dtype=torch.bfloat16)
    assert_all_the_same(op, *(HostKernels(library, way(2, 1, (1, count, 1, 1, 1))) for count in (1, 3, 66)))


@pytest.mark.parametrize("cell", some_of(CELLS, *FEW_CELLS))
def test_gives_out_cell_states_alone_or_nothing(library, cell):
    op, kernels = operands(cell, Shape(3, 11, 3, 24), dtype=torch.bfloat16), HostKernels(library, WAYS["cluster-of-2"])
    with torch.no_grad():
        expected, *runs = (
            products.forward(*op.arguments(), cell, False, 0.0, save, kernels=kernels)
            for save in ("everything", "states", "nothing")
        )
    assert [[r.numel() > 0 for r in run[3:]] for run in runs] == [["lstm" in cell, False], [False, False]]
    for run in runs:
        assert_same_bits([a for a in run if a.numel()], [b for a, b in zip(run, expected) if a.numel()])


@pytest.mark.parametrize("given", range(4), ids=["output", "h_n", "c_n", "cells"])
@torch.no_grad()
def test_gradients_that_are_missing_count_as_zero(library, given):
    op, kernels = (
        operands("lstm", Shape(3, 11, 3, 24), dtype=torch.bfloat16),
        HostKernels(library, WAYS["cluster-of-2"]),
    )
    how = (*op.arguments(), "lstm", False, 0.0)
    *results, saved = products.forward(*how, "everything", kernels=kernels)
    found = []
    for d_results in ([None] * 4, [torch.zeros_like(result) for result in results]):
        d_results[given] = random_like(results)[given]
        made = products.backward(*d_results, results[0], results[3], saved, *how, True, True, kernels=kernels)
        found.append([d for d in made if d is not None and d.numel()])
    assert_same_bits(*found)
    assert all(d.abs().sum() > 0 for d in found[0])


# Waits that fail ----------------------------------------------------------------------------------------------------

# Blocks, octets and features of sizes; one cluster has all tiles
FAILING = {
    "block-of-16-sequences": (1, 2, 64),
    "cluster-of-2-and-16-sequences": (2, 2, 64),
    "cluster-of-4": (4, 1, 32),
}


def failing(name: str) -> Way:
    blocks, octets, _ = FAILING[name]
    return way(blocks, octets, ONE)


def stores_of_a_step(cell: str, name: str, values: int) -> int:
    """Return the number of stores in a step, each of ``values`` values, to or from every block.

    The values are those of 64 units, and in cells of several phases of 64 more, of the features, or of both.
    """
    blocks, octets, features = FAILING[name]
    more = {
        "gru": 64,
        "multiplicative_lstm": features,
        "multiplicative_lstm_hidden": 64,
        "multiplicative_gru": 64 + features,
    }
    return (64 + more.get(cell, 0)) * 8 * octets * blocks // values


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("cell", some_of(CELLS, *FEW_CELLS))
@torch.no_grad()
def test_a_state_that_does_not_arrive(library, cell, name):
    """All blocks time out and the kernel ends; results that they could not compute are NaN, also in later tiles."""
    op = operands(cell, Shape(6, 27, 3, 64), dtype=torch.bfloat16)
    stores = stores_of_a_step(cell, name, values=8)
    for seed, lost in enumerate((1, stores + stores // 2)):
        kernels = HostKernels(library, failing(name), seed, missing=lost)
        output, h_n, c_n, cells, _ = products.forward(*op.arguments(), cell, False, 0.0, "everything", kernels=kernels)
        begun = lost // stores + 3  # a step at most until the loss is seen, and another until all have seen it
        for result in (output[begun:], h_n, c_n, cells[begun:]):
            assert result.isnan().all()
        if lost > 1 or cell in ONE_PHASE:  # otherwise the first step itself waits for the lost store
            assert not output[0, :8].isnan().any()


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("cell", some_of(CELLS, *FEW_CELLS))
@torch.no_grad()
def test_a_sum_that_does_not_arrive(library, cell, name):
    op, T = operands(cell, Shape(6, 27, 3, 64), dtype=torch.bfloat16), 6
    stores = stores_of_a_step(cell, name, values=4)
    how = (*op.arguments(), cell, False, 0.0)
    *results, saved = products.forward(*how, "everything", kernels=HostKernels(library, failing(name)))
    d_results = [d if d.numel() else None for d in random_like(results)]
    for seed, lost in enumerate((1, stores + stores // 2)):
        kernels = HostKernels(library, failing(name), seed, missing=lost)
        made = products.backward(*d_results, results[0], results[3], saved, *how, True, False, kernels=kernels)
        d_input, *d_states = (d for d in made[:3] if d is not None and d.numel())
        for result in (d_input[: T - (lost // stores + 3)], *d_states):
            assert result.isnan().all()
        if lost > 1 or cell in ONE_PHASE:
            assert not d_input[T - 1, :8].isnan().any()


@torch.no_grad()
def test_a_last_state_that_does_not_arrive(library):
    """No block waits for the one that misses it: the results of the others are right, but the call still fails."""
    op = operands("lstm", Shape(3, 7, 3, 64), dtype=torch.bfloat16)
    right, failed = (
        products.forward(*op.arguments(), "lstm", False, 0.0, "everything", kernels=kernels)
        for kernels in (
            HostKernels(library, failing("cluster-of-4"), missing=lost)
            for lost in (0, 2 * stores_of_a_step("lstm", "cluster-of-4", values=8))
        )
    )
    assert torch.equal(right[0][:2], failed[0][:2])
    units = failed[1].isnan()
    assert units.sum() == 7 * 16
    assert torch.equal(right[1][~units], failed[1][~units])


# Unsupported plans --------------------------------------------------------------------------------------------------

SIZES_IN_WORDS = "; ".join(f"H up to {K} with parts={blocks},sequences={8 * octets}" for K, blocks, _, octets in SIZES)
FEATURES_IN_WORDS = "; ".join(
    f"H up to {K} and I up to {features} with parts={blocks},sequences={8 * octets}"
    for K, blocks, _, octets, features in FEATURES
)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (
            {"cell": "multiplicative_lstm", "I": 65},
            f"no kernel in clusters is compiled for H = 20 and I = 65 so, but for {FEATURES_IN_WORDS}",
        ),
        ({"dtype": torch.float64}, "kernels in clusters are for float32, bfloat16 and float16, not for float64"),
        ({"H": 257}, f"no kernel in clusters is compiled for H = 257 so, but for {SIZES_IN_WORDS}"),
        ({"forced": "parts=3"}, f"no kernel in clusters is compiled for H = 20 so, but for {SIZES_IN_WORDS}"),
        ({"forced": "sequences=24"}, f"no kernel in clusters is compiled for H = 20 so, but for {SIZES_IN_WORDS}"),
        (
            {"clusters": (0,) * 5},
            "kernels in clusters need a device of compute capability 9.0 or newer, and a library with code for one",
        ),
        ({"forced": "parts=16", "clusters": (*H200[:4], 0)}, "this device does not run clusters of 16 blocks"),
        (
            {"forced": "parts=4", "shared_bytes": 4000},
            "with H = 20 it needs at least [0-9]+ bytes of shared memory in each block, and this device has 4000",
        ),
        ({"H": 2**31}, "T, B, I or H is 2147483648, and must be at most 268435455"),
    ],
    ids=str,
)
def test_what_cannot_be_forced_says_what_there_is(library, direction, asked, reason):
    forced = ",".join(["exchange=cluster", *([asked["forced"]] if "forced" in asked else [])])
    way = Way(132, asked.get("shared_bytes", 232_448), forced, asked.get("clusters", H200))
    shape = Shape(3, 9, asked.get("I", 4), asked.get("H", 20))
    message = (
        reason if shape.H == 2**31 else f"the plan {forced}, which FUSED_RNN_CUDA_PLAN forces, cannot be: {reason}"
    )
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        plan_of(library, direction, asked.get("cell", "lstm"), shape, way, asked.get("dtype", torch.bfloat16))


def test_of_sizes_that_fit_the_fastest_is_taken(library):
    """The candidates are the sizes that the device has clusters and memory for."""
    for clusters, parts in ((H200, {1, 2, 4, 8, 16}), ((132, 0, 0, 0, 0), {1}), ((132, 66, 0, 0, 0), {1, 2})):
        plan = plan_of(
            library,
            "forward",
            "lstm",
            Shape(3, 9, 4, 60),
            Way(132, 232_448, "exchange=cluster", clusters),
            torch.bfloat16,
        )
        assert plan.parts in parts
        free = [
            plan_of(library, "forward", "lstm", Shape(3, 9, 4, 60), way(b, o), torch.bfloat16)
            for K, b, _, o in SIZES
            if K >= 60
        ]
        assert plan.nanoseconds == min(each.nanoseconds for each in free if each.parts in parts)
