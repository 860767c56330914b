"""The warp kernels whose blocks exchange messages through L2, on the CPU by the host shim."""

import ctypes
import re

import pytest
import torch

from fused_rnn import products

from .conftest import Shape, operands, random_like, regularised, some_of
from .host_kernels import DIRECTIONS, HostKernels, Way, library_of, needs_compiler, plan_of
from .test_cluster_kernels import (
    DTYPES,
    H200,
    LENGTHS,
    ONE_PHASE,
    WAITS,
    assert_all_the_same,
    assert_as_exact_as_pytorch,
    drawn,
    half,
)
from .test_cluster_kernels import way as cluster_way

pytestmark = needs_compiler
# The compiled sizes: K, blocks of a team, shares of K, octets of sequences. In the last one, lanes of the warps with a
# common share load two rows each, and warps add up the sums of two blocks each.
SIZES = [(64, 2, 2, 1), (64, 2, 2, 2), (64, 4, 1, 1), (256, 16, 2, 1)]
SAME_IN_CLUSTERS = (64, 4, 1, 1)
STEPS = 4  # messages in a third of the places; half as many for partial sums


def way(blocks: int, octets: int = 1, teams: int = 1) -> Way:
    """Return the way that selects the one size with these blocks and octets, in at most this number of teams."""
    return Way(blocks * teams, 232_448, f"exchange=messages,parts={blocks},sequences={8 * octets}", H200)


WAYS = {"2-blocks": way(2), "2-blocks-and-16-sequences": way(2, 2), "4-blocks": way(4)}


@pytest.fixture(scope="session")
def library(request, tmp_path_factory) -> ctypes.CDLL:
    sizes = [f"TeamSize<{','.join(map(str, size))}>" for size in SIZES]
    sizes.append(f"Size<{','.join(map(str, SAME_IN_CLUSTERS))}>")
    flags = [f"-DFUSED_RNN_CLUSTER_SIZES={','.join(sizes)}", f"-DFUSED_RNN_MESSAGE_STEPS={STEPS}", *WAITS]
    flags += half(request.config)
    return library_of("clusters", tmp_path_factory, *flags, suffix="-by-messages")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("K", "blocks", "shares", "octets"), SIZES)
def test_every_size_is_chosen_by_what_forces_it(library, direction, K, blocks, shares, octets):
    plan = plan_of(library, direction, "lstm", Shape(3, 40, 1, K), way(blocks, octets, teams=2), torch.bfloat16)
    assert (plan.exchange, plan.parts, plan.sequences, plan.segments) == ("messages", blocks, 8 * octets, 1)
    assert (plan.teams, plan.streamed) == (2, 0)
    values, steps = (1, STEPS) if direction == "forward" else (blocks, STEPS // 2)
    assert plan.workspace_bytes == 2 * (128 + 3 * steps * values * K * 8 * octets * 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("cell", some_of(ONE_PHASE, "lstm", "gru_reset_after"))
def test_results_and_gradients(library, cell, name, dtype):
    """Calls have successive tiles, more steps than there are places for, and units that do not fill K."""
    H = 56 if name == "2-blocks" else 48 if dtype == torch.float16 else 53
    T, B, count = (2, 19, 5) if cell == "rnn_relu" else (14, 19 if name == "4-blocks" else 11, 2)
    assert_as_exact_as_pytorch(library, drawn(cell, Shape(T, B, 5, H), dtype, count), WAYS[name])


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_after"])
def test_large_teams(library, cell):
    assert_as_exact_as_pytorch(library, drawn(cell, Shape(4, 9, 2, 250), count=1), way(16))


@pytest.mark.parametrize("shape", [Shape(1, 1, 1, 1), Shape(1, 9, 3, 30), Shape(27, 3, 3, 24)], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_short_long_and_narrow(library, cell, shape, reverse):
    """Calls have a single step, over twice as many steps as places, or blocks without a unit of their own."""
    draws = drawn(cell, shape, count=8 if shape.H < 3 else 2, reverse=reverse)
    assert_as_exact_as_pytorch(library, draws, WAYS["4-blocks"])


@pytest.mark.parametrize("name", ["2-blocks", "2-blocks-and-16-sequences"])
@pytest.mark.parametrize("cell", some_of(ONE_PHASE, "lstm", "gru_reset_after"))
def test_lengths(library, cell, name, reverse):
    """One team has all tiles, including those that end early and one without steps."""
    draws = drawn(cell, Shape(5, len(LENGTHS), 3, 43 if reverse else 24), lengths=LENGTHS, reverse=reverse)
    assert_as_exact_as_pytorch(library, draws, WAYS[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", some_of(ONE_PHASE, "lstm", "gru_reset_after"))
def test_zoneout_and_clipping(library, cell, dtype, reverse):
    draws = drawn(cell, Shape(5, len(LENGTHS), 3, 24 if reverse else 27), dtype, lengths=LENGTHS, reverse=reverse)
    assert_as_exact_as_pytorch(library, [regularised(op, drawn=reverse) for op in draws], WAYS["2-blocks"])


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_after"])
def test_order_of_threads_and_messages_does_not_matter(library, cell, name):
    op = operands(cell, Shape(9, 19, 3, 40), dtype=torch.bfloat16, lengths=[9, 2, 0, 8] * 4 + [1, 3, 2])
    assert_all_the_same(op, *(HostKernels(library, WAYS[name], seed) for seed in range(3)))


@pytest.mark.parametrize("cell", ["lstm", "rnn_relu"])
def test_how_many_teams_there_are_does_not_matter(library, cell):
    op = operands(cell, Shape(7, 27, 3, 24), dtype=torch.bfloat16)
    assert_all_the_same(op, *(HostKernels(library, way(4, 1, teams)) for teams in (1, 3, 8)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", some_of(ONE_PHASE, "lstm", "gru_reset_after"))
def test_the_same_bits_as_in_clusters(library, cell, dtype):
    """A warp that adds up the sums of one block adds them in the same order as in clusters."""
    op = operands(cell, Shape(15, 11, 3, 61), dtype=dtype, lengths=[15, 14, 3, 0, 15, 15, 9, 2, 11, 15, 13])
    assert_all_the_same(regularised(op), *(HostKernels(library, each) for each in (way(4), cluster_way(4))))


# Waits that fail ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("cell", some_of(ONE_PHASE, "lstm", "gru_reset_after"))
@torch.no_grad()
def test_a_block_that_does_not_come(library, cell, name):
    """The others give up and the kernel ends; results that they could not compute are NaN, in later tiles too."""
    op, blocks = operands(cell, Shape(6, 35, 3, 64), dtype=torch.bfloat16), int(name[0])
    there = slice(0, 64 - 64 // blocks)  # units of the blocks that do come
    how = (*op.arguments(), cell, False, 0.0)
    kernels = HostKernels(library, WAYS[name], seed=1, missing=1)
    output, h_n, c_n, cells, _ = products.forward(*how, "everything", kernels=kernels)
    for result in (output[1:], h_n, c_n, cells[1:]):
        assert result[..., there].isnan().all()
    assert not output[0, :8, there].isnan().any()
    *results, saved = products.forward(*how, "everything", kernels=HostKernels(library, WAYS[name]))
    d_results = [d if d.numel() else None for d in random_like(results)]
    made = products.backward(*d_results, results[0], results[3], saved, *how, True, False, kernels=kernels)
    for d in made[1:3]:
        if d is not None and d.numel():
            assert d[..., there].isnan().all()


# Refusals -----------------------------------------------------------------------------------------------------------

SIZES_IN_WORDS = "; ".join(f"H up to {K} with parts={blocks},sequences={8 * octets}" for K, blocks, _, octets in SIZES)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"cell": "gru"}, "kernels by messages are for cells whose blocks exchange once a step, and not for this one"),
        ({"H": 257}, f"no kernel by messages is compiled for H = 257 so, but for {SIZES_IN_WORDS}"),
        ({"forced": "parts=3"}, f"no kernel by messages is compiled for H = 20 so, but for {SIZES_IN_WORDS}"),
        (
            {"clusters": (0,) * 5},
            "kernels by messages need a device of compute capability 9.0 or newer, and a library with code for one",
        ),
        (
            {"forced": "parts=16", "multiprocessors": 15},
            "a team has 16 blocks that run at the same time, and this device has 15 multiprocessors",
        ),
        (
            {"forced": "parts=4", "shared_bytes": 4000},
            "with H = 20 it needs at least [0-9]+ bytes of shared memory in each block, and this device has 4000",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_forced_says_what_there_is(library, direction, asked, reason):
    forced = ",".join(["exchange=messages", *([asked["forced"]] if "forced" in asked else [])])
    way = Way(
        asked.get("multiprocessors", 132), asked.get("shared_bytes", 232_448), forced, asked.get("clusters", H200)
    )
    with pytest.raises(RuntimeError) as raised:
        plan_of(library, direction, asked.get("cell", "lstm"), Shape(3, 9, 4, asked.get("H", 20)), way, torch.bfloat16)
    message = f"the plan {forced}, which FUSED_RNN_CUDA_PLAN forces, cannot be: {reason}"
    assert re.fullmatch(message, str(raised.value))


def test_where_there_is_no_cluster_messages_are_chosen(library):
    in_clusters, either = (Way(132, 232_448, f"exchange={name}", H200) for name in ("cluster", "warps"))

    def exchange_of(H: int, way: Way, cell: str = "lstm") -> str:
        return plan_of(library, "forward", cell, Shape(3, 9, 4, H), way, torch.bfloat16).exchange

    assert exchange_of(60, in_clusters) == exchange_of(60, either) == "cluster"
    assert exchange_of(65, either) == "messages"
    refusal = "no kernel in clusters is compiled for H = 65 so, but for H up to 64 with parts=4,sequences=8"
    with pytest.raises(RuntimeError, match=f"{refusal}$"):
        exchange_of(65, in_clusters)
    with pytest.raises(
        RuntimeError, match=f"{refusal}; and kernels by messages are for cells whose blocks exchange once"
    ):
        exchange_of(65, either, "gru")
