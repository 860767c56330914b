"""The ways to run a cell: each computes what the reference does, and is timed where it can run."""

from dataclasses import replace

import pytest
import torch

from benchmarks.speed.candidates import LOOPS, OPTIONAL, Packed, candidates, fused, obstacle, wanted_at, worthwhile
from benchmarks.speed.candidates import compiled as compiled_loop
from benchmarks.speed.cases import CELLS, MODES, STEP_CELLS, STEP_MODES, Case, Shape, random_operands
from benchmarks.speed.check import Bench
from benchmarks.speed.measure import in_one_piece
from benchmarks.speed.plan import LIBRARY_CELLS, episodic, filled, sized

SMALL = Shape("small", batch=3, input_size=5, hidden_size=7, steps=6)
POINT = Case("lstm", sized(7, 3, 5), "forward", group="main")
RAGGED = Case("lstm", sized(7, 4, 9, ragged=True), "training", group="ragged")


def assert_right(case: Case, backends=("reference",), asked=None) -> list[str]:
    """Check that all candidates are right; return their names."""
    bench = Bench(case.shape, getattr(torch, case.dtype))
    found = candidates(case, backends, asked=asked)
    for candidate in found:
        error = bench.error(candidate, bench.ready(candidate, case))
        assert not error.wrong, f"{candidate.title}: {error}"
    return [candidate.name for candidate in found]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["training", "forward", "stream"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_candidate_computes_what_the_reference_does(monkeypatch, cell, mode, dtype):
    monkeypatch.setattr("benchmarks.speed.candidates.COMPILER", "eager")
    names = assert_right(Case(cell, SMALL, mode, dtype), asked=OPTIONAL)
    assert names[0] == "fused"
    assert ("fused-recompute" in names) == (mode == "training")
    assert names[-3:] == ["eager", "script", "compiled"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_several_layers_are_compared_with_the_reference(cell, mode):
    shape = Shape("small", batch=2, input_size=5, hidden_size=4, steps=3, layers=3)
    bench, case = Bench(shape, torch.float32), Case(cell, shape, mode)
    for candidate in candidates(case, ["reference"]):
        ready = bench.ready(candidate, case)
        assert not bench.error(candidate, ready).wrong, candidate.title
        assert sum("weight_hh" in name for name in ready.run()) == (3 if mode == "training" else 0)


@pytest.mark.parametrize("mode", STEP_MODES)
@pytest.mark.parametrize("cell", STEP_CELLS)
def test_single_steps_compute_what_the_reference_does(cell, mode):
    bench, case = Bench(SMALL, torch.float32), Case(cell, SMALL, mode)
    found = candidates(case, ["reference"])
    assert [candidate.name for candidate in found] == ["fused", "torch"]
    for candidate in found:
        ready = bench.ready(candidate, case)
        error = bench.error(candidate, ready)
        assert not error.wrong, f"{candidate.title}: {error}"
        parameters = {f"gradient of {name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        gradients = {"gradient of input", *parameters} if mode == "stream_training" else set()
        assert set(ready.run()) == {"output", *gradients}


@pytest.mark.parametrize("cell", ["lstm", "lstm_cell"])
def test_every_step_of_a_stream_is_a_call(cell):
    """A step records a gradient unless the mode has none."""
    bench = Bench(SMALL, torch.float32)
    for mode in STEP_MODES:
        case = Case(cell, SMALL, mode)
        for candidate in candidates(case, ["reference"]):
            ready = bench.ready(candidate, case)
            module, calls = ready.module.cell if cell == "lstm_cell" else ready.module, []
            module.register_forward_hook(lambda *_, calls=calls: calls.append(torch.is_grad_enabled()))
            ready.run()
            assert calls == [mode != "stream"] * SMALL.steps


@pytest.mark.parametrize(("steps", "at_once"), [(1, 1), (7, 7), (32, 16), (58, 2)])
def test_the_compiled_loop_takes_few_steps_at_a_time(monkeypatch, steps, at_once):
    monkeypatch.setattr("benchmarks.speed.candidates.COMPILER", "eager")
    shape = replace(SMALL, steps=steps)
    bench, candidate = Bench(shape, torch.float32), compiled_loop("lstm")
    ready = bench.ready(candidate, Case("lstm", shape, "forward"))
    lengths = []
    loop = ready.module.loop
    ready.module.loop = lambda part, *rest: (lengths.append(len(part)), loop(part, *rest))[1]
    assert not bench.error(candidate, ready).wrong
    assert sum(lengths) == steps
    assert set(lengths) == {at_once}


def test_on_a_gpu_the_compiled_loop_is_whole(monkeypatch):
    monkeypatch.setattr("benchmarks.speed.candidates.COMPILER", "aot_eager")
    shape = replace(SMALL, steps=2)
    case = Case("lstm", shape, "training", group="compiled")
    _, candidate = candidates(case, ["reference"], "cuda")
    bench = Bench(shape, torch.float32)
    ready = bench.ready(candidate, case)
    assert ready.module.at_once is None
    assert not bench.error(candidate, ready).wrong


def test_a_training_step_differentiates_input_and_every_parameter():
    candidate = fused("multiplicative_lstm", "reference")
    bench = Bench(SMALL, torch.float32)
    found = bench.ready(candidate, Case("multiplicative_lstm", SMALL, "training")).run()
    parameters = {f"{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "weight_mih", "weight_mhh", "bias_m")}
    assert set(found) == {"output", "gradient of input", *(f"gradient of {name}" for name in parameters)}


def test_a_gradient_of_the_last_output_alone_is_zero_elsewhere():
    input, d_output = random_operands(replace(SMALL, last_only=True), torch.float32)
    assert input.all()
    assert not d_output[:-1].any()
    assert d_output[-1].all()


def test_the_weights_of_torch_nn_are_laid_out_for_cudnn_before_the_time_is_taken(monkeypatch):
    flattened = []
    flatten = torch.nn.LSTM.flatten_parameters

    def spy(module):
        flattened.append({name: weight.clone() for name, weight in module.named_parameters()})
        flatten(module)

    monkeypatch.setattr(torch.nn.LSTM, "flatten_parameters", spy)
    bench, (ours, theirs) = Bench(POINT.shape, torch.float32), candidates(POINT, ["cpu"], asked=["torch"])
    ready = bench.ready(theirs, POINT)
    weights = bench.ready(ours, POINT).module.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in flattened[-1].items())
    assert not in_one_piece(ready.module)  # PyTorch moves no weights on a CPU
    assert in_one_piece(torch.nn.Linear(3, 4, bias=False))


# Candidates by group ----------------------------------------------------------------------------------------


def test_beside_a_fused_cell_stands_torch_nn_or_where_it_lacks_the_cell_the_loop():
    beside = {cell: [way.name for way in candidates(Case(cell, SMALL, "training"), ["reference"])] for cell in CELLS}
    assert beside["lstm"] == ["fused", "torch"]
    assert beside["gru"] == ["fused", "torch", "eager"]  # torch.nn's GRU resets after the product
    assert beside["multiplicative_gru"] == ["fused", "eager"]


def test_groups_of_a_gpu_name_their_backends():
    names = [way.name for way in candidates(replace(POINT, mode="training"), [], asked=["recompute", "torch"])]
    ours = [backend for backend in ("cpu", "cuda", "triton") if obstacle(backend, "cpu") is None]
    assert names == [*(name + way for name in ours for way in ("", "-recompute")), "torch"]
    assert [way.name for way in candidates(POINT, [], asked=["recompute", "torch"])] == [*ours, "torch"]


def test_only_what_a_group_is_for_is_timed_there():
    assert wanted_at(replace(POINT, group="honest")) == ("torch",)
    assert wanted_at(replace(POINT, group="main")) == LOOPS
    assert {"torch", "flashrnn", "torchrl"} <= set(wanted_at(replace(POINT, group="rivals")))
    assert wanted_at(replace(POINT, group="compiled")) == ("compiled",)


@pytest.mark.parametrize(
    ("change", "left_out"),
    [
        ({"directions": 2}, {"eager", "graphed", "compiled", "flashrnn", "torchrl"}),
        ({"layers": 2}, {"compiled", "flashrnn", "torchrl"}),
        ({"lengths": (5, 4, 3)}, {"eager", "flashrnn", "torchrl"}),
        ({"batch": 10_000}, {"graphed"}),
    ],
    ids=["directions", "layers", "lengths", "batch"],
)
def test_a_rival_that_cannot_run_a_shape_is_left_out(change, left_out):
    names = ("torch", "eager", "graphed", "compiled", "flashrnn", "torchrl")
    assert all(worthwhile(name, POINT) for name in names)
    changed = replace(POINT, shape=replace(POINT.shape, **change))
    missing = {name for name in names if not worthwhile(name, changed)}
    assert left_out <= missing
    assert "torch" not in missing


def test_a_library_runs_the_dtypes_that_it_has_and_takes_no_states():
    assert not worthwhile("torchrl", replace(POINT, dtype="float16"))
    assert worthwhile("flashrnn", replace(POINT, dtype="float16"))
    assert not worthwhile("flashrnn", replace(POINT, mode="stream"))


# Sequences of different lengths -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", LIBRARY_CELLS)
def test_every_way_to_run_what_is_filled_computes_what_the_reference_does(cell, mode):
    shape = filled("25 %", steps=20, batch=10, size=6)
    assert assert_right(Case(cell, shape, mode, group="fills")) == ["packed", "lengths", "torch"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_and_padded_sequences_give_the_same_results(dtype):
    names = assert_right(replace(RAGGED, dtype=dtype), ["cpu"])
    assert names == ["cpu", "cpu-padded", "torch", "torch-padded"]


def test_an_error_in_a_packed_sequence_is_seen_wherever_it_is():
    bench, packed = Bench(RAGGED.shape, torch.float32), candidates(RAGGED, ["cpu"])[0]
    ready = bench.ready(packed, RAGGED)
    assert isinstance(ready, Packed)
    assert not bench.error(packed, ready).wrong
    right = {name: tensor.clone() for name, tensor in ready.run().items()}
    assert len(right["output"]) == sum(RAGGED.shape.lengths)
    for name, row in [("output", 0), ("output", -1), ("gradient of input", -1)]:
        spoiled = right[name].clone()
        spoiled[row] += 1
        ready.run = lambda results={**right, name: spoiled}: results
        error = bench.error(packed, ready)
        assert error.wrong
        assert error.result == name


# Episodes within sequences ----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["0 %", "30 %", "100 %"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", LIBRARY_CELLS)
def test_every_way_to_run_episodes_computes_what_the_reference_does(cell, mode, share):
    case = Case(cell, episodic(share, steps=9, batch=4, size=6), mode)
    assert assert_right(case, ["cpu"]) == ["resets", "without", "steps", "split", "packed"]
    bench = Bench(case.shape, torch.float32)
    for candidate in candidates(case, ["cpu"]):  # training adds gradients of the input and four parameters
        assert len(bench.ready(candidate, case).run()) == {"forward": 1, "training": 6}[mode]


@pytest.mark.parametrize("name", ["resets", "without"])
def test_what_begins_no_episodes_anew_or_others_is_found_out(name):
    case = Case("lstm", episodic("30 %", steps=9, batch=4, size=6), "forward")
    bench = Bench(case.shape, torch.float32)
    (way,) = (way for way in candidates(case, ["cpu"]) if way.name == name)
    ready = bench.ready(way, case)
    assert not bench.error(way, ready).wrong
    assert bench.error(replace(way, episodes=not way.episodes), ready).wrong
