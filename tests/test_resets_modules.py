"""Modules give for sequences of several episodes what each episode gives alone, with every other option."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn

from .conftest import episodes, random_like, relative_error
from .test_modules import MODULES, flat

DTYPE = torch.float64
I, H, T, B = 5, 6, 9, 4


def made(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    module = MODULES[name](I, H, 2, dtype=DTYPE, bidirectional=True, **options)
    if module.learn_initial_state:
        for name in module._state_sizes():
            nn.init.normal_(getattr(module, name))
    return module


def drawn(seed: int = 1, share: float = 0.4) -> tuple[Tensor, Tensor]:
    """Draw an input (T, B, I) and boundaries (T, B)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(T, B, I, dtype=DTYPE, generator=generator)
    return x, torch.rand(T, B, generator=generator) < share


def given_state(module: nn.Module) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    sizes = module._state_sizes().values()
    return tuple(torch.randn(4, B, size, dtype=DTYPE, generator=generator) for size in sizes)


def by_itself(module: nn.Module, x: Tensor, resets: Tensor, lengths: list[int], hx) -> list[Tensor]:
    """Return outputs and final states, from a call of the whole module for every episode."""
    runs_back = torch.arange(4).view(4, 1, 1) % 2 == 1
    learnt = [getattr(module, name) for name in module._state_sizes()] if module.learn_initial_state else None
    outputs, finals = [], []
    for b, length in enumerate(lengths):
        zeros = [torch.zeros(4, 1, size, dtype=DTYPE) for size in module._state_sizes().values()]
        new = zeros if learnt is None else learnt
        given = new if hx is None else [part[:, b : b + 1] for part in hx]
        parts, final = [], [None] * len(new)
        found = episodes(resets[:, b], length)
        for begin, end in found:
            keeps = torch.where(runs_back, end == length, begin == 0 and not bool(resets[0, b]))
            state = [torch.where(keeps, a, b) for a, b in zip(given, new)]
            output, *last = flat(module(x[begin:end, b : b + 1], module._state_of(tuple(state))))
            parts.append(output)
            final = [torch.where(runs_back, last_one if begin == 0 else before, last_one) if before is not None
                     else last_one for before, last_one in zip(final, last)]  # fmt: skip
        width = parts[0].shape[2]
        outputs.append(torch.cat([*parts, torch.zeros(T - length, 1, width, dtype=DTYPE)]))
        finals.append(final)
    return [torch.cat(outputs, 1), *(torch.cat(of_all, 1) for of_all in zip(*finals))]


def compared(module: nn.Module, found: list[Tensor], expected: list[Tensor]) -> None:
    leaves = list(module.parameters())
    d_results = random_like(expected)
    grads = [torch.autograd.grad(r, leaves, d_results, retain_graph=True, allow_unused=True) for r in (found, expected)]
    used = [[g for g, other in zip(*pair) if other is not None] for pair in (grads, grads[::-1])]
    assert relative_error([*found, *used[0]], [*expected, *used[1]]) < 1e-11


OPTIONS = {
    "plain": {},
    "learnt": {"learn_initial_state": True},
    "recompute": {"recompute": True, "learn_initial_state": True},
    "clipped": {"gradient_clip": 0.05},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("state", [False, True], ids=["begun", "handed"])
@pytest.mark.parametrize("name", MODULES)
def test_modules_give_what_every_episode_gives_alone(name, backend, state, options):
    """This holds for all layers and both directions, with or without hx, whole, with lengths and packed."""
    module, (x, resets) = made(name, backend=backend, **options), drawn()
    hx = given_state(module) if state else None
    given = None if hx is None else module._state_of(hx)
    compared(module, flat(module(x, given, resets=resets)), by_itself(module, x, resets, [T] * B, hx))
    lengths = [2, 9, 1, 7]
    expected = by_itself(module, x, resets, lengths, hx)
    compared(module, flat(module(x, given, torch.tensor(lengths), resets=resets)), expected)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    output, *final = flat(module(packed, given, resets=resets))
    compared(module, [pad_packed_sequence(output)[0], *final], expected)


@pytest.mark.parametrize("state", [False, True], ids=["begun", "handed"])
@pytest.mark.parametrize("learnt", [False, True], ids=["zeros", "learnt"])
@pytest.mark.parametrize("lengths", [[T] * B, [2, 9, 1, 7], [9, 1, 1, 1]], ids=str)
def test_projections(backend, state, learnt, lengths):
    module = made("lstm", proj_size=3, learn_initial_state=learnt, backend=backend)
    x, resets = drawn(share=0.5)
    hx = given_state(module) if state else None
    expected = by_itself(module, x, resets, lengths, hx)
    ends = torch.tensor(lengths)
    compared(module, flat(module(x, hx, ends, resets=resets)), expected)
    packed = pack_padded_sequence(x, ends, enforce_sorted=False)
    output, *final = flat(module(packed, hx, resets=resets))
    compared(module, [pad_packed_sequence(output)[0], *final], expected)


def test_packed_sequences_of_many_stretches():
    """Boundaries may lie between two stretches, and all stretches contribute to the gradient of a learnt state."""
    lengths = torch.tensor([40, 1, 17, 2, 3, 9, 33, 2, 1, 1, 40, 5])
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(40, 12, I, dtype=DTYPE, generator=generator)
    for share in (0.2, 1.0):
        resets = torch.rand(40, 12, generator=generator) < share
        for options in ({}, {"proj_size": 3}):
            module = made("lstm", learn_initial_state=True, **options)
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            output, *final = flat(module(packed, resets=resets))
            expected = flat(module(x, lengths=lengths, resets=resets))
            compared(module, [pad_packed_sequence(output)[0], *final], expected)


def test_zoneout_and_dropout_draw_as_in_one_call(backend):
    """Resets draw nothing: without a boundary the results have the same bits as without resets."""
    x, resets = drawn()
    options = {"zoneout": 0.2, "zoneout_cell": 0.3, "dropout": 0.4, "weight_drop": 0.2, "variational": True}
    results = []
    for given in (None, torch.zeros_like(resets)):
        torch.manual_seed(3)
        results.append(made("lstm", backend=backend, **options)(x, resets=given)[0])
    assert torch.equal(*results)
    module = made("lstm", backend=backend, zoneout=0.2, zoneout_cell=0.3, learn_initial_state=True).eval()
    compared(module, flat(module(x, resets=resets)), by_itself(module, x, resets, [T] * B, None))


def test_batch_first_and_unbatched():
    x, resets = drawn()
    expected = made("gru")(x, resets=resets)[0]
    module = made("gru", batch_first=True)
    torch.testing.assert_close(module(x.transpose(0, 1), resets=resets.T)[0].transpose(0, 1), expected)
    packed = pack_padded_sequence(x, torch.full((B,), T))
    output, _ = pad_packed_sequence(module(packed, resets=resets.T)[0])
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(made("gru")(x[:, 1], resets=resets[:, 1])[0], expected[:, 1])


def test_chunks_of_a_stream():
    """Chunks that pass on their states give what the whole does; a reset in the first step drops the state."""
    torch.manual_seed(0)
    module, (x, resets) = fused_rnn.LSTM(I, H, 2, dtype=DTYPE, learn_initial_state=True), drawn()
    resets[3] = True
    resets[6, 0] = True
    whole, final = module(x, resets=resets)
    state, parts = None, []
    for begin in (0, 3, 6):
        state = None if state is None else tuple(part.requires_grad_() for part in state)
        output, after = module(x[begin : begin + 3], state, resets=resets[begin : begin + 3])
        parts.append(output)
        if begin == 3:  # every sequence begins there
            assert all((grad == 0).all() for grad in torch.autograd.grad(output.sum(), state, retain_graph=True))
        state = tuple(part.detach() for part in after)
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_compiled_and_exported(name):
    module, (x, resets) = made(name, learn_initial_state=True), drawn()
    results = []
    for run in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        output = run(x, resets=resets)[0]
        results.append((output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))))
    assert all(torch.equal(a, b) for a, b in zip(*results))
    batch, steps = torch.export.Dim("batch"), torch.export.Dim("steps", min=2)
    sizes = {0: steps, 1: batch}
    given = {"input": sizes, "resets": sizes}
    program = torch.export.export(module.eval(), (x,), {"resets": resets}, dynamic_shapes=given)
    x, resets = x[:6, :3], resets[:6, :3]
    torch.testing.assert_close(program.module()(x, resets=resets)[0], module(x, resets=resets)[0])


def test_autocast():
    """Initial states are cast like everything else, also with projections."""
    for options in ({}, {"proj_size": 3}):
        module, (x, resets) = made("lstm", learn_initial_state=True, **options).float(), drawn()
        exact = module.double()(x, resets=resets)[0]
        module = module.float()
        with torch.autocast("cpu", torch.bfloat16):
            output = module(x.float(), resets=resets)[0]
        assert output.dtype == torch.bfloat16
        assert relative_error([output], [exact]) < 0.05


def test_traced_by_fx():
    """A module stays one node, whose call takes resets."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = made("gru")

        def forward(self, x: Tensor, resets: Tensor) -> Tensor:
            return self.layer(x, resets=resets)[0]

    model, given = Model(), drawn()
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(*given), model(*given))


# Mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "steps", "resets", "message"),
    [
        ({}, (4, 3), (3, 4), r"resets must have shape \(4, 3\), \(T, B\) of this input, got \(3, 4\)"),
        ({"batch_first": True}, (4, 3), (3, 4), r"resets must have shape \(4, 3\), \(B, T\) of this input"),
        ({}, (4,), (4, 1), r"resets must have shape \(4,\), \(T,\) of this input, got \(4, 1\)"),
    ],
)
def test_modules_refuse(options, steps, resets, message):
    module = fused_rnn.GRU(2, 3, **options)
    with pytest.raises(RuntimeError, match=message):
        module(torch.zeros(*steps, 2), resets=torch.zeros(resets, dtype=torch.bool))


def test_packed_sequences_refuse_boundaries_of_another_length():
    packed = pack_padded_sequence(torch.zeros(4, 2, 2), torch.tensor([3, 1]))
    with pytest.raises(RuntimeError, match=r"resets must have shape \(3, 2\), \(T, B\) of this input, got \(4, 2\)"):
        fused_rnn.GRU(2, 3)(packed, resets=torch.zeros(4, 2, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"resets must be a bool tensor \(T, B\) or None, got list"):
        fused_rnn.GRU(2, 3)(packed, resets=[[True]])
