"""Packed sequences: torch.nn's results by the fused path, at a cost proportional to the rows that they hold."""

import contextlib
import itertools
import random

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import fused_rnn
from fused_rnn.packing import Packing

from .conftest import some_of
from .test_modules import MODULES, PAIRS, B, H, I, T, flat, is_lstm, pair, random_state

LENGTHS = {
    "sorted": [T, 4, 4, 1],
    "unsorted": [2, T, 1, T],
    "equal": [T, T, T],
    "one": [T],
    # cut into several stretches of time
    "uneven": [23, 9, 8, 8, 3, 3, 2, 1, 1, 1, 1, 1, 1, 1],
    "uneven-unsorted": [1, 2, 1, 1, 1, 17, 1, 3, 1, 1],
}
UNEVEN = [name for name in LENGTHS if name.startswith("uneven")]


def packed(lengths: list[int], **how) -> PackedSequence:
    """Return random packed sequences; the data is a leaf."""
    generator = torch.Generator().manual_seed(sum(lengths))
    x = torch.randn(max(lengths), len(lengths), I, dtype=torch.float64, generator=generator).to(**how)
    sort = lengths == sorted(lengths, reverse=True)
    data, *layout = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=sort)
    return PackedSequence(data.requires_grad_(), *layout)


def weighted_sum(results: list[Tensor]) -> Tensor:
    return sum((r * torch.linspace(-1, 1, r.numel(), dtype=r.dtype).view_as(r)).sum() for r in results)


def results_and_gradients(module: nn.Module, x: PackedSequence, states: tuple[Tensor, ...]) -> list[Tensor]:
    hx = (states if is_lstm(module) else states[0]) if states else None
    output, final = module(x, hx)
    results = flat((output.data, final))
    return [*results, *torch.autograd.grad(weighted_sum(results), [x.data, *states, *module.parameters()])]


# Results ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_state", [False, True], ids=["no-state", "state"])
@pytest.mark.parametrize("layers", [1, 2], ids=["one-way", "two-layers-both-ways"])
@pytest.mark.parametrize("order", LENGTHS)
@pytest.mark.parametrize("name", PAIRS)
def test_equals_torch(name, order, layers, with_state, backend):
    ours, theirs = pair(name, num_layers=layers, bidirectional=layers == 2)
    ours.backend = backend  # named explicitly: it runs or raises
    x = packed(LENGTHS[order])
    states = ()
    if with_state:
        state = random_state(theirs, layers**2, len(LENGTHS[order]), H)
        states = tuple(s.requires_grad_() for s in (state if is_lstm(theirs) else (state,)))
    for a, b in zip(results_and_gradients(ours, x, states), results_and_gradients(theirs, x, states)):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("with_state", [False, True], ids=["no-state", "state"])
@pytest.mark.parametrize("order", UNEVEN)
def test_projections_equal_torch(order, with_state, backend):
    ours, theirs = pair("lstm", num_layers=2, bidirectional=True, proj_size=3)
    ours.backend = backend
    batch = len(LENGTHS[order])
    sizes = [(4, batch, 3), (4, batch, H)] if with_state else []
    states = tuple(torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes)
    x = packed(LENGTHS[order])
    for a, b in zip(results_and_gradients(ours, x, states), results_and_gradients(theirs, x, states)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", LENGTHS)
def test_the_output_is_packed_as_the_input(order):
    x = packed(LENGTHS[order])
    output, state = MODULES["gru_reset_after"](I, H, batch_first=True, dtype=torch.float64)(x)
    assert isinstance(output, PackedSequence)
    assert output.data.shape == (len(x.data), H)
    for a, b in zip(output[1:], x[1:]):
        assert a is b
    assert not state._is_view()


OPTIONS = {
    "plain": {},
    "recompute": {"recompute": True},
    "zoneout": {"zoneout": 0.3},
    "weight_drop": {"weight_drop": 0.5},
    "variational": {"variational": True, "dropout": 0.5},
    "clipped": {"gradient_clip": 0.01},
    "learnt": {"learn_initial_state": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("order", ["sorted", *UNEVEN])
@pytest.mark.parametrize("name", MODULES)
def test_equals_lengths(name, order, options, backend):
    """Packing and the option ``lengths`` give the same results in all cells, with masks of one seed."""
    torch.manual_seed(0)
    module = MODULES[name](I, H, 2, bidirectional=True, dtype=torch.float64, backend=backend, **options)
    module.train("zoneout" not in options)  # zoneout draws a mask per step in training
    for state in (getattr(module, name, None) for name in ("h_0", "c_0")):
        if state is not None:
            nn.init.normal_(state)
    x = packed(LENGTHS[order])
    if module.variational:  # masks follow the packed order of sequences
        x = PackedSequence(x.data, x.batch_sizes)
    padded, lengths = pad_packed_sequence(x)
    state = None if module.learn_initial_state else random_state(module, 4, len(lengths), H)
    torch.manual_seed(1)
    output, final = module(x, state)
    torch.manual_seed(1)
    expected = flat(module(padded, state, lengths=lengths))
    results = flat((pad_packed_sequence(output)[0], final))
    tensors = [x.data, *module.parameters()]
    gradients = [torch.autograd.grad(weighted_sum(values), tensors) for values in (results, expected)]
    for a, b in zip([*results, *gradients[0]], [*expected, *gradients[1]]):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "both-ways"])
@pytest.mark.parametrize("order", UNEVEN)
def test_cell_states_of_all_steps(order, bidirectional, backend):
    module = MODULES["lstm"](I, H, 2, bidirectional=bidirectional, dtype=torch.float64, backend=backend)
    x = packed(LENGTHS[order])
    padded, lengths = pad_packed_sequence(x)
    _, _, cells = module(x, return_cells=True)
    _, _, expected = module(padded, lengths=lengths, return_cells=True)
    torch.testing.assert_close(pad_packed_sequence(cells)[0], expected)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_zoneout_and_dropout_of_each_step(training):
    """Every stretch draws masks for its own steps: at a probability of 1 nothing is left, or all is kept."""
    x = packed(LENGTHS["uneven"])
    module = MODULES["lstm"](I, H, 2, dtype=torch.float64, dropout=1.0, zoneout_cell=1.0).train(training)
    h, c = (torch.ones(2, len(LENGTHS["uneven"]), H, dtype=torch.float64) for _ in range(2))
    output, (_, c_n) = module(x, (h, c))
    assert (c_n == 1).all()
    dropped = module(PackedSequence(2 * x.data, *x[1:]), (h, c))[0].data
    assert torch.equal(dropped, output.data) == training  # the second layer reads nothing of the first


@pytest.mark.parametrize("bidirectional", some_of([False, True], False), ids=["one-way", "both-ways"])
@pytest.mark.parametrize("order", some_of(["sorted", "uneven-unsorted"], "uneven-unsorted"))
def test_double_backward(order, bidirectional, backend):
    module = MODULES["lstm"](I, 2, bidirectional=bidirectional, dtype=torch.float64, backend=backend, recompute=True)
    data, *layout = packed(LENGTHS[order])
    assert torch.autograd.gradgradcheck(lambda data: module(PackedSequence(data, *layout))[0].data, data)


@pytest.mark.parametrize("order", UNEVEN)
@pytest.mark.parametrize("name", ["gru_reset_after", "lstm"])
def test_compiled(name, order):
    """The graph breaks, but results and gradients are the same."""
    module = MODULES[name](I, H, bidirectional=True, dtype=torch.float64)
    x = packed(LENGTHS[order])
    compiled = torch.compile(module, backend="aot_eager")
    runs = []
    for call in (module, compiled, compiled):
        output, state = call(x)
        results = flat((output.data, state))
        runs.append([*results, *torch.autograd.grad(weighted_sum(results), [x.data, *module.parameters()])])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*runs))


def test_under_another_default_device():
    module, x = MODULES["lstm"](I, H, 2, dtype=torch.float64), packed(LENGTHS["uneven-unsorted"])
    expected, state = module(x)
    with torch.device("meta"):
        output, other_state = module(x)
    assert all(map(torch.equal, flat((output.data, other_state)), flat((expected.data, state))))


def test_data_of_any_strides():
    """The data may come from a transposed tensor that a user packed by hand."""
    module = MODULES["lstm"](I, H)
    rows = torch.randn(I, B * T).t()
    for sizes in ([B] * T, [B] * (T - 1) + [2, 1], [B * T - 9, *[1] * 9]):
        x = PackedSequence(rows, torch.tensor(sizes))
        expected = PackedSequence(rows.contiguous(), torch.tensor(sizes))
        assert torch.equal(module(x)[0].data, module(expected)[0].data)


def test_meta_device():
    module = MODULES["lstm"](I, H, device="meta")
    for lengths in ((4, 2), (9, 1, 1, 1)):
        output, (h, _) = module(pack_sequence([torch.empty(n, I, device="meta") for n in lengths]))
        assert (output.data.shape, output.data.device.type) == ((sum(lengths), H), "meta")
        assert h.shape == (1, len(lengths), H)


# The layout -------------------------------------------------------------------------------------------------


def test_equal_lengths_are_not_copied():
    x = packed([T, T, T]).data.detach()
    packing = Packing(torch.full((T,), 3), x.device)
    assert packing.lengths == [None]
    assert packing.pad(x)[0].data_ptr() == x.data_ptr() == packing.pack(packing.pad(x)).data_ptr()


@pytest.mark.parametrize("lengths", [*LENGTHS.values(), [4, 2, 2, 1]], ids=str)
def test_packs_what_it_pads(lengths):
    x = packed(sorted(lengths, reverse=True))
    packing = Packing(x.batch_sizes, x.data.device)
    expected, ends = pad_packed_sequence(x)
    stretches = packing.pad(x.data)
    assert torch.equal(packing.pack(stretches), x.data)
    whole = [nn.functional.pad(part, (0, 0, 0, len(ends) - part.shape[1])) for part in stretches]
    assert torch.equal(torch.cat(whole), expected)
    steps = [torch.full(part.shape[1:2], len(part)) if n is None else n for part, n in zip(stretches, packing.lengths)]
    assert torch.equal(sum(nn.functional.pad(n, (0, len(ends) - len(n))) for n in steps), ends)


@pytest.mark.parametrize(
    ("sizes", "rows", "message"),
    [
        ([3, -1], 2, "must not increase, got -1 at step 1 after 3"),
        ([1, 2, 2], 5, "must not increase, got 2 at step 1 after 1"),
        ([2, 0], 2, "must be positive and must not increase, got 0 at step 1 after 2"),
        ([0], 0, "got 0 at step 0"),
        ([4, 3], 6, "add up to 7 rows, and its data has 6"),
    ],
)
def test_batch_sizes_that_are_none_are_refused(sizes, rows, message):
    with pytest.raises(ValueError, match=message):
        fused_rnn.GRU(I, H)(PackedSequence(torch.randn(rows, I), torch.tensor(sizes)))


def test_cuda_graphs_refuse_different_lengths(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    device = torch.device("cuda")
    assert Packing(torch.tensor([2, 2]), device).lengths == [None]
    with pytest.raises(RuntimeError, match="give it a padded tensor and lengths"):
        Packing(torch.tensor([2, 1]), device)


def random_lengths(seed: int) -> list[int]:
    """Draw lengths between all equal and a few much longer than the others."""
    draw = random.Random(seed)
    most, tail = draw.choice([1, 3, 30, 300]), draw.choice([0.0, 0.5, 1.0, 3.0])
    return [max(1, int(most * draw.random() ** tail)) for _ in range(draw.choice([1, 2, 7, 100]))]


@pytest.mark.parametrize("seed", range(100))
def test_no_stretch_is_more_than_half_padding(seed):
    """The number of stretches is minimal: a single one if the whole is at least half full."""
    lengths = sorted(random_lengths(seed), reverse=True)
    sizes = torch.tensor([sum(length > t for length in lengths) for t in range(lengths[0])])
    stretches = Packing(sizes, sizes.device).pad(torch.zeros(sum(lengths), 1))
    begin = 0
    for part in stretches:
        steps, batch, _ = part.shape
        assert batch == sizes[begin]
        assert 2 * int(sizes[begin : begin + steps].sum()) >= steps * batch
        begin += steps
    assert begin == len(sizes)
    assert all(2 * after.shape[1] < before.shape[1] for before, after in itertools.pairwise(stretches))
    assert (len(stretches) == 1) == (2 * sum(lengths) >= lengths[0] * len(lengths))


# The cost ---------------------------------------------------------------------------------------------------


class Calls(TorchDispatchMode):
    """Sums steps x sequences over all calls of the fused operators, by operator name."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, int] = {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.namespace.startswith("fused_rnn"):
            names = [argument.name for argument in function._schema.arguments]
            steps, batch, _ = arguments[names.index("input")].shape
            name = function._schema.name.split("::")[1]
            self.rows[name] = self.rows.get(name, 0) + steps * batch
        return function(*arguments, **(options or {}))


# 1030 rows in 31 sequences, the longest of 1000
VERY_UNEVEN = [1000, *[1] * 30]


@pytest.mark.parametrize("lengths", [LENGTHS["uneven"], VERY_UNEVEN], ids=["uneven", "very-uneven"])
@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"proj_size": 3}, {"zoneout": 0.1}], ids=str)
def test_the_work_follows_the_rows(options, lengths, backend):
    module = MODULES["lstm"](I, H, 2, bidirectional=True, dtype=torch.float64, backend=backend, **options)
    with Calls() as calls:
        module(packed(lengths))[0].data.sum().backward()
    rows = 4 * sum(lengths)  # in two layers and two directions
    assert set(calls.rows) == {"forward", "backward_from_states" if "recompute" in options else "backward"}
    assert all(rows <= called <= 2 * rows for called in calls.rows.values())


def saved_bytes(module: nn.Module, lengths: list[int], autocast: bool) -> int:
    """Return the bytes that the call keeps for the backward pass, counting each storage once."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    x = packed(lengths, dtype=torch.float32)
    how = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with how, saved_tensors_hooks(keep, lambda tensor: tensor):
        output, _ = module(x)
    assert output.data.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"proj_size": 8}, {"zoneout": 0.1}], ids=str)
def test_memory_follows_the_rows(options, autocast):
    """Very different lengths keep less than twice the bytes of equal lengths with as many rows."""
    module = fused_rnn.LSTM(I, 64, 2, bidirectional=True, **options)
    equal, uneven = (saved_bytes(module, lengths, autocast) for lengths in ([10] * 103, VERY_UNEVEN))
    assert uneven < 2 * equal
