"""The choice of warp kernels: the measurements, and the files of results."""

import contextlib
import json
import os
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks import common
from benchmarks.gpu import plans
from benchmarks.gpu.choice import __main__ as choice
from benchmarks.gpu.choice import family, measure, results
from benchmarks.gpu.choice.results import Outcome, Results, Times
from benchmarks.gpu.kernel import check
from benchmarks.gpu.plans import H200
from benchmarks.speed.clock import HostClock
from fused_rnn import cuda, products

# Files of results -------------------------------------------------------------------------------------------

POINT = {
    **{"cell": "lstm", "dtype": "bfloat16", "hidden": 64, "batch": 16, "steps": 256},
    **{
        name: {
            "error": {"relative": 0.001, "allowed": 0.002},
            **{direction: {"us_per_step": us, "spread_us": 0.1} for direction in plans.DIRECTIONS},
        }
        for name, us in (("cluster", 1), ("blocks", 2.5))
    },
}
FILE = {
    "date": "2020-02-02",
    "hardware": {"gpu": "A chip", "torch": "2.0"},
    "digests": {"family": "f" * 64},
    "points": [POINT, {**POINT, "batch": 32, "skipped": "time was over"}],
}


def read(content: object, tmp_path: Path) -> Results:
    path = tmp_path / "choice-a-chip.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return results.read(path)


def changed(content, path: tuple, value):
    """Return ``content`` with another value at a place, or without the place if the value is ``...``."""
    if not path:
        return value
    first, *rest = path
    copy = dict(content) if isinstance(content, dict) else list(content)
    if value is ... and not rest:
        del copy[first]
    else:
        copy[first] = changed(copy[first] if rest else None, tuple(rest), value)
    return copy


def test_results_are_read(tmp_path):
    found = read(FILE, tmp_path)
    assert replace(found, outcomes=()) == Results("choice-a-chip.json", "A chip", "2020-02-02", "2.0", "f" * 64, ())
    (only,) = found.outcomes
    assert only == Outcome("lstm", "bfloat16", 64, 16, Times(1, 1), Times(2.5, 2.5))
    assert only.ahead


@pytest.mark.parametrize(
    ("place", "value", "obstacle"),
    [
        (("cluster",), {"refused": "it does not fit"}, "it does not fit"),
        (("cluster",), {"failed": "a block timed out", "forward": {}}, "a block timed out"),
        (("cluster", "backward"), {"failed": "no image"}, "no image"),
        (("cluster", "error", "relative"), 0.003, "its results are wrong"),
        (("cluster", "error", "relative"), float("nan"), "its results are wrong"),
    ],
)
def test_a_family_without_times_says_why(place, value, obstacle, tmp_path):
    (only,) = read(changed(FILE, ("points", 0, *place), value), tmp_path).outcomes
    assert (only.cluster.obstacle, only.ahead) == (obstacle, False)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "Expecting property name"),
        ("[]", r"is \[\] where an object with 'hardware' is needed"),
        (changed(FILE, ("digests", "family"), ...), "lacks 'family'"),
        (changed(FILE, ("hardware", "gpu"), 3), "has 3 for 'gpu', which must be text"),
        (changed(FILE, ("points",), {}), "has {} for 'points', which must be a list"),
        (changed(FILE, ("points", 0), 7), r"points\[0\] is 7 where an object with 'cell' is needed"),
        (changed(FILE, ("points", 0, "cell"), "gur"), r"points\[0\] has 'gur', where one of lstm, gru_reset_after, "),
        (changed(FILE, ("points", 0, "cell"), "multiplicative_gru"), r"points\[0\] lacks 'input'"),
        (changed(FILE, ("carried",), {}), "has {} for 'carried', which must be a list"),
        (changed(FILE, ("carried",), [{}]), "lacks 'family'"),
        (changed(FILE, ("points", 0, "hidden"), 64.5), r"points\[0\] has 64.5 for 'hidden', which must be a whole "),
        (changed(FILE, ("points", 0, "batch"), 0), r"points\[0\] has the size 0, and sizes must be at least 1"),
        (changed(FILE, ("points", 0, "blocks"), ...), r"points\[0\] lacks 'blocks'"),
        (changed(FILE, ("points", 0, "cluster", "error"), ...), r"points\[0\] lacks 'error'"),
        (changed(FILE, ("points", 0, "blocks", "forward"), {}), r"points\[0\] lacks 'us_per_step'"),
        (
            changed(FILE, ("points", 0, "blocks", "forward", "us_per_step"), 0),
            r"points\[0\] has 0 for 'us_per_step', which must be a finite number above 0",
        ),
        (changed(FILE, ("points",), [POINT, POINT]), r"points\[1\] has the sizes of one before it"),
    ],
)
def test_a_malformed_file_is_refused_with_what_is_wrong(content, complaint, tmp_path):
    with pytest.raises(common.InputError, match=f"choice-a-chip.json holds no results of .*: {complaint}"):
        read(content, tmp_path)


def test_a_file_that_is_not_there_is_an_error_in_one_sentence(tmp_path):
    with pytest.raises(common.InputError, match="none.json holds no results of .*: .*No such file"):
        choice.main(["--show", str(tmp_path / "none.json")])


def test_a_cell_of_a_chip_is_in_one_file(tmp_path):
    def write(name: str, point: dict, chip: str = "A chip") -> None:
        (tmp_path / name).write_text(json.dumps({**FILE, "hardware": {"gpu": chip, "torch": "2"}, "points": [point]}))

    write("choice-a.json", POINT)
    write("micro-c.json", POINT)
    write("choice-b.json", {**POINT, "batch": 1})
    both = "choice-a.json and choice-b.json both have lstm in bfloat16 on A chip, and these must be in one file"
    with pytest.raises(common.InputError, match=both):
        results.load(tmp_path)
    for other in ({"chip": "Another"}, {"point": {**POINT, "cell": "gru"}}, {"point": {**POINT, "dtype": "float16"}}):
        write("choice-b.json", **{"point": POINT, **other})
        assert [found.name for found in results.load(tmp_path)] == ["choice-a.json", "choice-b.json"]


# Measuring --------------------------------------------------------------------------------------------------


def test_the_most_telling_points_come_first():
    found = measure.points()
    # cells whose blocks exchange once a step, those that exchange several times, and those with a modulated input
    many = 6 * 3 * 2  # for cells without a modulated input
    of_16_bits = many + 4 * (10 * 7 + 4 * 2) + 2 * (8 * 7 + 4 * 2) + 2 * 3 * (6 * 7 + 3 * 2)
    of_float32 = many + 4 * (6 * 7 + 3 * 2) + 2 * (4 * 7 + 2 * 2) + 2 * 2 * (4 * 7 + 2 * 2)
    assert len(set(found)) == len(found) == 2 * of_16_bits + of_float32
    first = found[:24]
    assert {(layer.hidden, layer.batch) for layer in first if layer.dtype != "float32"} == {(512, 64)}
    assert {(layer.hidden, layer.batch) for layer in first if layer.dtype == "float32"} == {(512, 64), (128, 64)}
    assert {(layer.cell, layer.dtype) for layer in first} == set(product(results.CELLS, results.DTYPES))
    assert {(layer.hidden, layer.batch) for layer in found[: len(found) // 4]} >= {(128, 16), (256, 64), (512, 16)}
    (only,) = measure.points(["lstm"], ["float16"], [8], [3], [7], 5)
    assert only == plans.Layer("lstm", "float16", 8, 3, 5)


def test_sizes_that_no_kernel_is_compiled_for_are_only_measured_if_asked_for():
    """Weights take more room in float32, and cells whose blocks exchange once a step also have messages."""
    found = measure.points(dtypes=["float32"])
    assert max(layer.hidden for layer in found if layer.cell in results.ONCE) == 512
    assert max(layer.hidden for layer in found if layer.cell not in results.ONCE) == 256
    assert {layer.input for layer in found} == {None, 8, 128}
    (asked,) = measure.points(["multiplicative_lstm"], ["float32"], [512], [3], [256])
    assert (asked.hidden, asked.input) == (512, 256)


def test_features_are_measured_of_cells_whose_input_is_modulated():
    for layer in measure.points():
        assert (layer.input is not None) == (layer.cell in ("multiplicative_lstm", "multiplicative_gru"))
    assert {layer.input for layer in measure.points(["multiplicative_gru"])} == set(measure.INPUTS)
    chosen = measure.points(["multiplicative_gru"], ["float16"], [8], [3], [7, 9], 5)
    assert chosen == [plans.Layer("multiplicative_gru", "float16", 8, 3, 5, input=features) for features in (7, 9)]


class OnCpu:
    """The CPU's operators in place of the kernels: W x is the input, and its weight is the identity."""

    def __init__(self) -> None:
        self.seen = []  # pairs of a forced exchange and a direction

    def kernels(self) -> products.Kernels:
        return products.Kernels(self.forward, self.backward)

    def forward(self, projected, input, h_0, c_0, weight_ih, weight_hh, weight_mhh, bias_m, bias_ih, bias_hh, *rest):
        self.seen.append((os.environ[cuda.FORCED], "forward"))
        *constants, _, _, _, cell, reverse, save = rest  # without resets
        weights = torch.eye(projected.shape[2], dtype=projected.dtype), weight_hh, bias_ih, bias_hh, None, None, None
        return torch.ops.fused_rnn.forward(projected, h_0, c_0, *weights, *constants, cell, reverse, 0.0, save)

    def backward(self, d_output, d_h_n, d_c_n, d_cells, output, cells, saved, input, h_0, c_0, *rest):
        self.seen.append((os.environ[cuda.FORCED], "backward"))
        _, weight_hh, _, *constants, _, _, _, cell, reverse, gradient_clip = rest
        rows = weight_hh.shape[0]
        x = output.new_zeros(*output.shape[:2], rows)
        weights = torch.eye(rows, dtype=output.dtype), weight_hh, None, None, None, None, None
        gradients = (d_output, d_h_n, d_c_n, d_cells, output, cells, saved, x, h_0, c_0, *weights, *constants)
        d, d_h_0, d_c_0, *_ = torch.ops.fused_rnn.backward(*gradients, cell, reverse, gradient_clip, True, False)
        return d_h_0, d_c_0, d, *(d.new_empty(0) for _ in range(3))


@pytest.fixture
def on_cpu(monkeypatch) -> OnCpu:
    """Clusters refuse more than 64 units."""

    def plan(cell, dtype, batch, hidden, input, direction, chip, forced):
        assert forced in measure.FORCED.values()
        if "warps" in forced and hidden > 64:
            raise RuntimeError(f"fused_rnn: clusters have no {hidden} units")
        if "warps" in forced and cell == "multiplicative_lstm" and input > 128:
            raise RuntimeError(f"fused_rnn: clusters have no {input} features")
        return cuda.Plan(forced.partition("=")[2], 8, 1, 1, *range(7))

    monkeypatch.setattr(cuda, "plan", plan)
    monkeypatch.delenv(cuda.FORCED, raising=False)
    return OnCpu()


def run(on_cpu: OnCpu, tmp_path: Path, *arguments: str, fails: bool = False) -> dict:
    out = tmp_path / "choice.json"
    options = choice.parse([*arguments, "--steps", "4", "--out", str(out)])
    with pytest.raises(SystemExit, match="^error: some points failed") if fails else contextlib.nullcontext():
        choice.run(options, HostClock(), H200, on_cpu.kernels())
    return json.loads(out.read_text())


SMALL = ("--cells", "lstm", "rnn_tanh", "--dtypes", "bfloat16", "--hidden", "24", "72", "--batches", "3")


def test_both_families_are_judged_and_timed_in_turns(on_cpu, tmp_path, capsys):
    result = run(on_cpu, tmp_path, *SMALL)
    assert result["digests"]["family"] == family.digest()
    sizes = [(point["hidden"], point["cell"]) for point in result["points"]]
    assert sizes == list(product((24, 72), ("lstm", "rnn_tanh")))
    for point in result["points"]:
        if point["hidden"] == 72:
            assert point["cluster"] == {"refused": "clusters have no 72 units"}
            assert point["blocks"]["not_timed"] == "there is no cluster beside it"
            continue
        for name, exchange in zip(results.FAMILIES, ("warps", "blocks"), strict=True):
            found = point[name]
            assert found["plans"]["backward"] == f"exchange={exchange},sequences=8,parts=1,segments=1"
            assert 0 < found["error"]["relative"] <= found["error"]["allowed"]
            assert min(found[direction]["us_per_step"] for direction in plans.DIRECTIONS) > 0
    before = [
        (forced, direction) for forced in measure.FORCED.values() for direction in ("forward", "backward", "forward")
    ]
    turn = [each for each in product(measure.FORCED.values(), plans.DIRECTIONS) for _ in range(plans.CALLS)]
    assert on_cpu.seen == 2 * (before + (1 + measure.ROUNDS) * turn)
    said = capsys.readouterr().out
    (tmp_path / "choice.json").rename(tmp_path / "choice-none.json")
    choice.main(["--show", str(tmp_path / "choice-none.json")])
    shown = capsys.readouterr().out.splitlines()
    assert set(shown[1:-1]) <= set(said.splitlines())
    assert len(shown) == 2 + 4
    assert shown[1].startswith(f"{'lstm':26} bfloat16 H=24   B=3    cluster ")
    assert shown[1].endswith(" times as fast")


def test_points_of_a_modulated_input_are_planned_and_judged_with_their_features(on_cpu, tmp_path, monkeypatch, capsys):
    def judge(cell, dtype, device, closely, **sizes):
        raise RuntimeError(f"judged {'closely' if closely else 'by roundings'} with {sizes}")

    monkeypatch.setattr(measure, "Judge", judge)
    options = ("--cells", "multiplicative_lstm", "rnn_tanh", "--dtypes", "float16", "--hidden", "24", "--batches", "3")
    result = run(on_cpu, tmp_path, *options, "--inputs", "8", "136", fails=True)
    few, other, many = result["points"]
    assert [point.get("input") for point in (few, other, many)] == [8, None, 136]
    assert few["cluster"]["failed"] == "judged by roundings with {'T': 16, 'B': 3, 'I': 8, 'H': 24}"
    assert other["cluster"]["failed"] == "judged by roundings with {'T': 16, 'B': 3, 'I': 16, 'H': 24}"
    assert many["cluster"] == {"refused": "clusters have no 136 features"}
    assert f"{'multiplicative_lstm':26} float16  H=24   B=3    I=8    cluster judged" in capsys.readouterr().out
    assert result["chip"] == {**vars(H200), "clusters": list(H200.clusters)}
    assert few["blocks"]["failed"] == few["cluster"]["failed"]  # neither family is at fault


IN_FLOAT32 = ("--dtypes", "float32", "--hidden", "24", "--batches", "3")


def test_float32_is_judged_closely_and_after_many_steps_if_there_is_no_kink(on_cpu, tmp_path, monkeypatch):
    def judge(cell, dtype, device, closely, **sizes):
        raise RuntimeError(f"{dtype} {closely} {sizes['T']}")

    monkeypatch.setattr(measure, "Judge", judge)
    points = run(on_cpu, tmp_path, *IN_FLOAT32, "--cells", "gru", "rnn_relu", fails=True)["points"]
    assert [point["cluster"]["failed"] for point in points] == ["torch.float32 True 32", "torch.float32 True 4"]


@pytest.mark.parametrize(("off", "wrong"), [(0.0, False), (2e-7, False), (2e-6, True)])
def test_float32_is_wrong_if_it_is_off_by_more_than_twice_the_reference(on_cpu, off, wrong, tmp_path):
    """The errors are below 32 roundings, and all have the same sign."""

    class Off(OnCpu):
        def forward(self, *operands):
            output, h_n, *rest = super().forward(*operands)
            return output, h_n * (1 + off), *rest

    (point,) = run(Off(), tmp_path, *IN_FLOAT32, "--cells", "gru", fails=wrong)["points"]
    for name in results.FAMILIES:
        assert point[name]["error"]["result"] == "h_n" or not wrong
        assert point[name]["error"]["allowed"] < 32 * torch.finfo(torch.float32).eps
        assert ("failed" in point[name]) == wrong


def test_gradients_of_weights_may_be_off_as_sums_over_all_steps_and_sequences():
    """torch computes these gradients, in another order than the reference."""
    sizes = {"T": 25, "B": 36, "I": 2, "H": 3}
    judge = check.Judge("gru", torch.float32, torch.device("cpu"), True, **sizes)
    exact, eps = judge._exact, torch.finfo(torch.float32).eps
    for name in exact:
        summed = "weight" in name or "bias" in name
        for off, wrong in ((20 * eps, not summed), (40 * eps, True)):
            assert judge.worst({name: exact[name] * (1 + off)}, "here").wrong == wrong


def test_what_is_wrong_or_fails_is_recorded_and_not_timed(on_cpu, tmp_path):
    class Spoiled(OnCpu):
        def forward(self, *operands):
            output, *rest = super().forward(*operands)
            if "warps" in self.seen[-1][0] and operands[-3] == "lstm":
                output[1, 2, 3] += 1
            return output, *rest

        def backward(self, *operands):
            if "warps" in os.environ[cuda.FORCED] and operands[-3] == "rnn_tanh":
                raise RuntimeError("a launch failed\nsomewhere")
            return super().backward(*operands)

    lstm, rnn = run(Spoiled(), tmp_path, *SMALL, "--hidden", "24", fails=True)["points"]
    assert lstm["cluster"]["failed"].startswith("its results are wrong: on cpu with T=16 B=3 I=16 H=24: output is off ")
    assert rnn["cluster"]["failed"] == "a launch failed"
    for point in (lstm, rnn):
        assert not set(plans.DIRECTIONS) & point["cluster"].keys()
        assert point["blocks"]["forward"]["us_per_step"] > 0
        assert not results.outcome(point).ahead


def test_a_block_that_timed_out_is_recorded_of_its_family(on_cpu, tmp_path, monkeypatch):
    """The timeout is in a timed call: each family has made three calls before."""

    def raise_timed_out():
        forced, direction = on_cpu.seen[-1]
        if (direction, "warps" in forced) == ("backward", True) and len(on_cpu.seen) > 6:
            raise RuntimeError("a kernel gave up waiting")

    monkeypatch.setattr(cuda, "raise_timed_out", raise_timed_out)
    (point,) = run(on_cpu, tmp_path, *SMALL, "--hidden", "24", "--cells", "lstm", fails=True)["points"]
    assert point["cluster"]["backward"] == {"failed": "a kernel gave up waiting"}
    assert point["cluster"]["forward"]["us_per_step"] > 0
    assert results.outcome(point).cluster.obstacle == "a kernel gave up waiting"
    assert results.outcome(point).blocks.total > 0


def test_points_without_time_are_recorded_as_skipped(on_cpu, tmp_path, capsys):
    result = run(on_cpu, tmp_path, *SMALL, "--seconds", "1e-9")
    assert all("were over" in point["skipped"] for point in result["points"])
    assert "4 points were skipped" in capsys.readouterr().out
    assert results.read(tmp_path / "choice.json").outcomes == ()


def test_an_interrupted_run_leaves_its_points(on_cpu, tmp_path, monkeypatch):
    asked = []

    def interrupted(layer, *others, measure=measure.measure):
        asked.append(layer)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return measure(layer, *others)

    monkeypatch.setattr(choice, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(on_cpu, tmp_path, *SMALL)
    assert len(json.loads((tmp_path / "choice.json").read_text())["points"]) == 1


def test_without_a_gpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(cuda, "obstacle", lambda index: "there is no GPU")
    with pytest.raises(
        common.InputError, match="nothing can be measured, only --show, --write and --carry-over work: there is no GPU"
    ):
        choice.main([])
