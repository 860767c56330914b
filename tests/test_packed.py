"""Packed sequences: what torch.nn makes of them, on the fused path."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from fused_rnn.packing import Packing

from .test_modules import MODULES, PAIRS, B, H, I, T, flat, is_lstm, pair, random_state

LENGTHS = {
    "sorted": [T, 4, 4, 1],
    "unsorted": [2, T, 1, T],
    "equal": [T, T, T],
    "one": [T],
}


def packed(lengths: list[int], **how) -> PackedSequence:
    """Random sequences; the data is a leaf."""
    generator = torch.Generator().manual_seed(sum(lengths))
    x = torch.randn(max(lengths), len(lengths), I, dtype=torch.float64, generator=generator)
    sort = lengths == sorted(lengths, reverse=True)
    data, *layout = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=sort)
    return PackedSequence(data.requires_grad_(), *layout)


def results_and_gradients(module: nn.Module, x: PackedSequence, states: tuple[Tensor, ...]) -> list[Tensor]:
    hx = (states if is_lstm(module) else states[0]) if states else None
    output, final = module(x, hx)
    results = flat((output.data, final))
    loss = sum((r * torch.linspace(-1, 1, r.numel(), dtype=r.dtype).view_as(r)).sum() for r in results)
    return [*results, *torch.autograd.grad(loss, [x.data, *states, *module.parameters()])]


@pytest.mark.parametrize("with_state", [False, True], ids=["no-state", "state"])
@pytest.mark.parametrize("layers", [1, 2], ids=["one-way", "two-layers-both-ways"])
@pytest.mark.parametrize("order", LENGTHS)
@pytest.mark.parametrize("name", PAIRS)
def test_equals_torch(name, order, layers, with_state, backend):
    ours, theirs = pair(name, num_layers=layers, bidirectional=layers == 2)
    ours.backend = backend  # named outright: it runs or raises
    x = packed(LENGTHS[order])
    states = ()
    if with_state:
        state = random_state(theirs, layers**2, len(LENGTHS[order]), H)
        states = tuple(s.requires_grad_() for s in (state if is_lstm(theirs) else (state,)))
    for a, b in zip(results_and_gradients(ours, x, states), results_and_gradients(theirs, x, states)):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", LENGTHS)
def test_the_output_is_packed_as_the_input(order):
    x = packed(LENGTHS[order])
    output, _ = MODULES["gru_reset_after"](I, H, batch_first=True, dtype=torch.float64)(x)
    assert isinstance(output, PackedSequence)
    assert output.data.shape == (len(x.data), H)
    for a, b in zip(output[1:], x[1:]):
        assert a is b


@pytest.mark.parametrize("order", ["sorted", "unsorted"])
@pytest.mark.parametrize("name", MODULES)
def test_equals_lengths(name, order, backend):
    """All cells: packing and the option ``lengths`` are two ways to say the same."""
    torch.manual_seed(0)
    module = MODULES[name](I, H, 2, bidirectional=True, dtype=torch.float64, backend=backend)
    x = packed(LENGTHS[order])
    padded, lengths = pad_packed_sequence(x)
    state = random_state(module, 4, len(lengths), H)
    output, final = module(x, state)
    for a, b in zip(flat((pad_packed_sequence(output)[0], final)), flat(module(padded, state, lengths=lengths))):
        torch.testing.assert_close(a, b)


def test_recompute_and_double_backward(backend):
    module = MODULES["lstm"](I, 2, dtype=torch.float64, backend=backend, recompute=True)
    data, *layout = packed([2, 3])
    assert torch.autograd.gradgradcheck(lambda data: module(PackedSequence(data, *layout))[0].data, data)


def test_data_of_any_strides():
    """What a user puts together from a transposed tensor."""
    module = MODULES["lstm"](I, H)
    rows = torch.randn(I, B * T).t()
    for sizes in ([B] * T, [B] * (T - 1) + [2, 1]):
        x = PackedSequence(rows, torch.tensor(sizes))
        expected = PackedSequence(rows.contiguous(), torch.tensor(sizes))
        assert torch.equal(module(x)[0].data, module(expected)[0].data)


def test_equal_lengths_are_not_copied():
    x = packed([T, T, T]).data.detach()
    packing = Packing(torch.full((T,), 3), x.device)
    assert packing.lengths is None
    assert packing.pad(x).data_ptr() == x.data_ptr() == packing.pack(packing.pad(x)).data_ptr()


def test_packs_what_it_pads():
    x = packed([4, 2, 2, 1])
    packing = Packing(x.batch_sizes, x.data.device)
    expected, lengths = pad_packed_sequence(x)
    assert torch.equal(packing.pad(x.data), expected)
    assert torch.equal(packing.lengths, lengths)
    assert torch.equal(packing.pack(expected), x.data)


def test_meta_device():
    module = MODULES["lstm"](I, H, device="meta")
    output, (h, _) = module(pack_sequence([torch.empty(n, I, device="meta") for n in (4, 2)]))
    assert (output.data.shape, output.data.device.type, h.shape) == ((6, H), "meta", (1, 2, H))
