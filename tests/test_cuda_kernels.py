"""The CUDA kernels, run on the CPU by the host shim, against the float64 reference; races, hangs and compilation."""

import ctypes
import re
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu.kernel import calls
from benchmarks.gpu.kernel.calls import TYPES
from fused_rnn import products
from fused_rnn.cells import CELLS

from .conftest import Operands, Shape, operands, random_like, regularised, relative_error, some_of, with_resets
from .host_kernels import (
    DIRECTIONS,
    ROOT,
    HostKernels,
    Way,
    changed,
    changed_tree,
    compile_calls,
    library_of,
    needs_compiler,
    plan_of,
    run_kernels,
    run_program,
)

CLUSTERS = "-DFUSED_RNN_CLUSTER_SIZES=Size<32,1,1,1>"
RACES = ["-O0", "-g1"]  # for a program that sanitizers check, instead of the library
pytestmark = needs_compiler


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> ctypes.CDLL:
    """The block kernels, and one size of the cluster kernels, which test_cluster_kernels.py tests."""
    return library_of("sequences", tmp_path_factory, CLUSTERS)


# Ways to divide the work: one block for each tile of 8 sequences; a team for several tiles in turn, with all weights on
# the chip; a team for tiles of 16 sequences, with a part of the weights streamed
WAYS = {
    "block": Way(16, 200_000, "sequences=8,parts=1"),
    "team": Way(3, 200_000, "sequences=8,parts=3"),
    "streamed": Way(6, 52_000, "sequences=16,parts=2"),
}


def compare(library, op: Operands, allowed: float, way: Way, seed: int = 0) -> None:
    d_results = random_like(op.run("reference"))
    exact = op.to(torch.float64).results_and_gradients("reference", d_results)
    values = run_kernels(op, d_results, HostKernels(library, way, seed))
    assert relative_error(values, exact) <= allowed


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_plans(library, cell, direction):
    """Each of WAYS gives the plan that it is meant to, and a plan that is not forced is the cheapest."""
    block, team, streamed = (plan_of(library, direction, cell, Shape(3, 11, 5, 23), way) for way in WAYS.values())
    assert (block.sequences, block.teams, block.parts, block.exchange) == (8, 2, 1, "one_block")
    assert (team.sequences, team.teams, team.parts, team.streamed, team.exchange) == (8, 1, 3, 0, "l2")
    assert (streamed.sequences, streamed.teams, streamed.parts) == (16, 1, 2)
    assert streamed.streamed or cell.startswith("rnn")
    free = Way(132, 232_448)
    assert plan_of(library, direction, cell, Shape(8, 8, 8, 8), free).parts == 1
    assert plan_of(library, direction, cell, Shape(8, 16, 512, 512), free).parts > 8
    assert plan_of(library, direction, cell, Shape(8, 16, 512, 8192), free).streamed


# multiprocessors and shared memory of an A100, an RTX 4090, an H100 or H200, and a B200
@pytest.mark.parametrize("way", [Way(108, 166_912), Way(128, 101_376), Way(132, 232_448), Way(148, 232_448)], ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_plans_fit_the_chip(library, cell, direction, way):
    for B in (1, 7, 64, 500, 100_000):
        for H in (1, 33, 128, 1000, 2048, 8192):
            plan = plan_of(library, direction, cell, Shape(10, B, H // 2 + 1, H), way)
            assert plan.shared_bytes <= way.shared_bytes
            assert plan.teams * plan.parts <= way.multiprocessors  # all blocks run at the same time


def test_forced_plans(library, cell):
    """Each number can be forced alone or with others; parts and segments are upper bounds."""
    op, free = operands(cell, Shape(2, 19, 5, 70)), Way(12, 200_000)
    for forced in ("sequences=24", "parts=4", "segments=2", "segments=3,parts=2", "parts=11,sequences=16,segments=9"):
        way = replace(free, forced=forced)
        compare(library, op, 1e-11, way)
        for direction in DIRECTIONS:
            plan = plan_of(library, direction, cell, Shape(2, 19, 5, 70), way)
            for name, number in (item.split("=") for item in forced.split(",")):
                assert getattr(plan, name) == int(number) or (name != "sequences" and getattr(plan, name) < int(number))
                assert (getattr(plan, name) > 1) == (int(number) > 1) or name == "segments"


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_forcing_the_plan_that_is_chosen_changes_no_bit(library, dtype):
    shape, free = Shape(3, 19, 5, 70), Way(12, 200_000)
    op = operands("lstm", shape, dtype=dtype)
    d_results = random_like(op.run("reference"))
    chosen = plan_of(library, "forward", "lstm", shape, free, dtype)
    same = replace(free, forced=f"segments={chosen.segments},parts={chosen.parts},sequences={chosen.sequences}")
    assert str(plan_of(library, "forward", "lstm", shape, same, dtype)) == str(chosen)
    results = [run_kernels(op, d_results, HostKernels(library, way))[: len(d_results)] for way in (free, same)]
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_exchange_gives_the_same_bits(library, cell, dtype):
    op = operands(cell, Shape(4, 11, 5, 40), dtype=dtype, lengths=[3, 0, 1, 2, 3, 4, 1, 2, 3, 3, 2])
    d_results = random_like(op.run("reference"))
    ways = [Way(16, 200_000, f"exchange={exchange},sequences=8,parts=1,segments=1") for exchange in ("one_block", "l2")]
    plans = [plan_of(library, "forward", cell, Shape(4, 11, 5, 40), way, dtype) for way in ways]
    assert [plan.exchange for plan in plans] == ["one_block", "l2"]
    one_block, l2 = (run_kernels(op, d_results, HostKernels(library, way)) for way in ways)
    assert all(torch.equal(a, b) for a, b in zip(one_block, l2))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_forced_plans_that_do_not_fit(library, direction):
    for way, needed in (
        (Way(12, 60_000, "sequences=64,parts=1"), r"bytes of shared memory in each block, and this device has 60000"),
        (Way(12, 60_000, "parts=20,segments=1"), r"18 blocks at the same time, and this device has 12 multiprocessors"),
    ):
        message = (
            f"the plan {way.forced}, which FUSED_RNN_CUDA_PLAN forces, does not fit: with H = 70 it needs at least "
        )
        with pytest.raises(RuntimeError, match=f"{message}.*{needed}"):
            plan_of(library, direction, "lstm", Shape(1, 30, 1, 70), way)
    op = operands("lstm", Shape(1, 30, 1, 70))
    with pytest.raises(AssertionError, match="does not fit"):
        run_kernels(op, random_like(op.run("reference")), HostKernels(library, way))


WRONG = [
    "parts",
    "parts=",
    "parts=0",
    "parts=-1",
    "parts=2.5",
    "parts=8,",
    ",parts=8",
    "parts=8,,segments=1",
    "blocks=8",
]
WRONG += [
    "exchange=",
    "exchange=ring",
    "exchange=l2,exchange=l2",
    "exchange=one_block,parts=2",
    "exchange=one_block,segments=2",
    "exchange=cluster,segments=2",
    "exchange=messages,segments=2",
    "exchange=chosen",
]
WRONG += ["parts=8 ", "parts=8,parts=8", "parts=10000", "parts=99999999999", "sequences=12", "16,8", "=8", "parts=0x8"]


@pytest.mark.parametrize("forced", WRONG)
def test_malformed_plans(library, forced):
    with pytest.raises(RuntimeError, match=f"FUSED_RNN_CUDA_PLAN must be like .*, and is '{re.escape(forced)}'$"):
        plan_of(library, "forward", "lstm", Shape(1, 1, 1, 1), Way(12, 60_000, forced))


def test_too_large_for_the_chip(library):
    op = operands("lstm", Shape(1, 1, 2, 200))
    with pytest.raises(AssertionError, match=r"6000 bytes .* H = 200 shared among 2 multiprocessors"):
        run_kernels(op, random_like(op.run("reference")), HostKernels(library, Way(2, 6_000)))


def test_a_block_that_does_not_come(library, cell):
    """The other blocks time out and report it, and every result is NaN instead of a plausible number."""
    op = operands(cell, Shape(3, 11, 5, 23))
    d_results = random_like(op.run("reference"))
    values = run_kernels(op, d_results, HostKernels(library, WAYS["team"], missing=1))
    results, d_h_0 = values[: len(d_results)], values[len(d_results) + list(op.tensors).index("h_0")]
    assert all(t[..., :16].isnan().all() for t in [*results, d_h_0])  # the units of the two blocks that did run


def test_gradients_of_the_step_in_which_a_block_does_not_come(library, cell):
    """It is the last step that the backward pass takes, and all gradients of weights come from it."""
    op = operands(cell, Shape(1, 11, 20, 23))
    d_results = random_like(op.run("reference"))
    values = run_kernels(op, d_results, HostKernels(library, WAYS["team"], missing=1))
    gradients = dict(zip(op.tensors, values[len(d_results) :]))
    units = gradients["weight_ih"].unflatten(0, (-1, 23))[:, :16]  # of each gate, those of the blocks that did run
    assert units.isnan().all()
    assert gradients["bias_ih"].unflatten(0, (-1, 23))[:, :16].isnan().all()
    if "weight_mih" in gradients:
        assert gradients["weight_mih"][:14].isnan().all()
    assert gradients["input"].isnan().all()


@pytest.mark.parametrize("size", "TBIH")
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sizes_beyond_32_bits_are_refused(library, direction, size):
    call = calls.sized(direction, "lstm", torch.float32, T=1, B=1, I=1, H=1)
    setattr(call, size, 2**31)
    error = getattr(library, f"run_{direction}_call")(ctypes.byref(call), ctypes.byref(Way(132, 232_448).chip), 0, 0)
    assert b"2147483648" in error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [Shape(1, 1, 1, 1), Shape(4, 3, 2, 5), Shape(3, 11, 5, 23)], ids=str)
def test_float64_equals_reference(library, cell, shape, way, reverse):
    compare(library, operands(cell, shape, reverse=reverse), 1e-11, WAYS[way])


@pytest.mark.parametrize("way", WAYS)
def test_zoneout_and_clipping(library, cell, way, reverse):
    op = operands(cell, Shape(3, 11, 5, 23), reverse=reverse, lengths=[3, 0, 1, 2, 3, 3, 1, 2, 3, 3, 2])
    compare(library, regularised(op, drawn=reverse), 1e-11, WAYS[way])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("learnt", [False, True], ids=["zeros", "learnt"])
def test_resets(library, cell, way, reverse, learnt):
    """Episodes also begin in the second tile, at its end, and where it has no steps."""
    lengths = [4, 0, 1, 2, 4, 4, 1, 2, 3, 4, 2] if learnt else None
    op = with_resets(operands(cell, Shape(4, 11, 5, 23), reverse=reverse, lengths=lengths), learnt=learnt, share=0.4)
    compare(library, regularised(op, drawn=reverse) if learnt else op, 1e-11, WAYS[way])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_where_no_episode_begins_nothing_changes(library, cell, dtype):
    op = operands(cell, Shape(4, 11, 5, 23), dtype=dtype)
    d_results = random_like(op.run("reference"))
    never = replace(op, resets=torch.zeros(4, 11, dtype=torch.bool))
    both = (run_kernels(each, d_results, HostKernels(library, WAYS["team"])) for each in (op, never))
    assert all(torch.equal(a, b) for a, b in zip(*both))


def test_resets_in_low_precision_are_no_worse_than_pytorch(library, cell):
    op = with_resets(operands(cell, Shape(12, 9, 7, 40), scale=1.0, dtype=torch.bfloat16))
    d_results = random_like(op.run("reference"))
    exact = op.to(torch.float64).results_and_gradients("reference", d_results)
    theirs = relative_error(op.results_and_gradients("reference", d_results), exact)
    compare(library, op, 2 * theirs, WAYS["block"])


def test_gradients_of_what_episodes_begin_with_are_nan_where_a_block_does_not_come(library):
    op = with_resets(operands("lstm", Shape(3, 11, 5, 23)))
    d_results = random_like(op.run("reference"))
    values = run_kernels(op, d_results, HostKernels(library, WAYS["team"], missing=1))
    for name in ("h_reset", "c_reset"):
        assert values[len(d_results) + list(op.tensors).index(name)][:, :16].isnan().all()


@pytest.mark.parametrize("exchange", ["cluster", "messages", "warps"])
def test_kernels_without_resets_refuse_them(library, exchange):
    op = with_resets(operands("lstm", Shape(3, 8, 5, 24), dtype=torch.float32))
    kernels = HostKernels(library, Way(16, 200_000, f"exchange={exchange}", (16, 8, 4, 2, 1)))
    with pytest.raises(AssertionError, match="cannot be: kernels of clusters and messages take no resets"):
        run_kernels(op, random_like(op.run("reference")), kernels)


def test_states_larger_than_shared_memory(library, cell):
    """States are fetched in segments, into two buffers of shared memory that take turns."""
    shape, way = Shape(2, 3, 5, 150), Way(20, 36_000, "sequences=8,parts=10")
    assert plan_of(library, "backward", cell, shape, way).segments > 1 or cell.startswith("rnn")
    compare(library, operands(cell, shape), 1e-11, way)


def test_gives_out_cell_states_alone_or_nothing(library):
    op = operands("lstm", Shape(3, 2, 3, 5))
    kernels = HostKernels(library, WAYS["block"])
    with torch.no_grad():
        expected, *runs = (
            products.forward(*op.arguments(), "lstm", False, 0.0, save, kernels=kernels)
            for save in ("everything", "states", "nothing")
        )
    assert [[r.numel() > 0 for r in run[3:]] for run in runs] == [[True, False], [False, False]]
    for run in runs:
        assert all(torch.equal(a, b) for a, b in zip(run, expected) if a.numel())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_order_of_threads_does_not_matter(library, cell, seed):
    compare(library, operands(cell, Shape(4, 9, 3, 19)), 1e-11, WAYS["team"], seed)


@pytest.mark.parametrize("way", ["block", "team"])
def test_lengths(library, cell, way, reverse):
    lengths = [3, 5, 0, 1, 5, 5, 2, 0, 0, 4, 2]  # the second tile ends early, and so rests in the last step
    op = operands(cell, Shape(5, len(lengths), 3, 18), reverse=reverse, lengths=lengths)
    compare(library, op, 1e-11, WAYS[way])


@pytest.mark.parametrize(
    "way",
    [
        Way(2, 200_000, "sequences=8,parts=1"),
        Way(10, 200_000, "sequences=8,parts=5"),
        Way(5, 48_000, "sequences=16,parts=5"),
    ],
    ids=list(WAYS),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_no_worse_than_pytorch(library, cell, dtype, way):
    op = operands(cell, Shape(7, 9, 7, 70), scale=1.0, dtype=dtype)
    d_results = random_like(op.run("reference"))
    exact = op.to(torch.float64).results_and_gradients("reference", d_results)
    theirs = relative_error(op.results_and_gradients("reference", d_results), exact)
    compare(library, op, 2 * theirs, way)


# for the program that is built with RACES
RACED = {
    "block": Way(4, 200_000, "sequences=8,parts=1"),
    "team": Way(4, 200_000, "sequences=8,parts=2"),
    "streamed": Way(2, 48_000, "sequences=16,parts=2"),
    "tiles": Way(2, 200_000, "sequences=8,parts=2"),
}


@pytest.mark.parametrize("sanitizer", some_of(["thread", "address"], "thread"))
def test_sanitizers_find_nothing(tmp_path, sanitizer):
    program = compile_calls("sequences", tmp_path / "races", "-DRACES=2", *RACES, f"-fsanitize={sanitizer}")
    for seed, way in enumerate(RACED.values()):
        run = run_program(program, way, seed)
        assert run.returncode == 0, run.stderr[-4000:]


# A source file of the kernels, a pattern in it, and its replacement
FAULTS = {
    "no-barrier-of-the-team": ("exchange/l2.h", r"arrived = wait_for\(.*?\);", ""),
    "no-barrier-before-adding-up": (
        "block.h",
        r"(s\.segments; \+\+segment\)[^}]*?first_split\);\s+)__syncthreads\(\);",
        r"\1",
    ),
    "no-barrier-after-fetching": ("exchange/l2.h", r"(copy_async_wait<0>\(\);\s+)__syncthreads\(\);", r"\1"),
    "no-wait-for-copies": ("block.h", r"copy_async_wait<1>\(\);", ""),
    "relaxed-wait": ("device.h", r"load_acquire\(counter\)", "load_relaxed(counter)"),
    "single-copy": ("exchange/l2.h", r"copy\(channel, 1 - turn\(channel\)\)", "copy(channel, turn(channel))"),
}


def test_faults_have_their_places_in_the_sources():
    for name, pattern, replacement in FAULTS.values():
        changed(f"csrc/cuda/{name}", pattern, replacement)


@pytest.mark.parametrize("fault", some_of(FAULTS, "relaxed-wait"))
def test_seeded_races_are_reported(tmp_path, fault):
    """Each fault put into the kernels is reported, or the test above would prove nothing."""
    name, pattern, replacement = FAULTS[fault]
    tree = changed_tree(tmp_path, f"csrc/cuda/{name}", pattern, replacement)
    program = compile_calls("sequences", tmp_path / "faulty", "-DRACES=1", *RACES, "-fsanitize=thread", tree=tree)
    run = run_program(program, RACED["team"], seed=1)
    assert run.returncode != 0
    assert ("NaN" if fault == "no-wait-for-copies" else "data race") in run.stderr


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_nothing_is_spilled(dtype, direction):
    """The compiler's report says that every kernel keeps its values in registers."""
    if without := torch.ops.fused_rnn.without_cuda():
        pytest.skip(f"the library has no CUDA kernels: {without}")
    report = (ROOT / "build/objects/csrc/cuda" / f"{direction}_{dtype}.cu.report").read_text()
    kernels = re.findall(r"Compiling entry function '(\S+)' for '(sm_\w+)'", report)
    architectures = {architecture for _, architecture in kernels}
    assert len(kernels) == len(architectures) * (len(CELLS) + 1)  # and one that prepares the workspace
    assert re.findall(r"(\d+) bytes spill", report) == ["0"] * 2 * len(kernels)
