"""Determinism, streams, CUDA graphs, and that nothing waits for the GPU."""

import contextlib

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn

from ..conftest import LENGTHS, Operands, Shape, random_like, relative_error
from .places import EVERY_BACKEND, SHAPES, Place, sized

pytestmark = pytest.mark.gpu


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [SHAPES["odd"], SHAPES["many-blocks"]], ids=["odd", "many-blocks"])
def test_same_bits_twice(place, cell, dtype, shape):
    op = place.operands(cell, shape, dtype=dtype)
    d_results = random_like(op.run("reference"))
    first, second = (op.results_and_gradients(place.backend, d_results) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("save", ["everything", "states"])
def test_saved_values_are_the_same_bits_twice(place, cell, save):
    """Values past the end of a sequence, which no step writes, are the same, too."""
    op = place.operands(cell, Shape(7, len(LENGTHS), 5, 18), lengths=LENGTHS)
    runs = []
    for _ in range(2):
        # fills memory that is allocated next with NaN
        torch.full((10**6,), float("nan"), dtype=torch.float64, device=place.device)
        runs.append(torch.ops.fused_rnn.forward(*op.arguments(), cell, False, 0.0, save)[3:])
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@pytest.mark.parametrize("lengths", [None, [3, 7, 0, 5]], ids=["whole", "lengths"])
def test_graph_of_forward(place, cell, lengths):
    """A graph captured once gives the right results for other data, and other lengths, in the same memory."""
    op = place.operands(cell, Shape(7, 4, 6, 40), lengths=lengths)
    with torch.no_grad():
        replay = place.captured(lambda: op.run(place.backend))
        for seed in range(3):
            renew(op, seed)
            assert relative_error(replay(), op.run("reference")) < 1e-11


@pytest.mark.parametrize("lengths", [None, [3, 7, 0, 5]], ids=["whole", "lengths"])
def test_graph_of_forward_and_backward(place, cell, lengths, reverse):
    op = place.operands(cell, Shape(7, 4, 6, 40), lengths=lengths, reverse=reverse)
    d_results = random_like(op.run("reference"))
    replay = place.captured(lambda: [t.detach() for t in op.results_and_gradients(place.backend, d_results)])
    for seed in range(3):
        renew(op, seed)
        exact = op.results_and_gradients("reference", d_results)
        assert relative_error(replay(), exact) < 1e-11


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5, "variational": True, "weight_drop": 0.5}], ids=["", "drops"])
def test_graph_of_a_module(place, options):
    """A replay uses learnt initial states, and draws masks from the generator as a call does."""
    how = {"dtype": torch.float64, "device": place.device, "learn_initial_state": True}
    module = fused_rnn.LSTM(6, 40, 2, backend=place.backend, **how, **options)
    torch.nn.init.normal_(module.h_0)
    leaves = [torch.randn(7, 4, 6, dtype=torch.float64, device=place.device, requires_grad=True), *module.parameters()]

    def run() -> list[Tensor]:
        output, (h_n, c_n) = module(leaves[0])
        loss = output.square().sum() + h_n.sin().sum() + c_n.cos().sum()
        return [output.detach(), *torch.autograd.grad(loss, leaves)]

    replay = place.captured(run)
    for seed in range(3):
        with torch.no_grad():
            leaves[0].copy_(random_like(leaves[:1], seed)[0])
        torch.manual_seed(seed)
        given = [t.clone() for t in replay()]
        torch.manual_seed(seed)
        assert relative_error(given, run()) < 1e-11


@torch.no_grad()
def renew(op: Operands, seed: int) -> None:
    """Write other values into the same memory."""
    for t, new in zip(op.tensors.values(), random_like(list(op.tensors.values()), seed)):
        t.copy_(0.3 * new)
    if op.lengths is not None:
        op.lengths.copy_(op.lengths.roll(1))


@contextlib.contextmanager
def waiting_is_an_error(place: Place):
    """Make every wait inside torch an error; the low-level operators have no call that waits."""
    mode = torch.cuda.get_sync_debug_mode() if place.is_gpu else None
    try:
        if place.is_gpu:
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        if place.is_gpu:
            torch.cuda.set_sync_debug_mode(mode)


def test_nothing_waits_for_the_gpu(place, cell):
    op = place.operands(cell, Shape(5, 3, 4, 6), lengths=[5, 2, 0])
    d_results = random_like(op.run("reference"))
    op.results_and_gradients(place.backend, d_results)  # one-time work may wait
    with waiting_is_an_error(place):
        op.results_and_gradients(place.backend, d_results)


@pytest.mark.parametrize("lengths", [[2, 5, 1], [1, 1, 1, 9, 2, 1]], ids=["at-once", "in-stretches"])
@pytest.mark.parametrize("proj_size", [0, 4], ids=["plain", "projected"])
def test_packed_sequences_do_not_wait_for_the_gpu(place, proj_size, lengths):
    how = {"proj_size": proj_size, "device": place.device, "backend": place.backend}
    module = fused_rnn.LSTM(6, 10, 2, bidirectional=True, **how)
    batch = len(lengths)
    x = torch.randn(max(lengths), batch, 6, device=place.device)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    state = tuple(torch.randn(4, batch, size, device=place.device) for size in (proj_size or 10, 10))
    module(packed, state)[0].data.sum().backward()
    with waiting_is_an_error(place):
        module(packed, state)[0].data.sum().backward()


@EVERY_BACKEND
@pytest.mark.parametrize("shape", [SHAPES["one-block"], SHAPES["many-blocks"]], ids=["one-block", "many-blocks"])
def test_two_streams_at_once(place, shape):
    """Two layers, each of which may fill the chip, never deadlock and give the same bits as each alone."""
    ops_at_once = [place.operands(cell, shape, dtype=torch.float32) for cell in ("lstm", "gru")]
    d_results = [random_like(op.run("reference")) for op in ops_at_once]
    alone = [op.results_and_gradients(place.backend, d) for op, d in zip(ops_at_once, d_results)]
    streams = [place.stream() for _ in ops_at_once]
    place.wait()
    runs = []
    for _ in range(100 if place.is_gpu else 2):
        for op, d, stream in zip(ops_at_once, d_results, streams):
            with place.on_stream(stream):
                runs.append(op.results_and_gradients(place.backend, d))
        if len(runs) >= 20:
            place.wait()
            check_runs(runs, alone)
            runs = []
    place.wait()
    check_runs(runs, alone)


def check_runs(runs: list[list[Tensor]], alone: list[list[Tensor]]) -> None:
    for i, results in enumerate(runs):
        assert all(torch.equal(a, b) for a, b in zip(results, alone[i % len(alone)]))


@EVERY_BACKEND
def test_runs_on_the_current_stream(place, cell):
    """A call on a side stream reads the latest values that were written on that stream."""
    op = place.operands(cell, Shape(6, 5, 7, 40), dtype=torch.float32)
    expected = op.run(place.backend)
    large = torch.randn(sized(Shape(1, 1, 1, 4096), Shape(1, 1, 1, 64)).H, 64, device=place.device)
    stale = {name: torch.full_like(t, float("nan")) for name, t in op.tensors.items()}
    place.wait()
    with place.on_stream(place.stream()), torch.no_grad():
        for _ in range(50):
            large = (large @ (large.t() @ large)).clamp(-1, 1)  # keeps the stream busy while the calls below are queued
        for name, t in op.tensors.items():
            stale[name].copy_(t)
        results = op.run(place.backend, **stale)
    place.wait()
    assert all(torch.equal(a, b) for a, b in zip(results, expected))
