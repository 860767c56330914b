"""Both directions of a layer at the same time: the same bits as one after the other, however memory is reused."""

from collections.abc import Callable
from dataclasses import astuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fused_rnn
from fused_rnn import ops, streams

from ..conftest import Shape, random_like
from .places import EVERY_BACKEND, SHAPES, Place, sized

pytestmark = pytest.mark.gpu

ROUNDS = 20
SHAPE = sized(Shape(200, 24, 128, 256), Shape(9, 3, 5, 6))  # few sequences: both directions fit on the chip


class Forks:
    """Counts the calls that ran both directions at the same time; no call does while this is off."""

    def __init__(self, place: Place, monkeypatch) -> None:
        monkeypatch.setenv(streams.WANTED, "1")
        self.count, self.off = 0, False
        self._place, can_fork = place, streams.can_fork

        def counted(inputs: list[Tensor], hidden_size: int) -> bool:
            forks = not self.off and can_fork(inputs, hidden_size)
            self.count += forks
            return forks

        monkeypatch.setattr(streams, "can_fork", counted)

    def one_after_the_other(self, function: Callable[[], list]) -> list:
        self.off = True
        try:
            return function()
        finally:
            self.off = False

    def check(self, calls: int) -> None:
        assert self.count == (calls if self._place.is_gpu else 0)


@pytest.fixture
def forks(place, monkeypatch) -> Forks:
    return Forks(place, monkeypatch)


def module_of(name: str, place: Place, dtype: torch.dtype, **options) -> nn.Module:
    torch.manual_seed(1)
    how = {"bidirectional": True, "device": place.device, "dtype": dtype, "backend": place.backend}
    return getattr(fused_rnn, name)(SHAPE.I, SHAPE.H, 2, **how, **options)


def parts_of(results: tuple) -> list[Tensor]:
    output, state, *cells = results
    return [output, *(state if isinstance(state, tuple) else (state,)), *cells]


def overwrite_free_memory(place: Place, dtype: torch.dtype) -> None:
    """Write NaN to the memory that the current stream gets next, in the sizes of inputs, outputs and states."""
    T, B, I, H = SHAPE.T, SHAPE.B, SHAPE.I, SHAPE.H
    sizes = [(T, B, I), (T, B, 2 * H), (T, B, H), (T, B, H), (2, B, H), (2, B, H), (B,), (4 * H, H)]
    _ = [torch.full(size, float("nan"), dtype=dtype, device=place.device) for size in 2 * sizes]


def rounds(module: nn.Module, place: Place, dtype: torch.dtype, lengths: bool) -> list[Tensor]:
    """Return results and gradients of successive calls, whose operands only autograd keeps alive.

    As soon as a node of the backward pass releases them, the hooks of the next gradients overwrite the memory.
    """
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(ROUNDS):
        x = torch.randn(SHAPE.T, SHAPE.B, SHAPE.I, generator=generator).to(place.device, dtype)
        ends = torch.randint(0, SHAPE.T + 1, (SHAPE.B,), generator=generator).to(place.device) if lengths else None
        results = parts_of(module(x, lengths=ends))
        del x, ends
        overwrite_free_memory(place, dtype)
        loss = sum((result.float() * result.detach().float().cos()).sum() for result in results)
        found += [result.detach().clone() for result in results]
        del results
        module.zero_grad(set_to_none=True)
        loss.backward()
        overwrite_free_memory(place, dtype)
        found += [p.grad.clone() for p in module.parameters()]
    return found


@EVERY_BACKEND
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_same_bits_while_memory_is_overwritten(place, forks, name, dtype, lengths):
    module = module_of(name, place, dtype)
    alone = forks.one_after_the_other(lambda: rounds(module, place, dtype, lengths))
    for weight in module.parameters():
        weight.register_hook(lambda _: overwrite_free_memory(place, dtype))
    at_once = rounds(module, place, dtype, lengths)
    forks.check(ROUNDS)
    assert not any(result.isnan().any() for result in alone)
    assert all(torch.equal(a, b) for a, b in zip(at_once, alone))


@EVERY_BACKEND
def test_same_bits_without_gradients(place, forks):
    """Each of many successive calls overwrites memory that earlier ones have released."""
    module = module_of("LSTM", place, torch.float32)
    inputs = [torch.randn(SHAPE.T, SHAPE.B, SHAPE.I, device=place.device) for _ in range(ROUNDS)]

    @torch.no_grad()
    def outcome() -> list[Tensor]:
        found = []
        for x in inputs:
            found += parts_of(module(x.clone(), return_cells=True))
            overwrite_free_memory(place, torch.float32)
        return found

    alone, at_once = forks.one_after_the_other(outcome), outcome()
    forks.check(ROUNDS)
    assert all(torch.equal(a, b) for a, b in zip(at_once, alone))


CASES = {
    "drops": {"weight_drop": 0.5, "zoneout": 0.3, "zoneout_cell": 0.2, "dropout": 0.5},
    "projected": {"proj_size": 4},
    "recompute": {"recompute": True, "learn_initial_state": True},
    "packed": {},
    "autocast": {},
}


@pytest.mark.parametrize("case", CASES)
def test_same_bits_with(place, forks, case):
    """Masks are drawn in the same order."""
    module = module_of("LSTM", place, torch.float32, **CASES[case])
    x = torch.randn(SHAPE.T, SHAPE.B, SHAPE.I, device=place.device, requires_grad=True)
    lengths = torch.arange(SHAPE.B).flip(0).square() * (SHAPE.T - 1) // (SHAPE.B - 1) ** 2 + 1

    def outcome() -> list[Tensor]:
        torch.manual_seed(3)
        with torch.autocast(place.device.type, torch.bfloat16, enabled=case == "autocast"):
            results = parts_of(module(pack_padded_sequence(x, lengths) if case == "packed" else x))
        results = [result if isinstance(result, Tensor) else result.data for result in results]
        return [*results, *torch.autograd.grad(results, [x, *module.parameters()], random_like(results))]

    alone, at_once = forks.one_after_the_other(outcome), outcome()
    forks.check(1)
    assert all(torch.equal(a, b) for a, b in zip(at_once, alone))


@EVERY_BACKEND
@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "backward"])
def test_a_graph_captures_both_directions(place, forks, gradients):
    module = module_of("LSTM", place, torch.float32)
    x = torch.randn(SHAPE.T, SHAPE.B, SHAPE.I, device=place.device, requires_grad=gradients)

    d_results = random_like(parts_of(module(x)))
    forks.count = 0

    def outcome() -> list[Tensor]:
        with torch.set_grad_enabled(gradients):
            results = parts_of(module(x))
        if not gradients:
            return results
        return [*(r.detach() for r in results), *torch.autograd.grad(results, [x, *module.parameters()], d_results)]

    replay = place.captured(outcome)
    forks.check(3)  # two before the capture, and one within
    for seed in range(3):
        with torch.no_grad():
            x.copy_(random_like([x], seed)[0])
        alone = forks.one_after_the_other(outcome)
        assert all(torch.equal(a, b) for a, b in zip(replay(), alone))


@EVERY_BACKEND
def test_directions_that_want_the_whole_chip_each(place, forks):
    """The blocks of a direction wait for each other, not for the other direction: no deadlock, in graphs either."""
    T, B, I, H = astuple(SHAPES["many-blocks"])
    module = fused_rnn.LSTM(I, H, bidirectional=True, device=place.device, backend=place.backend)
    x = torch.randn(T, B, I, device=place.device)
    d_results = random_like(parts_of(module(x)))

    def outcome() -> list[Tensor]:
        results = parts_of(module(x))
        return [*(r.detach() for r in results), *torch.autograd.grad(results, list(module.parameters()), d_results)]

    alone = forks.one_after_the_other(outcome)
    forks.count = 0
    for _ in range(ROUNDS):
        assert all(torch.equal(a, b) for a, b in zip(outcome(), alone))
    forks.check(ROUNDS)
    replay = place.captured(outcome)
    assert all(torch.equal(a, b) for a, b in zip(replay(), alone))


def test_goes_on_after_an_error_in_the_reverse_direction(place, forks, monkeypatch):
    """The memory of the failed call is overwritten as soon as the error is raised; the next call is right."""
    module = module_of("LSTM", place, torch.float32)
    x = torch.randn(SHAPE.T, SHAPE.B, SHAPE.I, device=place.device)
    alone = forks.one_after_the_other(lambda: parts_of(module(x)))
    run = ops.run

    def failing(*operands, **options):
        result = run(*operands, **options)
        if options["reverse"]:
            raise RuntimeError("the reverse direction fails")
        return result

    for _ in range(ROUNDS):
        with monkeypatch.context() as patch:
            patch.setattr(ops, "run", failing)
            with pytest.raises(RuntimeError, match="the reverse direction fails"):
                module(x.clone())
        overwrite_free_memory(place, torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(parts_of(module(x)), alone))
    forks.check(2 * ROUNDS)


def test_checkpointed_runs_one_after_the_other(place, forks):
    """A checkpointed forward pass is repeated on the stream of whichever operation asks first."""
    module = module_of("LSTM", place, torch.float32)
    x = torch.randn(SHAPE.T, SHAPE.B, SHAPE.I, device=place.device, requires_grad=True)
    gradients = []
    for call in (module, lambda x: checkpoint(module, x, use_reentrant=False)):
        results = parts_of(call(x))
        gradients.append(torch.autograd.grad(results, [x, *module.parameters()], random_like(results)))
    forks.check(1)
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


@pytest.mark.filterwarnings("error:The AccumulateGrad node")
def test_gradients_are_accumulated_on_the_current_stream(place, forks):
    """torch warns if a parameter's gradient comes from a stream other than that of its first use."""
    module = module_of("GRU", place, torch.float32)
    x = torch.randn(SHAPE.T, SHAPE.B, SHAPE.I, device=place.device, requires_grad=True)
    always = torch.is_warn_always_enabled()
    try:
        torch.set_warn_always(True)
        before = sum(p.square().sum() for p in module.parameters())
        results = parts_of(module(x))
        after = sum(p.square().sum() for p in module.parameters())
        (before + after + sum(result.sum() for result in results)).backward()
    finally:
        torch.set_warn_always(always)
    forks.check(1)


def test_every_stream_forks(place, forks):
    """Calls fork even if torch hands out the same streams again, and a side stream later is the current one."""
    module = module_of("LSTM", place, torch.float32)
    x = torch.randn(SHAPE.T, SHAPE.B, SHAPE.I, device=place.device)
    alone = forks.one_after_the_other(lambda: parts_of(module(x)))
    place.wait()
    kept = [place.stream() for _ in range(40)]
    found = []
    for stream in kept:
        with place.on_stream(stream):
            found.append(parts_of(module(x)))
            overwrite_free_memory(place, torch.float32)
    place.wait()
    forks.check(len(kept))
    assert all(torch.equal(a, b) for results in found for a, b in zip(results, alone))
