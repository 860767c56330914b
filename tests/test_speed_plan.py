"""The measurements: every kind of results has its intended cases, the most informative first, within its time."""

from dataclasses import replace
from itertools import chain

import pytest

from benchmarks.budget import Budget
from benchmarks.speed.candidates import WANTED
from benchmarks.speed.cases import AXES, CELLS, resets
from benchmarks.speed.plan import (
    FILLS,
    GPU_BATCHES,
    GPU_DTYPES,
    GPU_SIZES,
    GROUPS,
    LIBRARY_CELLS,
    PLANS,
    POINTS,
    Part,
    Plan,
    cost,
    episodic,
    filled,
    lengths_that_fill,
    sized,
)

GPU = PLANS["gpu"]


def places(**changes) -> list[tuple[str, str, int, int]]:
    """Return the cells, dtypes, H and B of a GPU's points."""
    cases = replace(GPU, **changes).cases()
    return list(dict.fromkeys((c.cell, c.dtype, c.shape.hidden_size, c.shape.batch) for c in cases))


def test_the_most_telling_groups_come_first():
    cases = GPU.cases()
    assert list(dict.fromkeys(case.group for case in cases)) == list(POINTS)
    assert list(POINTS)[:3] == ["honest", "people", "main"]
    assert list(POINTS)[-2:] == ["rivals", "compiled"]  # these compile for minutes
    assert len(set(cases)) == len(cases) < 240
    names = [(str(case), case.mode) for case in cases if case.group not in ("rivals", "compiled")]
    assert len(set(names)) == len(names), "something is measured twice"
    assert [*POINTS, "chosen"] == list(GROUPS)
    assert set(GROUPS) == set(WANTED)


def test_the_tables_have_every_cell_at_the_main_sizes():
    for dtype, cells in (("bfloat16", CELLS), ("float32", CELLS), ("float16", LIBRARY_CELLS)):
        assert {(c, dtype, *size) for c in cells for size in GPU_SIZES} <= {
            *places(names=("main", "grid"), dtypes=(dtype,))
        }


def test_a_group_can_be_narrowed_to_cells_and_dtypes():
    plan = replace(GPU, names=("honest", "people"), cells=("lstm",), dtypes=("float32",))
    assert list(dict.fromkeys(map(str, plan.cases()))) == [
        "lstm float32 H=128 B=16 T=512",
        "lstm float32 H=512 B=64 T=512",
        "lstm float32 H=168 B=62 T=2058",
    ]


def test_what_is_chosen_is_measured_in_every_combination():
    chosen = {"cells": ("rnn", "gru"), "dtypes": ("float16",), "hidden": (8, 512), "batch": (1, 64), "steps": 9}
    found = places(**chosen)
    assert set(found) == {(cell, "float16", h, b) for cell in ("rnn", "gru") for h in (8, 512) for b in (1, 64)}
    assert found[0][2:] == GPU_SIZES[0]
    assert {case.shape.steps for case in replace(GPU, **chosen).cases()} == {9}
    assert len(places(hidden=(64,))) == len(GPU_DTYPES) * len(CELLS) * len(GPU_BATCHES)


def test_lengths_are_spread_evenly_and_longest_first():
    assert sized(7, 4, 10, ragged=True).lengths == (10, 8, 5, 3)
    for case in replace(GPU, names=("ragged",)).cases():
        assert case.shape.lengths[0] == case.shape.steps
        assert min(case.shape.lengths) >= 1
        assert list(case.shape.lengths) == sorted(case.shape.lengths, reverse=True)


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_sweep_changes_one_size_and_reaches_far(device):
    plan = replace(PLANS["scaling"], device=device)
    parts = plan.parts()
    assert [(part.cases[0].cell, part.cases[0].group) for part in parts] == [(c, a) for c in CELLS for a in AXES]
    for part in parts:
        axis = part.cases[0].group
        sizes = [[getattr(case.shape, name) for name in (*AXES, "input_size")] for case in part.cases]
        changed = [len(set(values)) > 1 for values in zip(*sizes)]
        assert changed == [*(name == axis for name in AXES), axis == "hidden_size"]  # I = H
        along = list(dict.fromkeys(getattr(case.shape, axis) for case in part.cases))
        assert along == sorted(along)
        assert along[-1] >= 6 * along[0]
        assert plan.base[axis] in along


@pytest.mark.parametrize("fill", FILLS)
def test_lengths_fill_what_they_should(fill):
    shape = filled(fill)
    assert list(shape.lengths) == sorted(shape.lengths, reverse=True)
    assert (len(shape.lengths), shape.lengths[0]) == (shape.batch, shape.steps)
    assert min(shape.lengths) >= 1
    assert sum(shape.lengths) == pytest.approx(int(fill[:-2]) / 100 * shape.steps * shape.batch, rel=0.01)


def test_no_more_is_filled_than_has_to_be():
    assert lengths_that_fill(0.0, 10, 4) == (10, 1, 1, 1)
    assert lengths_that_fill(1.0, 10, 4) == (10,) * 4


def test_so_many_steps_begin_an_episode_as_a_shape_says():
    parts = {name: resets(episodic(name)).float().mean().item() for name in ("0 %", "1 %", "10 %", "100 %")}
    assert parts == {"0 %": 0, "1 %": pytest.approx(0.01, abs=0.002), "10 %": pytest.approx(0.1, abs=0.01), "100 %": 1}
    assert resets(sized(7, 4)) is None


@pytest.mark.parametrize("kind", PLANS)
def test_the_parts_of_a_plan_are_its_cases(kind):
    whole, quick = plans = (PLANS[kind], replace(PLANS[kind], quick=True))
    for plan in plans:
        assert list(chain(*(part.cases for part in plan.parts()))) == plan.cases()
    assert 0 < total(quick) < total(whole) / 5


def total(plan: Plan) -> float:
    return sum(cost(case, plan.device) for case in plan.cases())


def test_a_budget_skips_what_does_not_fit_and_says_so():
    now = [0.0]
    budget = Budget(10, clock=lambda: now[0])
    small, large = Part((), 1.0), Part((), 10.0)
    skipped = []
    for job, obstacle in budget.spend([small, large, small, small, small]):
        skipped.append(obstacle)
        now[0] += 0 if obstacle else 4 * job.cost / small.cost
    assert skipped[0] is skipped[2] is None
    assert skipped[1] == "it would take about 40 s, and 6 s were left"
    assert skipped[3] == skipped[4] == "it would take about 4 s, and 2 s were left"
    now[0] = 11
    assert budget.obstacle(0.0) == "the 10 s of the run were over"
