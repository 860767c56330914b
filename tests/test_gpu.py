"""The CUDA and the Triton backend on a GPU, through the public functions, against the reference on the same device.

Where there is no GPU every test is skipped. FUSED_RNN_GPU_TESTS=cpu runs them on the CPU backend instead, with smaller
sizes and plain stand-ins for streams and graphs: that tests the tests, not the backend.
"""

import contextlib
import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import cuda, functional, ops

from .conftest import ODD_SHAPES, Operands, Shape, operands, random_like, regularised, relative_error
from .test_functional import call
from .test_ops import LENGTHS, backward_arguments, torch_results_and_gradients
from .test_serving import in_threads

pytestmark = pytest.mark.gpu


@dataclass(frozen=True)
class Place:
    """A device and the backend under test there."""

    device: torch.device
    backend: str

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def operands(self, cell: str, shape: Shape, **options) -> Operands:
        return operands(cell, shape, **options).on(self.device)

    def stream(self) -> "torch.cuda.Stream | None":
        return torch.cuda.Stream(self.device) if self.is_gpu else None

    def on_stream(self, stream) -> contextlib.AbstractContextManager:
        return torch.cuda.stream(stream) if self.is_gpu else contextlib.nullcontext()

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def captured(self, function: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
        """The function as a CUDA graph: a call replays it, and returns the same tensors each time."""
        if not self.is_gpu:
            return function
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(2):
                function()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = function()

        def replay() -> list[Tensor]:
            for result in results:
                result.fill_(float("nan"))
            graph.replay()
            self.wait()
            cuda.raise_timed_out()
            return results

        return replay


ON_CPU = os.environ.get("FUSED_RNN_GPU_TESTS") == "cpu"
BACKENDS = ["cpu"] if ON_CPU else ["cuda", "triton"]
# Tests that ask for no more than float32 are of every backend that GPUs have; the others are of the first.
EVERY_BACKEND = pytest.mark.parametrize("place", BACKENDS, indirect=True)


@pytest.fixture
def place(request) -> Place:
    backend = getattr(request, "param", BACKENDS[0])
    place = Place(torch.device("cpu") if ON_CPU else torch.device("cuda", 0), backend)
    status = fused_rnn.backends()[backend]
    if not status.startswith("available"):
        pytest.skip(f"no GPU to test on: {status}")
    with torch.cuda.device(place.device) if place.is_gpu else contextlib.nullcontext():
        yield place
    if place.is_gpu:
        place.wait()
        cuda.raise_timed_out()


def sized(on_gpu: Shape, on_cpu: Shape) -> Shape:
    """A shape of which the size matters, and a small one where the tests themselves are tested."""
    return on_cpu if ON_CPU else on_gpu


# A block per tile of sequences; several blocks; many; weights that do not fit the chip; odd sizes and many tiles.
SHAPES = {
    "one-block": Shape(9, 5, 12, 32),
    "some-blocks": Shape(7, 3, 33, 200),
    "many-blocks": sized(Shape(6, 20, 64, 1024), Shape(6, 20, 6, 24)),
    "streamed": sized(Shape(3, 5, 40, 5200), Shape(3, 5, 4, 52)),
    "odd": Shape(11, 67, 37, 45),
    "tiles": sized(Shape(2, 3000, 3, 24), Shape(2, 300, 3, 24)),
}
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@pytest.fixture(autouse=True)
def exact_float32():
    """float32 without TF32, in torch's products and in cuDNN."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def skip_unless_it_computes_in(place: Place, dtype: torch.dtype) -> None:
    if dtype not in ops._DTYPES[place.backend]:
        pytest.skip(f"{place.backend} does not compute in {dtype}")


# Results and gradients --------------------------------------------------------------------------------------


def public(op: Operands, place: Place, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The public function of the cell, of tensors in the order of the operands."""
    named = dict(zip(op.tensors, tensors))
    state = (named["h_0"], named["c_0"]) if "c_0" in named else named["h_0"]
    how = {"reverse": op.reverse, "lengths": op.lengths, "backend": place.backend}
    if "c_0" in named:
        output, last, cells = call(functional, op.cell, named, state, **how, return_cells=True)
        return output, *last, cells
    return call(functional, op.cell, named, state, **how)


@pytest.mark.parametrize("shape", [*ODD_SHAPES, Shape(3, 9, 2, 3)], ids=str)
def test_gradcheck(place, cell, shape, reverse):
    op = place.operands(cell, shape, reverse=reverse)
    assert torch.autograd.gradcheck(partial(public, op, place), tuple(op.tensors.values()))


@pytest.mark.parametrize("shape", [Shape(3, 9, 40, 65)], ids=str)
def test_gradcheck_of_several_blocks(place, cell, shape):
    op = place.operands(cell, shape)
    assert torch.autograd.gradcheck(partial(public, op, place), tuple(op.tensors.values()), fast_mode=True)


def test_double_backward(place, cell):
    op = place.operands(cell, Shape(3, 2, 3, 4), lengths=[3, 1])
    assert torch.autograd.gradgradcheck(partial(public, op, place), tuple(op.tensors.values()))


@EVERY_SHAPE
def test_float64_equals_reference(place, cell, shape, reverse):
    op = place.operands(cell, shape, reverse=reverse)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(place.backend, d_results), exact) < 1e-11


def test_without_bias(place, cell):
    op = place.operands(cell, Shape(5, 3, 6, 20), bias=False)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(place.backend, d_results), exact) < 1e-11


@EVERY_BACKEND
@FLOATS
@EVERY_SHAPE
def test_error_is_at_most_twice_that_of_pytorch(place, cell, dtype, shape):
    """Against float64 on the same rounded operands, in the mean of several draws.

    PyTorch's own is the reference's, and where cuDNN has the cell also that.
    """
    skip_unless_it_computes_in(place, dtype)
    draws = [errors(place, place.operands(cell, shape, scale=1.0, dtype=dtype, seed=seed)) for seed in range(4)]
    ours, *theirs = (sum(values) / len(draws) for values in zip(*draws))
    assert ours <= 2 * min(theirs)


def errors(place: Place, op: Operands) -> list[float]:
    """Of this backend, of the reference, and of torch.nn if it has the cell."""
    op.return_cells = op.cell != "lstm"  # torch.nn returns none
    d_results = random_like(op.run("reference"))
    exact = op.to(torch.float64).results_and_gradients("reference", d_results)
    values = [op.results_and_gradients(name, d_results) for name in (place.backend, "reference")]
    if op.cell in ("lstm", "gru_reset_after"):
        values.append(torch_results_and_gradients(op, d_results))
    return [relative_error(v, exact) for v in values]


@EVERY_BACKEND
@FLOATS
@pytest.mark.parametrize("value", [30.0, -30.0, 1e4, -1e4])
def test_saturated_gates(place, cell, dtype, value):
    """Huge pre-activations saturate and never make a NaN."""
    skip_unless_it_computes_in(place, dtype)
    if cell == "rnn_relu":
        pytest.skip("grows without bound, by its equation")
    op = place.operands(cell, Shape(3, 2, 2, 19), dtype=dtype)
    replaced = {name: torch.full_like(t, value) for name, t in op.tensors.items() if name == "bias_ih"}
    exact = op.to(torch.float64).run("reference", **{name: t.double() for name, t in replaced.items()})
    allowed = 8 * torch.finfo(dtype).eps
    for result, expected in zip(op.run(place.backend, **replaced), exact):
        torch.testing.assert_close(result.double(), expected, rtol=allowed, atol=allowed)


def test_zoneout_and_clipping(place, cell, reverse):
    op = operands(cell, Shape(7, len(LENGTHS), 5, 40), reverse=reverse, lengths=LENGTHS)
    op = regularised(op, drawn=reverse).on(place.device)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(place.backend, d_results), exact) < 1e-11
    op.recompute = True
    assert relative_error(op.results_and_gradients(place.backend, d_results), exact) < 1e-11


@pytest.mark.parametrize("hidden", [18, sized(Shape(1, 1, 1, 600), Shape(1, 1, 1, 60)).H])
def test_lengths(place, cell, reverse, hidden):
    """Also: NaN past the end of a sequence, or in the gradient of an output there, reaches nothing."""
    op = place.operands(cell, Shape(7, len(LENGTHS), 5, hidden), reverse=reverse, lengths=LENGTHS)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    past = (torch.arange(7, device=place.device).unsqueeze(1) >= op.lengths).unsqueeze(2)
    op.tensors["input"] = op.tensors["input"].detach().masked_fill(past, torch.nan).requires_grad_()
    d_results[0] = d_results[0].masked_fill(past, torch.nan)
    assert relative_error(op.results_and_gradients(place.backend, d_results), exact) < 1e-11


def test_lengths_out_of_range_count_as_the_nearest(place, cell, reverse):
    """On a GPU their values are not checked. On the CPU they are, and refused."""
    op = place.operands(cell, Shape(5, 4, 2, 3), reverse=reverse, lengths=[0, 5, 2, 5])
    d_results = random_like(op.run("reference"))
    expected = op.results_and_gradients(place.backend, d_results)
    op.lengths = torch.tensor([-3, 9, 2, 5], device=place.device)
    if not place.is_gpu:
        with pytest.raises(RuntimeError, match="lengths must be between 0 and T"):
            op.run(place.backend)
        return
    results = op.results_and_gradients(place.backend, d_results)
    assert all(torch.equal(a, b) for a, b in zip(results, expected))


def test_strided_operands(place, cell):
    """Transposed, expanded and sliced operands and gradients are read for what they say."""
    op = place.operands(cell, Shape(5, 4, 3, 6))
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    for name, t in op.tensors.items():
        wide = torch.stack([t.detach(), torch.full_like(t, float("nan"))], -1)
        op.tensors[name] = wide[..., 0].requires_grad_()
    strided = [torch.stack([d, d], -1)[..., 0] for d in d_results]
    assert relative_error(op.results_and_gradients(place.backend, strided), exact) < 1e-11
    output = op.run(place.backend)[0]
    (gradient,) = torch.autograd.grad(output.sum(), op.tensors["input"])  # an expanded gradient, strides 0
    (expected,) = torch.autograd.grad(op.run("reference")[0].sum(), op.tensors["input"])
    torch.testing.assert_close(gradient, expected)


def off_by_one(t: Tensor) -> Tensor:
    """A copy that begins one element into its memory, so that nothing wider than an element is aligned."""
    memory = torch.full((t.numel() + 1,), float("nan"), dtype=t.dtype, device=t.device)
    memory[1:] = t.detach().flatten()
    return memory[1:].view(t.shape)


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [Shape(5, 4, 16, 32), Shape(4, 9, 24, 192)], ids=str)
def test_misaligned_operands(place, cell, dtype, shape):
    """Operands whose memory is aligned to an element and no more give the same as others, to rounding."""
    skip_unless_it_computes_in(place, dtype)
    op = place.operands(cell, shape, dtype=dtype)
    d_results = random_like(op.run("reference"))
    expected = op.results_and_gradients(place.backend, d_results)
    op.tensors = {name: off_by_one(t).requires_grad_() for name, t in op.tensors.items()}
    assert all(t.data_ptr() % 16 for t in op.tensors.values())
    results = op.results_and_gradients(place.backend, [off_by_one(d) for d in d_results])
    assert relative_error(results, expected) <= 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_recompute(place, cell, reverse, lengths):
    """Backward from states alone, in several parts."""
    steps = sized(Shape(300, 1, 1, 1), Shape(60, 1, 1, 1)).T
    lengths = None if lengths is None else [n * steps // 7 for n in lengths]
    op = place.operands(cell, Shape(steps, len(LENGTHS), 5, 18), reverse=reverse, lengths=lengths, scale=0.3)
    d_results = random_like(op.run("reference"))
    runs = [replace(op, recompute=r).results_and_gradients(place.backend, d_results) for r in (False, True)]
    assert relative_error(*runs) < 1e-11


@pytest.mark.parametrize("used", [["output"], ["h_n"], ["c_n"], ["cells"]], ids="+".join)
def test_gradients_of_some_results(place, cell, used):
    """A result that the loss does not use counts as a zero gradient, not as uninitialised memory."""
    if used[-1].startswith("c") and not ops.CELLS[cell].has_cell_state:
        pytest.skip("has no cell state")
    op = place.operands(cell, Shape(5, 3, 4, 6))
    gradients = []
    for name in (place.backend, "reference"):
        results = dict(zip(("output", "h_n", "c_n", "cells"), op.run(name)))
        loss = sum(results[key].square().sum() for key in used)
        gradients.append(torch.autograd.grad(loss, list(op.tensors.values())))
    assert relative_error(*gradients) < 1e-11


def test_gradients_of_some_operands(place, cell):
    """Each operand alone may want its gradient, and gets the same as when all do."""
    op = place.operands(cell, Shape(4, 3, 2, 5))
    d_results = random_like(op.run("reference"))
    exact = dict(zip(op.tensors, op.results_and_gradients("reference", d_results)[len(d_results) :]))
    for name, tensor in op.tensors.items():
        frozen = {n: t.detach() for n, t in op.tensors.items() if n != name}
        (gradient,) = torch.autograd.grad(op.run(place.backend, **frozen), tensor, d_results)
        torch.testing.assert_close(gradient, exact[name])


@EVERY_BACKEND
def test_more_values_than_an_int32_counts(place):
    """The last sequence of a call whose arrays pass 2³¹ values equals the same sequence run alone."""
    shape = sized(Shape(1100, 512, 8, 1024), Shape(11, 5, 8, 10))
    if place.is_gpu and torch.cuda.mem_get_info(place.device)[0] < 64 * 2**30:
        pytest.skip("needs 64 GiB of free memory")
    op = place.operands("lstm", shape, dtype=torch.bfloat16)
    alone = {name: t[-1:] if name in ("h_0", "c_0") else t for name, t in op.tensors.items()}
    alone = {name: t[:, -1:] if name == "input" else t for name, t in alone.items()}
    runs = []
    for tensors in (op.tensors, alone):
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        output = op.run(place.backend, **leaves)[0][:, -1:]
        runs.append([output, *torch.autograd.grad(output.sum(), [leaves["input"], leaves["weight_hh"]])])
        runs[-1][1] = runs[-1][1][:, -1:]
        runs[-1] = [t.detach().clone() for t in runs[-1]]
    assert relative_error(*runs) < 2e-2  # bfloat16, in which products over other numbers of rows round differently


# Determinism, streams, graphs -------------------------------------------------------------------------------


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
    """Also those past the end of a sequence, which no step writes."""
    op = place.operands(cell, Shape(7, len(LENGTHS), 5, 18), lengths=LENGTHS)
    runs = []
    for _ in range(2):
        torch.full(
            (10**6,), float("nan"), dtype=torch.float64, device=place.device
        )  # into memory that is given out next
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
    """Learnt initial states, and masks, which a replay draws from the generator as a call does."""
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
    """Other values in the same memory."""
    for t, new in zip(op.tensors.values(), random_like(list(op.tensors.values()), seed)):
        t.copy_(0.3 * new)
    if op.lengths is not None:
        op.lengths.copy_(op.lengths.roll(1))


@contextlib.contextmanager
def waiting_is_an_error(place: Place):
    """torch reports every wait of its own; the low-level operators have no call that waits."""
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
    op.results_and_gradients(place.backend, d_results)  # what is done once may wait
    with waiting_is_an_error(place):
        op.results_and_gradients(place.backend, d_results)


@pytest.mark.parametrize("proj_size", [0, 4], ids=["plain", "projected"])
def test_packed_sequences_do_not_wait_for_the_gpu(place, proj_size):
    how = {"proj_size": proj_size, "device": place.device, "backend": place.backend}
    module = fused_rnn.LSTM(6, 10, 2, bidirectional=True, **how)
    x = torch.randn(5, 3, 6, device=place.device)
    packed = pack_padded_sequence(x, torch.tensor([2, 5, 1]), enforce_sorted=False)
    state = torch.randn(4, 3, proj_size or 10, device=place.device), torch.randn(4, 3, 10, device=place.device)
    module(packed, state)[0].data.sum().backward()
    with waiting_is_an_error(place):
        module(packed, state)[0].data.sum().backward()


@EVERY_BACKEND
@pytest.mark.parametrize("shape", [SHAPES["one-block"], SHAPES["many-blocks"]], ids=["one-block", "many-blocks"])
def test_two_streams_at_once(place, shape):
    """Two layers whose blocks want the whole chip each, again and again: no deadlock, and the same bits as alone."""
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
    """What a side stream has just written is what a call on that stream reads."""
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


# Modules, the compiler, wrong calls -------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True], ids=["T-first", "B-first"])
def test_module_against_torch(place, batch_first):
    """Two bidirectional layers, in eval mode too, where cuDNN itself refuses to go backward."""
    options = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first, "dtype": torch.float64}
    theirs = nn.LSTM(6, 10, device=place.device, **options)
    ours = fused_rnn.LSTM(6, 10, device=place.device, backend=place.backend, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 4, 6, dtype=torch.float64, device=place.device)
    for module in (ours, theirs):
        output, (h_n, c_n) = module(x)
        (output.square().sum() + h_n.sum() + c_n.sum()).backward()
    assert relative_error([ours(x)[0]], [theirs(x)[0]]) < 1e-11
    gradients = [[p.grad for p in module.parameters()] for module in (ours, theirs)]
    assert relative_error(*gradients) < 1e-11


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_autocast_against_torch(place, name, dtype):
    """The error of results and gradients, against float64, is at most twice torch.nn's under the same autocast."""
    skip_unless_it_computes_in(place, dtype)
    theirs = getattr(nn, name)(24, 64, 2, bidirectional=True, device=place.device)
    ours = getattr(fused_rnn, name)(24, 64, 2, bidirectional=True, device=place.device, backend=place.backend)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(40, 9, 24, device=place.device)

    def outcome(module: nn.Module, x: Tensor) -> list[Tensor]:
        leaves = [x.clone().requires_grad_(), *module.parameters()]
        output, _ = module(leaves[0])
        return [output, *torch.autograd.grad((output * output.detach().cos()).sum(), leaves)]

    exact = outcome(copy.deepcopy(theirs).double(), x.double())
    with torch.autocast(place.device.type, dtype):
        outcomes = [outcome(module, x) for module in (ours, theirs)]
    assert outcomes[0][0].dtype == dtype
    assert {t.dtype for t in outcomes[0][1:]} == {torch.float32}
    errors = [relative_error(each, exact) for each in outcomes]
    assert errors[0] <= 2 * errors[1]


@EVERY_BACKEND
def test_backward_under_autocast_keeps_to_the_forward_pass(place, cell):
    """The products around the kernels too: run in float32, differentiated under autocast, the same bits as without."""
    op = place.operands(cell, Shape(5, 4, 6, 10), dtype=torch.float32)
    outcomes = []
    for enabled in (False, True):
        output = op.run(place.backend)[0]
        with torch.autocast(place.device.type, torch.bfloat16, enabled=enabled):
            outcomes.append(torch.autograd.grad(output.square().sum(), list(op.tensors.values())))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes))


@EVERY_BACKEND
def test_threads_infer_at_once(place):
    """Several Python threads through one module, on streams of their own: the same bits as one after the other."""
    module = fused_rnn.LSTM(24, 64, 2, device=place.device, backend=place.backend).eval()
    xs = [torch.randn(30 + 7 * n, 3 + n, 24, device=place.device) for n in range(4)]
    place.wait()

    def infer(x: Tensor) -> list[Tensor]:
        with torch.inference_mode(), place.on_stream(place.stream()):
            outputs = [module(x)[0] for _ in range(5)]
            place.wait()
        return outputs

    expected = [infer(x) for x in xs]
    for given, exact in zip(in_threads([partial(infer, x) for x in xs]), expected):
        assert all(torch.equal(a, b) for a, b in zip(given, exact))


@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], [1, 5, 2, 5]], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("proj_size", [0, 4], ids=["plain", "projected"])
def test_packed_sequences_against_torch(place, proj_size, lengths):
    options = {"num_layers": 2, "bidirectional": True, "proj_size": proj_size, "dtype": torch.float64}
    theirs = nn.LSTM(6, 10, device=place.device, **options)
    ours = fused_rnn.LSTM(6, 10, device=place.device, backend=place.backend, **options)
    ours.load_state_dict(theirs.state_dict())
    how = {"dtype": torch.float64, "device": place.device, "requires_grad": True}
    leaves = [torch.randn(shape, **how) for shape in ((5, 4, 6), (4, 4, proj_size or 10), (4, 4, 10))]
    packed = pack_padded_sequence(leaves[0], torch.tensor(lengths), enforce_sorted=False)
    outcomes = []
    for module in (ours, theirs):
        output, (h_n, c_n) = module(packed, tuple(leaves[1:]))
        loss = output.data.square().sum() + h_n.sin().sum() + c_n.cos().sum()
        gradients = torch.autograd.grad(loss, [*leaves, *module.parameters()], retain_graph=True)
        outcomes.append([output.data, h_n, c_n, *gradients])
    assert relative_error(*outcomes) < 1e-11


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_single_steps_against_torch(place, name):
    theirs = getattr(nn, name)(6, 10, dtype=torch.float64, device=place.device)
    ours = getattr(fused_rnn, name)(6, 10, dtype=torch.float64, device=place.device, backend=place.backend)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 6, dtype=torch.float64, device=place.device, requires_grad=True)
    outcomes = []
    for cell in (ours, theirs):
        state = cell(x, cell(x))
        h = state[0] if isinstance(state, tuple) else state
        outcomes.append([h, *torch.autograd.grad(h.square().sum(), [x, *cell.parameters()])])
    assert relative_error(*outcomes) < 1e-11


def test_replaced_modules_of_a_model(place):
    """The parameters that cuDNN had laid out in one piece go on in the fused modules."""
    how = {"dtype": torch.float64, "device": place.device}
    model = nn.ModuleDict({"lstm": nn.LSTM(6, 10, 2, bidirectional=True, **how), "head": nn.Linear(20, 2, **how)})
    x = torch.randn(5, 4, 6, **how)
    outcomes = []
    for _ in range(2):
        output = model["head"](model["lstm"](x)[0])
        outcomes.append([output, *torch.autograd.grad(output.square().sum(), list(model.parameters()))])
        fused_rnn.replace(model, backend=place.backend)
    assert type(model["lstm"]) is fused_rnn.LSTM
    assert relative_error(*outcomes) < 1e-11


def test_auto_takes_this_backend(place):
    module = fused_rnn.GRU(3, 5, device=place.device)
    choice = fused_rnn.choose_backend(place.device, torch.float32)
    assert choice.backend == place.backend
    x = torch.randn(4, 2, 3, device=place.device)
    named = fused_rnn.GRU(3, 5, device=place.device, backend=place.backend)
    named.load_state_dict(module.state_dict())
    assert torch.equal(module(x)[0], named(x)[0])


@EVERY_BACKEND
def test_compile_without_a_graph_break(place):
    for cls in (fused_rnn.LSTM, fused_rnn.MultiplicativeGRU):
        module = cls(6, 10, device=place.device, backend=place.backend)
        x = torch.randn(5, 4, 6, device=place.device, requires_grad=True)
        runs = [torch.compile(module, fullgraph=True, backend="aot_eager"), module]
        torch.testing.assert_close(*(torch.autograd.grad(run(x)[0].square().sum(), x) for run in runs))


@EVERY_BACKEND
@pytest.mark.parametrize("lengths", [None, [3, 1]], ids=["whole", "lengths"])
def test_opcheck(place, cell, lengths):
    op = place.operands(cell, Shape(3, 2, 3, 4), lengths=lengths, dtype=torch.float32)
    args = (*op.arguments(), cell, False, 0.0, "everything")
    torch.library.opcheck(torch.ops.fused_rnn.forward.default, args)
    torch.library.opcheck(torch.ops.fused_rnn.backward.default, backward_arguments(op, args))


def test_tensors_on_different_devices_are_refused(place):
    op = place.operands("lstm", Shape(3, 2, 4, 5))
    for name in ("h_0", "c_0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        elsewhere = op.tensors[name].detach().to("cpu" if place.is_gpu else "meta")
        with pytest.raises(RuntimeError, match=f"{name} is on .* but input is on .*: move one of them"):
            op.run(place.backend, **{name: elsewhere})


def test_the_backend_of_another_device_is_refused(place):
    op = place.operands("gru", Shape(3, 2, 4, 5))
    with pytest.raises(RuntimeError, match=r"backend '\w+' cannot run this call: "):
        op.run("cpu" if place.is_gpu else "cuda")


def test_operators_refuse_what_they_cannot_read(place):
    """A direct caller gets an error and never reads out of bounds."""
    op = place.operands("lstm", Shape(2, 2, 3, 4))
    good = op.arguments()
    with pytest.raises(RuntimeError, match="unknown cell 'lstn'"):
        torch.ops.fused_rnn.forward(*good, "lstn", False, 0.0, "nothing")
    for index in range(1, 7):
        for wrong in (good[index].detach()[..., :-1], good[index].detach().float()):
            with pytest.raises(RuntimeError):
                torch.ops.fused_rnn.forward(*good[:index], wrong, *good[index + 1 :], "lstm", False, 0.0, "nothing")
    place.wait()


def test_second_gpu(place, cell):
    """A call on a GPU that is not the current one runs there, and leaves the current one as it was."""
    if place.is_gpu and torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    second = torch.device("cuda", 1) if place.is_gpu else place.device
    op = operands(cell, Shape(5, 3, 4, 40)).on(second)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)
    assert relative_error(op.results_and_gradients(place.backend, d_results), exact) < 1e-11
    if place.is_gpu:
        assert torch.cuda.current_device() == 0
        with pytest.raises(RuntimeError, match="h_0 is on cuda:0 but input is on cuda:1"):
            op.run(place.backend, h_0=op.tensors["h_0"].detach().to("cuda:0"))


def test_nothing_gave_up_waiting(place):
    cuda.raise_timed_out()


SMALL_CALLS = """
import sys
import torch
from fused_rnn.cells import CELLS
from tests.conftest import Shape, operands, random_like

device, backend = sys.argv[1:]
for cell in CELLS:
    for dtype in (torch.float32, torch.bfloat16):
        for shape, lengths in ((Shape(3, 3, 5, 7), [3, 0, 2]), (Shape(2, 9, 16, 40), None)):
            op = operands(cell, shape, lengths=lengths, dtype=dtype).on(device)
            results = op.results_and_gradients(backend, random_like(op.run("reference")))
            assert not any(t.isnan().any() for t in results)
print("all calls returned")
"""


@EVERY_BACKEND
@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(place, tool):
    command = [sys.executable, "-c", SMALL_CALLS, str(place.device), place.backend]
    if place.is_gpu:
        sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
        if not sanitizer:
            pytest.skip("no compute-sanitizer")
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *command]
    # without torch's allocator, which would hide what lies between two tensors
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    run = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert "all calls returned" in run.stdout


@pytest.mark.skipif(ON_CPU, reason="runs itself")
def test_these_tests_on_the_cpu():
    """So that a test that itself is wrong does not wait for a GPU to be noticed."""
    chosen = "not rnn_ and not gru and not hidden and not opcheck and not sanitizer"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", chosen]
    environment = {**os.environ, "FUSED_RNN_GPU_TESTS": "cpu"}
    run = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout
