"""The plans of the CUDA kernels: their description without a GPU, their estimates and measured times."""

import argparse
import json
import math
import os
import re
from dataclasses import replace
from itertools import product

import pytest
import torch

from benchmarks import common
from benchmarks.gpu import plans
from benchmarks.gpu.choice import header, results, rows
from benchmarks.gpu.plans import H200, Layer
from benchmarks.speed import RESULTS
from benchmarks.speed.clock import HostClock
from fused_rnn import cuda, products
from fused_rnn.cells import CELLS

from .host_kernels import HostKernels, Way, needs_compiler
from .test_cuda_kernels import library  # noqa: F401  (a fixture)

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.fused_rnn, "cuda_plan"), reason="this build has no CUDA kernels")
LSTM = ("lstm", torch.bfloat16, 64, 512)
WARPS = ("cluster", "messages")  # the exchanges of warp kernels


@pytest.fixture(autouse=True)
def _nothing_forced(monkeypatch):
    monkeypatch.delenv(cuda.FORCED, raising=False)


def test_kernels_of_warps_refuse_resets():
    for exchange in (*WARPS, "warps"):
        with pytest.raises(RuntimeError, match=f"exchange={exchange}.* cannot be: .* take no resets"):
            cuda.plan(*LSTM, chip=H200, forced=f"exchange={exchange}", resets=True)


# Descriptions -----------------------------------------------------------------------------------------------


def test_a_plan_adds_up():
    """The plan divides an LSTM evenly: each of 16 parts has 4 gates of 32 units, in 8 x 8 fragments of weights."""
    plan = cuda.plan(*LSTM, chip=H200, forced="sequences=16,parts=16")
    assert (plan.sequences, plan.parts, plan.segments, plan.teams, plan.blocks) == (16, 16, 1, 4, 64)
    assert plan.held + plan.resident + plan.streamed == 8
    weights, states = 2 * 4 * 512 * 512, 2 * 4 * 2 * 16 * 512  # bytes; the states in two copies
    assert 0 <= plan.workspace_bytes - weights - states < 8192
    assert 2 * 16 * 512 < plan.shared_bytes <= H200.shared_bytes
    small = cuda.plan(*LSTM, chip=cuda.Chip(16, 40_000), forced="sequences=16,parts=16")
    assert (small.teams, small.held, small.streamed > 0) == (1, plan.held, plan.resident < small.streamed)


def test_fragments_of_weights_are_counted_where_they_are():
    """Fewer parts have more fragments each: these fill registers, then shared memory; the rest is streamed."""
    found = [cuda.plan(*LSTM, chip=H200, forced=f"sequences=8,parts={parts}") for parts in (32, 16, 8, 4, 2)]
    assert [plan.held + plan.resident + plan.streamed for plan in found] == [4, 8, 16, 32, 64]
    assert [plan.held for plan in found] == [4, 8, 8, 8, 8]
    assert [plan.resident > 0 for plan in found] == [False, False, True, True, True]
    assert [plan.streamed > 0 for plan in found] == [False, False, False, True, True]


@pytest.mark.parametrize("direction", plans.DIRECTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_has_a_plan_in_every_dtype(cell, direction):
    for dtype in cuda.DTYPES:
        if CELLS[cell].modulates == "input" and "rnn" in cell:
            with pytest.raises(RuntimeError, match=f"the CUDA kernels have no cell '{cell}'"):
                cuda.plan(cell, dtype, 3, 40, 7, direction, H200)
            continue
        plan = cuda.plan(cell, dtype, 3, 40, 7, direction, H200)
        assert plan.nanoseconds > 0
        assert plan == cuda.plan(cell, dtype, 3, 40, 7, direction, H200, plan.forced)


@pytest.mark.parametrize("direction", plans.DIRECTIONS)
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_after", "rnn_tanh", "rnn_relu"])
def test_clusters_can_be_forced(cell, direction):
    """Sizes up to the largest compiled one can be forced, in all types but float64, on a device with clusters."""
    for dtype, most in ((torch.bfloat16, 768), (torch.float16, 768), (torch.float32, 256)):
        for hidden in [size for size in (1, 128, 129, 256, 300, 500, 768) if size <= most]:
            plan = cuda.plan(cell, dtype, 16, hidden, None, direction, H200, "exchange=cluster")
            assert (plan.exchange, plan.segments, plan.streamed, plan.workspace_bytes) == ("cluster", 1, 0, 0)
            assert plan.shared_bytes <= H200.shared_bytes
            assert plan == cuda.plan(cell, dtype, 16, hidden, None, direction, H200, plan.forced)
        with pytest.raises(RuntimeError, match=f"cannot be: .*H up to {most} with parts=16,sequences=8"):
            cuda.plan(cell, dtype, 16, most + 1, None, direction, H200, "exchange=cluster")
        with pytest.raises(
            RuntimeError,
            match="exchange=cluster, which FUSED_RNN_CUDA_PLAN forces, cannot be: kernels in clusters need a dev",
        ):
            cuda.plan(cell, dtype, 16, 128, None, direction, replace(H200, clusters=(0,) * 5), "exchange=cluster")


@pytest.mark.parametrize("direction", plans.DIRECTIONS)
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_after", "rnn_tanh", "rnn_relu"])
def test_messages_can_be_forced(cell, direction):
    """Messages serve more units than clusters have room for, in 16-bit types, with as many teams as fit."""
    for dtype in (torch.bfloat16, torch.float16):
        for hidden, parts, teams in ((1000, 64, 2), (1024, 64, 2), (1025, 128, 1), (2048, 128, 1)):
            plan = cuda.plan(cell, dtype, 64, hidden, None, direction, H200, "exchange=messages")
            assert (plan.exchange, plan.sequences, plan.parts, plan.teams) == ("messages", 8, parts, teams)
            assert plan.streamed == 0
            assert plan.shared_bytes <= H200.shared_bytes
            assert plan == cuda.plan(cell, dtype, 64, hidden, None, direction, H200, plan.forced)
        with pytest.raises(RuntimeError, match="no kernel by messages is compiled for H = 2049 so, but for H up to"):
            cuda.plan(cell, dtype, 16, 2049, None, direction, H200, "exchange=messages")
        unmeasured = replace(H200, name="another")
        assert cuda.plan(cell, dtype, 16, 1024, None, direction, unmeasured).exchange == "l2"


def test_a_plan_in_words():
    plan = cuda.Plan("l2", 16, 8, 2, 4, 3, 2, 1, 1000, 2000, 4321.0)
    assert str(plan) == (
        "exchange=l2,sequences=16,parts=8,segments=2: 4 x 8 blocks with 1000 bytes of shared memory each, 3 + 2 + 1 "
        "fragments of weights in registers, in shared memory and streamed, a workspace of 2000 bytes, about 4.32 µs "
        "per step"
    )


def test_the_environment_forces_a_plan(monkeypatch):
    free = cuda.plan(*LSTM, chip=H200)
    monkeypatch.setenv(cuda.FORCED, "sequences=32,parts=8")
    forced = cuda.plan(*LSTM, chip=H200)
    assert (forced.sequences, forced.parts) == (32, 8)
    assert cuda.plan(*LSTM, chip=H200, forced="") == free != forced
    assert free.nanoseconds <= forced.nanoseconds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forced": "sequences=64,parts=1"}, "sequences=64,parts=1, which FUSED_RNN_CUDA_PLAN forces, does not fit"),
        ({"forced": "sequences=7"}, "FUSED_RNN_CUDA_PLAN must be like .* a multiple of 8, and is 'sequences=7'"),
        ({"direction": "sideways"}, "direction must be 'forward' or 'backward', got 'sideways'"),
        ({"dtype": torch.int8}, "dtype must be float32, float64, bfloat16 or float16, got 'int8'"),
        ({"cell": "lstn"}, "unknown cell 'lstn'"),
        ({"cell": "multiplicative_lstm"}, "the plan of multiplicative_lstm depends on the size of the input"),
        ({"batch": 0}, "must be at least 1, got 0"),
        ({"chip": cuda.Chip(1, 3000)}, "the layer is too large for this device: its 3000 bytes"),
        ({"hidden": 2**31}, "T, B, I or H is 2147483648, and must be at most 268435455"),
    ],
)
def test_wrong_questions(change, message):
    asked = {"cell": "lstm", "dtype": torch.float32, "batch": 64, "hidden": 512, "chip": H200}
    with pytest.raises(RuntimeError, match=message):
        cuda.plan(**{**asked, **change})


def test_the_current_chip_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "obstacle", lambda index: "there is no GPU")
    with pytest.raises(RuntimeError, match="fused_rnn: there is no GPU"):
        cuda.plan(*LSTM)


# Estimates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", plans.DIRECTIONS)
def test_estimates_are_near_what_the_profiler_saw(direction):
    """These times of an earlier planner's plans are not those that csrc/cuda/cost.h is fitted to."""
    errors = []
    for (cell, dtype, hidden, batch), measured in plans.MEASURED.items():
        division, us = measured[plans.DIRECTIONS.index(direction)]
        plan = Layer(cell, dtype, hidden, batch, direction=direction).plan(H200, division)
        errors.append(plan.nanoseconds / 1000 / us - 1)
    assert max(map(abs, errors)) < 0.17
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) < 0.1


@pytest.mark.parametrize("direction", plans.DIRECTIONS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "multiplicative_lstm"])
def test_the_cheapest_plan_is_chosen(cell, direction):
    for hidden, batch in ((64, 3), (512, 64), (650, 20), (2048, 256)):
        chosen, *others = plans.plans(
            Layer(cell, "bfloat16", hidden, batch, direction=direction), H200, plans.SEQUENCES, plans.PARTS
        )
        assert len(others) >= 6
        assert chosen.nanoseconds <= others[0].nanoseconds


def timed_on_an_h200() -> list[tuple[Layer, dict[str, float]]]:
    """Return the layers that csrc/cuda/cost.h is fitted to, with µs per step by the text that forces the plan."""
    found = []
    for record in json.loads((RESULTS / "plans-nvidia-h200.json").read_text())["layers"]:
        layer = Layer(*(record[name] for name in ("cell", "dtype", "hidden", "batch", "steps", "direction")))
        times = {
            ",".join(f"{name}={plan[name]}" for name in ("sequences", "parts", "segments")): plan["us_per_step"]
            for plan in record.get("plans", [])
        }
        found += [(layer, times)] if times else []
    return found


def test_estimates_are_as_near_as_they_claim():
    """The bound holds for plans within 2.5 times the fastest; times include packing, which the estimate leaves out."""
    errors = [
        math.log(layer.plan(H200, forced).nanoseconds / 1000 / us)
        for layer, times in timed_on_an_h200()
        for forced, us in times.items()
        if us <= 2.5 * min(times.values())
    ]
    assert len(errors) == 256
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) < 0.105


def test_the_plan_that_is_chosen_is_near_the_fastest():
    """The comparison uses the times that the estimates are fitted to."""
    lost, not_timed = [], []
    for layer, times in timed_on_an_h200():
        chosen = layer.plan(H200, "exchange=blocks").division
        if chosen in times:
            lost.append(times[chosen] / min(times.values()))
        else:
            not_timed.append(f"{layer.dtype} {layer.hidden} {layer.direction}: {chosen}")
    assert max(lost) < 1.03
    assert sum(lost) / len(lost) < 1.005
    assert not_timed == [
        "float16 768 forward: sequences=8,parts=48,segments=1",
        "float32 512 backward: sequences=8,parts=16,segments=1",  # the profiler's 10.89 µs is less than all of these
    ]


# Timing -----------------------------------------------------------------------------------------------------


def test_a_forced_plan_is_forced_inside_alone(monkeypatch):
    plan = cuda.plan(*LSTM, chip=H200)
    for before in (None, "parts=3"):
        if before:
            monkeypatch.setenv(cuda.FORCED, before)
        with plans.forced(plan):
            assert os.environ[cuda.FORCED] == plan.forced
        assert os.environ.get(cuda.FORCED) == before


def test_list_needs_no_gpu(capsys):
    plans.main(["--list", "--cell", "gru", "--hidden", "128", "--batch", "16", "--directions", "backward"])
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "gru bfloat16 H=128 B=16 T=512 backward: µs per step"
    assert [line.endswith("<- chosen") for line in rest] == [True] + [False] * (len(rest) - 1)
    assert {re.search(r"sequences=(\d+)", line)[1] for line in rest} == {"8", "16"}  # 32 would be half empty


def test_without_a_gpu_nothing_is_timed(monkeypatch):
    monkeypatch.setattr(cuda, "obstacle", lambda index: "there is no GPU")
    with pytest.raises(common.InputError, match="the plans cannot be timed, only listed with --list: there is no GPU"):
        plans.main([])


@pytest.fixture
def on_host(library):  # noqa: F811
    """Return the kernels on a device simulated by the host shim, with the plans that the environment forces."""
    kernels = HostKernels(library, Way(12, 200_000, forced=None))
    return products.Kernels(kernels.forward, kernels.backward)


def options(out, **changes) -> argparse.Namespace:
    arguments = ["--cell", "lstm", "--hidden", "40", "--batch", "9", "--steps", "2", "--dtype", "float32"]
    parsed = plans.parse([*arguments, "--sequences", "8", "16", "--parts", "1", "3", "--out", str(out)])
    return argparse.Namespace(**{**vars(parsed), **changes})


@needs_compiler
def test_plans_are_timed_beside_their_estimates(on_host, tmp_path, capsys):
    out, seen = tmp_path / "plans.json", []

    def backward(*operands):
        seen.append(os.environ[cuda.FORCED])
        return on_host.backward(*operands)

    plans.run(options(out), HostClock(), cuda.Chip(12, 200_000), products.Kernels(on_host.forward, backward))
    result = json.loads(out.read_text())
    assert [layer["direction"] for layer in result["layers"]] == ["forward", "backward"]
    for layer in result["layers"]:
        tried = {(plan["sequences"], plan["parts"]): plan for plan in layer["plans"]}
        assert {(8, 1), (8, 3), (16, 1), (16, 3)} <= set(tried)
        assert [plan["chosen"] for plan in layer["plans"]].count(True) == 1
        assert all(plan["us_per_step"] > 0 and plan["difference"] < 1e-5 for plan in layer["plans"])
    assert len(set(seen)) == len(layer["plans"])
    assert seen.count(seen[0]) == 1 + (1 + plans.ROUNDS) * plans.CALLS  # to compare results, and in every round
    assert capsys.readouterr().out.count("<- chosen") == 2


@needs_compiler
def test_a_plan_with_other_results_is_not_timed(on_host, tmp_path, capsys):
    def spoiled(*operands):
        output, *rest = on_host.forward(*operands)
        return output + ("parts=3" in os.environ.get(cuda.FORCED, "")), *rest

    with pytest.raises(SystemExit, match="some plans failed"):
        plans.run(
            options(tmp_path / "plans.json", directions=["forward"]),
            HostClock(),
            cuda.Chip(12, 200_000),
            products.Kernels(spoiled, on_host.backward),
        )
    failed = [line for line in capsys.readouterr().out.splitlines() if "its results are not those" in line]
    assert len(failed) == 2
    assert all("parts=3" in line for line in failed)


def test_a_budget_skips_layers_and_says_so(tmp_path, capsys):
    plans.run(options(tmp_path / "plans.json", minutes=1e-9), HostClock(), H200)
    layers = json.loads((tmp_path / "plans.json").read_text())["layers"]
    assert ["skipped" in layer for layer in layers] == [True, True]
    assert "skipped: the 0 s of the run were over" in capsys.readouterr().out


def test_kernels_of_warps_are_chosen_where_the_table_has_them():
    """The table holds for the cells, types, sizes and chips that were measured, and for no others."""
    found = [each for each in results.load() if not header.stale(each)]
    for row in [row for each in found for row in rows.rows(each.outcomes)][::10]:
        for batch in (row.least_batch, row.most_batch):
            layer = row.cell, getattr(torch, row.dtype), batch, row.most_hidden, row.most_features or None
            for direction in ("forward", "backward"):
                assert cuda.plan(*layer, direction, H200).exchange in WARPS
                elsewhere = cuda.plan(*layer, direction, replace(H200, name="another"))
                assert elsewhere.exchange not in WARPS
                assert elsewhere == cuda.plan(*layer, direction, H200, forced="exchange=blocks")
                without = cuda.plan(*layer, direction, replace(H200, clusters=(0,) * 5))
                assert without == elsewhere == cuda.plan(*layer, direction, H200, resets=True)
    measured = {(outcome.cell, outcome.dtype) for each in results.load() for outcome in each.outcomes}
    others = [(*kind, 128) for kind in product(results.CELLS, results.DTYPES) if kind not in measured]
    for cell, dtype, hidden in (*others, ("lstm", "float64", 128), ("lstm", "float16", 3000)):
        assert cuda.plan(cell, getattr(torch, dtype), 16, hidden, hidden, chip=H200).exchange not in WARPS
