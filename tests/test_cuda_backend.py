"""The CUDA backend without its kernels: the products around the loop, the choice of a backend, launches.

Plain PyTorch runs the time loop here, in place of the low-level operators.
"""

import re
import subprocess

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import fused_rnn
from benchmarks.gpu.kernel import build
from fused_rnn import cuda, derivatives, products
from fused_rnn.cells import CELLS, WEIGHTS
from fused_rnn.operands import Gradients

from .conftest import Operands, Shape, operands, random_like, relative_error
from .host_kernels import needs_compiler


class PlainKernels:
    """The time loop step by step, with gradients of the pre-activations by autograd.

    A zero that requires a gradient is added to every pre-activation, to m, and to the x that m scales. Values are
    computed in float32 at least, and stored in the dtype of the operands. The backward loop repeats the forward one,
    which keeps W x for it.
    """

    def __init__(self) -> None:
        self.pair = products.Kernels(self.forward, self.backward)

    def forward(self, projected, x, h_0, c_0, w, u, u_m, b_m, b, b_h, lengths, *rest):
        *others, cell, reverse, save = rest
        assert others == [None] * 5  # masks and resets
        self.kept = projected, b_m, b, b_h
        *results, cells, saved = self.run(projected, x, h_0, c_0, w, u, u_m, b_m, b, b_h, lengths, cell, reverse)
        cells = cells.new_empty(0) if save == "nothing" else cells
        saved = saved if save == "everything" else saved.new_empty(0)
        return tuple(t.to(h_0.dtype) for t in (*results, cells, saved))

    @torch.enable_grad()
    def backward(self, d_output, d_h_n, d_c_n, d_cells, output, cells, saved, x, h_0, c_0, w, u, u_m, lengths, *rest):
        *others, cell, reverse, gradient_clip = rest
        assert (others, gradient_clip) == ([None] * 5, 0)
        projected, b_m, b, b_h = self.kept
        assert cells.shape == ((0,) if c_0 is None else output.shape)
        assert saved.shape == (*output.shape[:2], CELLS[cell].saved * h_0.shape[1] + (0 if x is None else x.shape[2]))
        columns = CELLS[cell].gradients * h_0.shape[1] + (0 if x is None else x.shape[2])
        wide = torch.promote_types(h_0.dtype, torch.float32)
        d = torch.zeros(*output.shape[:2], columns, dtype=wide, requires_grad=True)
        dx = torch.zeros(() if x is None else x.shape, dtype=wide, requires_grad=True)
        states = [None if t is None else t.detach().to(wide).requires_grad_() for t in (h_0, c_0)]
        results = self.run(projected, x, *states, w, u, u_m, b_m, b, b_h, lengths, cell, reverse, d, dx)
        d_results = (d_output, d_h_n, d_c_n, d_cells)
        outs, d_outs = zip(*((r, g.to(wide)) for r, g in zip(results, d_results) if g is not None))
        leaves = [*(t for t in states if t is not None), d, dx]
        gradients = torch.autograd.grad(outs, leaves, d_outs, allow_unused=True, materialize_grads=True)
        *d_states, d, dx = (g.to(h_0.dtype) for g in gradients)
        nothing = (h_0.new_empty(0) for _ in range(3))
        return d_states[0], d_states[1] if c_0 is not None else next(nothing), d, dx, next(nothing), next(nothing)

    def run(self, projected, x, h, c, w, u, u_m, b_m, b, b_h, lengths, cell, reverse, d=None, dx=None):
        """Return results and saved values; d is added to the pre-activations, and dx to x."""
        wide = torch.promote_types(h.dtype, torch.float32)
        projected, x, h, c, w, u, u_m, b_m, b, b_h = (
            None if t is None else t.to(wide) for t in (projected, x, h, c, w, u, u_m, b_m, b, b_h)
        )
        T, B, H, I = *projected.shape[:2], h.shape[1], 0 if x is None else x.shape[2]
        d = h.new_zeros(T, B, CELLS[cell].gradients * H + I) if d is None else d
        dx = h.new_zeros(()).expand(T) if dx is None or x is None else dx
        outputs, cells, saved = [None] * T, [None] * T, [None] * T
        for t in reversed(range(T)) if reverse else range(T):
            active = (t < (torch.full((B,), T) if lengths is None else lengths)).unsqueeze(1)
            wx, state, m = torch.where(active, projected[t], 0), h, []  # autograd would multiply NaN there by zero
            if x is not None:
                m = [h @ u_m.t() + d[t, :, -I:] if w is None else add(wx + h @ u_m.t(), b_m) + d[t, :, -I:]]
                x_hat = m[0] * (torch.where(active, x[t], 0) + dx[t])
                wx, state = (wx, x_hat) if w is None else (x_hat @ w.t(), h)
            wx = add(wx, b).chunk(CELLS[cell].gates, 1)
            new_h, new_c, values = step(cell.removesuffix("_hidden"), wx, state, c, u, b_h, d[t].split(H, 1))
            h = torch.where(active, new_h, h)
            c = None if c is None else torch.where(active, new_c, c)
            outputs[t] = torch.where(active, new_h, 0)
            if c is not None:
                cells[t] = torch.where(active, new_c, 0)
            saved[t] = torch.where(active, torch.cat([*values, *m], 1), 0)
        c_n, cells = (h.new_empty(0), h.new_empty(0)) if c is None else (c, torch.stack(cells))
        return torch.stack(outputs), h, c_n, cells, torch.stack(saved)


def add(value: Tensor, bias: Tensor | None) -> Tensor:
    return value if bias is None else value + bias


def step(cell: str, wx: tuple[Tensor, ...], h: Tensor, c: Tensor | None, u: Tensor, b_h: Tensor | None, d) -> tuple:
    """Return h, c and the values to save of one step of a base cell; wx has a bias, d is added to pre-activations."""
    if cell.endswith("gru"):  # reset before
        u_r, u_z, u_n = u.chunk(3)
        r, z = torch.sigmoid(wx[0] + h @ u_r.t() + d[0]), torch.sigmoid(wx[1] + h @ u_z.t() + d[1])
        n = torch.tanh(wx[2] + (r * h) @ u_n.t() + d[2])
        return (1 - z) * h + z * n, None, [r, z, n]
    uh = add(h @ u.t(), b_h).chunk(len(wx), 1)
    if cell.startswith("rnn"):
        h = {"rnn_tanh": torch.tanh, "rnn_relu": torch.relu}[cell](wx[0] + uh[0] + d[0])
        return h, None, [h]
    if cell.endswith("lstm"):
        i, f, o = (torch.sigmoid(wx[k] + uh[k] + d[k]) for k in (0, 1, 3))
        g = torch.tanh(wx[2] + uh[2] + d[2])
        c = f * c + i * g
        return o * torch.tanh(c), c, [i, f, g, o]
    r, z, q = torch.sigmoid(wx[0] + uh[0] + d[0]), torch.sigmoid(wx[1] + uh[1] + d[1]), uh[2] + d[3]
    n = torch.tanh(wx[2] + d[2] + r * q)
    return (1 - z) * n + z * h, None, [r, z, n, q]


@torch.no_grad()
def results_and_gradients(
    op: Operands, d_results: list[Tensor], kernels: products.Kernels, wanted: tuple[bool, bool] = (True, True)
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the results of the backend's forward and all gradients of its backward, with the given kernels."""
    *results, saved = products.forward(*op.arguments(), op.cell, op.reverse, 0.0, "everything", kernels=kernels)
    d_results = [*d_results, None, None][:4]
    how = (op.cell, op.reverse, 0.0, *wanted)
    kept = results[0], results[3], saved
    return results, products.backward(*d_results, *kept, *op.arguments(), *how, kernels=kernels)


def compare(op: Operands, allowed: float, kernels: products.Kernels | None = None) -> None:
    """Compare results and gradients with the reference in float64."""
    d_results = random_like(op.run("reference"))
    exact = op.to(torch.float64).results_and_gradients("reference", d_results)
    results, gradients = results_and_gradients(op, d_results, kernels or PlainKernels().pair)
    named = dict(zip(("input", "h_0", "c_0", *WEIGHTS), gradients))
    values = [*results[: len(d_results)], *(named[name] for name in op.tensors)]
    assert [v.shape for v in values] == [e.shape for e in exact]
    assert relative_error(values, exact) <= allowed


SHAPES = [Shape(1, 1, 1, 1), Shape(1, 3, 2, 5), Shape(5, 4, 3, 6)]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_equal_reference(cell, shape, reverse, bias):
    compare(operands(cell, shape, reverse=reverse, bias=bias), 1e-11)


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_after"])
@pytest.mark.parametrize("missing", ["bias_ih", "bias_hh"])
def test_a_missing_bias_has_no_gradient(cell, missing):
    op = operands(cell, Shape(3, 2, 3, 4))
    del op.tensors[missing]
    compare(op, 1e-11)
    _, gradients = results_and_gradients(op, random_like(op.run("reference")), PlainKernels().pair)
    assert Gradients(*gradients)._asdict()[f"d_{missing}"].shape == (0,)


def test_a_single_step_that_begins_anew():
    """The gradient of U is a product with the states that the step begins with, after resets."""
    op = operands("rnn_tanh", Shape(1, 3, 2, 4))
    (output, h_n), resets, new = op.run("reference"), torch.tensor([[True, False, True]]), op.tensors["h_0"] + 1
    d, nothing = torch.randn_like(output), output.new_empty(0)
    kernels = products.Kernels(None, lambda *loop: (h_n, nothing, d, nothing, nothing, nothing))
    given = (d, None, None, None, output, nothing, output, *op.arguments(), op.cell, False, 0.0, True, True)
    with torch.no_grad():
        found = Gradients(*products.backward(*given, resets, new, None, kernels=kernels))
        before = torch.where(resets[0].unsqueeze(1), new, op.tensors["h_0"])
        assert relative_error([found.d_weight_hh], [d[0].t() @ before]) <= 1e-15


def test_products_with_lengths(cell, reverse):
    """NaN past the end of a sequence reaches nothing."""
    lengths = [3, 5, 0, 1, 5, 4]
    op = operands(cell, Shape(5, len(lengths), 3, 4), reverse=reverse, lengths=lengths)
    d_results = random_like(op.run("reference"))
    exact = op.results_and_gradients("reference", d_results)[len(d_results) :]
    past = (torch.arange(5).unsqueeze(1) >= op.lengths).unsqueeze(2)
    op.tensors["input"] = op.tensors["input"].detach().masked_fill(past, torch.nan)
    op.tensors["input"].requires_grad_()
    _, gradients = results_and_gradients(op, d_results, PlainKernels().pair)
    named = dict(zip(("input", "h_0", "c_0", *WEIGHTS), gradients))
    assert relative_error([named[name] for name in op.tensors], exact) <= 1e-11


def test_lengths_out_of_range_are_taken_as_the_nearest(cell, reverse):
    """The kernels are the first to read lengths on a GPU, so no value may index past the end."""
    wild, tame = ([-3, 9, 2, 5], [0, 5, 2, 5])
    op = operands(cell, Shape(5, 4, 2, 3), reverse=reverse)
    d_results = random_like(op.run("reference"))
    runs = []
    for lengths in (wild, tame):
        op.lengths = torch.tensor(lengths)
        results, gradients = results_and_gradients(op, d_results, PlainKernels().pair)
        runs.append([*results, *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_in_low_precision_are_no_worse_than_pytorch(cell, dtype):
    op = operands(cell, Shape(12, 9, 7, 20), scale=1.0, dtype=dtype)
    d_results = random_like(op.run("reference"))
    exact = op.to(torch.float64).results_and_gradients("reference", d_results)
    compare(op, 2 * relative_error(op.results_and_gradients("reference", d_results), exact))


def test_strided_operands(cell):
    op = operands(cell, Shape(4, 3, 2, 5))
    op.tensors = {name: torch.stack([t, t], -1)[..., 0].detach().requires_grad_() for name, t in op.tensors.items()}
    op.tensors["input"] = op.tensors["input"].detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    compare(op, 1e-11)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)], ids=str)
def test_only_what_is_wanted(cell, wanted):
    """Shapes are those that derivatives.py promises, and no result shares memory with another."""
    op = operands(cell, Shape(3, 2, 4, 5))
    d_results = random_like(op.run("reference"))
    results, gradients = results_and_gradients(op, d_results, PlainKernels().pair, wanted)
    _, all_gradients = results_and_gradients(op, d_results, PlainKernels().pair)
    fake = derivatives._backward_fake(*[None] * 4, results[0], *[None] * 2, *op.arguments(), cell, False, 0.0, *wanted)
    assert [g.shape for g in gradients] == [f.shape for f in fake]
    assert all(g.is_contiguous() for g in gradients)
    assert all(torch.equal(g, full) for g, full in zip(gradients, all_gradients) if g.numel())
    memory = [t.untyped_storage().data_ptr() for t in (*results, *all_gradients) if t.numel()]
    assert len(set(memory)) == len(memory)


def test_results_that_the_loss_does_not_use(cell):
    """The gradient of an unused result is None, and counts as zero."""
    op = operands(cell, Shape(3, 2, 2, 4))
    d_h_n = torch.randn(2, 4, dtype=torch.float64)
    expected = torch.autograd.grad(op.run("reference")[1], list(op.tensors.values()), d_h_n)
    _, gradients = results_and_gradients(op, [None, d_h_n, None], PlainKernels().pair)
    named = dict(zip(("input", "h_0", "c_0", *WEIGHTS), gradients))
    assert relative_error([named[name] for name in op.tensors], expected) <= 1e-11


def test_unknown_cell():
    op = operands("lstm", Shape(1, 1, 1, 1))
    op.cell = "lstn"
    with pytest.raises(RuntimeError, match="unknown cell 'lstn'"):
        products.forward(*op.arguments(), op.cell, False, 0.0, "nothing", kernels=PlainKernels().pair)


# The choice of a backend ------------------------------------------------------------------------------------


def test_status_says_what_is_missing(monkeypatch):
    """The first obstacle to repair is named: this library before torch before the machine."""
    monkeypatch.setattr(torch.version, "cuda", None)
    without = torch.ops.fused_rnn.without_cuda()
    expected = f"no CUDA kernels: {without}" if without else "is a build without CUDA"
    assert expected in fused_rnn.backends()["cuda"]
    assert expected in fused_rnn.choose_backend("cuda", torch.float32).reason
    with pytest.raises(RuntimeError, match=expected):
        fused_rnn.LSTM(2, 3, backend="cuda")(torch.zeros(1, 1, 2))


@pytest.mark.skipif(not hasattr(torch.ops.fused_rnn, "cuda_device"), reason="this build has no CUDA kernels")
def test_status_without_a_gpu(monkeypatch):
    """Asked for a GPU that is not there, the library says so, whatever this machine has."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    message = cuda.obstacle(1000)
    assert re.search("there is no NVIDIA driver|the NVIDIA driver is for|there is no GPU 1000|finds no GPU", message)
    cuda.raise_timed_out()  # nothing has run


@pytest.fixture
def gpu(monkeypatch):
    """Make every GPU look available."""
    monkeypatch.setattr(cuda, "obstacle", lambda index: None)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", cuda.DTYPES, ids=str)
def test_auto_takes_the_backend_of_the_device(dtype):
    assert fused_rnn.choose_backend("cuda:1", dtype).backend == "cuda"
    assert fused_rnn.choose_backend("cpu", dtype).backend == ("reference" if dtype == torch.float16 else "cpu")


@pytest.mark.usefixtures("gpu")
def test_tensors_elsewhere_and_of_other_types_are_refused():
    for device, dtype, backend, message in (
        ("cpu", torch.float32, "cuda", "the tensors are on cpu, the backend runs on a GPU"),
        ("cuda:1", torch.float32, "cpu", "the tensors are on cuda:1, the backend runs on the CPU"),
        ("cuda", torch.int32, "cuda", "the dtype is torch.int32, the backend computes in torch.float32"),
    ):
        with pytest.raises(RuntimeError, match=message):
            fused_rnn.choose_backend(device, dtype, backend)
    choice = fused_rnn.choose_backend("cuda", torch.complex64)
    assert choice.backend == "reference"
    assert "the dtype is torch.complex64" in choice.reason


def test_calls_on_the_cpu_do_not_look_for_a_gpu(monkeypatch):
    """Looking initialises the driver; a process that is forked after that cannot use CUDA."""

    def fail(*_):
        raise AssertionError("looked for a GPU")

    monkeypatch.setattr(cuda, "obstacle", fail)
    monkeypatch.setattr(cuda, "status", fail)
    fused_rnn.LSTM(2, 3)(torch.zeros(1, 1, 2))[0].sum().backward()


def test_the_choice_is_a_constant_to_the_compiler():
    @torch.compile(fullgraph=True, backend="eager")
    def function(x):
        return x + (1 if cuda.obstacle(0) is None else 2)

    expected = 1 if cuda.obstacle(0) is None else 2
    assert function(torch.zeros(1)).item() == expected


@pytest.mark.skipif(not hasattr(torch.ops.fused_rnn, "cuda_device"), reason="this build has no CUDA kernels")
def test_a_trace_does_not_see_who_asks_for_the_gpu(monkeypatch):
    """The answers are strings, which a trace cannot hold."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    asked = []

    def function(x: Tensor) -> Tensor:
        asked.extend((cuda.obstacle(0), cuda.status()))
        return x + 1

    graph = make_fx(function)(torch.zeros(1)).graph
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [torch.ops.aten.add.Tensor]
    traced = torch.jit.trace(function, torch.zeros(1))
    assert traced(torch.ones(1)).item() == 2
    assert "fused_rnn" not in str(traced.graph)
    assert set(asked) == {cuda.obstacle(0), cuda.status()}


# Launches ---------------------------------------------------------------------------------------------------


@needs_compiler
def test_threads_that_launch_one_kernel_with_different_shared_memory(tmp_path):
    program = tmp_path / "launches"
    runtime = build.SHIM / "runtime"
    build.compile_on_host(build.SHIM / "launches.cpp", program, "-O0", f"-I{runtime}")
    run = subprocess.run([program], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
