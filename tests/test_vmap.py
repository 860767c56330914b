"""``torch.func``: vmap against a loop, in results and gradients; beside, over and within the other transforms."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from fused_rnn import ops

from .conftest import FUSED, Operands, Shape, of_few_cells, operands, random_like, regularised, relative_error

N, SHAPE = 3, Shape(4, 2, 3, 5)
BACKENDS = pytest.mark.parametrize("backend", [*FUSED, "reference"])
STATES, CONSTANTS = ("h_0", "c_0"), ("lengths", "keep_h", "keep_c")
KINDS = {
    "plain": lambda op: op,
    "lengths": lambda op: replace(op, reverse=True, lengths=torch.tensor([3, 0])),
    "regularised": regularised,
    "recompute": lambda op: replace(op, recompute=True),
    "all-options": lambda op: replace(regularised(op), reverse=True, recompute=True, lengths=torch.tensor([1, 4])),
}
# operands with an extra dimension: inputs and states fold into the sequences, weights are run one after the other
BATCHED = {
    "input": ["input"],
    "states": STATES,
    "sequences": ["input", *STATES, *CONSTANTS],
    "weights": ops.WEIGHTS,
    "one-bias": ["bias_ih"],
    "all": ["input", *STATES, *CONSTANTS, *ops.WEIGHTS],
}


def constants(op: Operands) -> dict[str, Tensor]:
    return {name: t for name in CONSTANTS if (t := getattr(op, name)) is not None}


def stacked(op: Operands, names: list[str]) -> dict[str, Tensor]:
    """Return the tensors of a call by name; those in ``names`` have N values along a new first dimension."""
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, attached in (op.tensors | constants(op)).items():
        t = attached.detach()
        if name not in names:
            tensors[name] = t
        elif name == "lengths":
            tensors[name] = torch.stack([(t + shift) % (SHAPE.T + 1) for shift in range(N)])
        elif name in CONSTANTS:
            tensors[name] = torch.stack([t.roll(shift, 0) for shift in range(N)])
        else:
            tensors[name] = t * (1 + 0.5 * torch.randn(N, *t.shape, dtype=t.dtype, generator=generator).to(t.device))
    for name in op.tensors:
        tensors[name].requires_grad_()
    return tensors


def call(op: Operands, backend: str) -> Callable[[dict[str, Tensor]], tuple[Tensor, ...]]:
    """Return the results as a function of all tensors of a call."""

    def run(tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        fixed = {name: t for name, t in tensors.items() if name in CONSTANTS}
        return tuple(replace(op, **fixed).run(backend, **{n: t for n, t in tensors.items() if n not in CONSTANTS}))

    return run


def loss(op: Operands, backend: str) -> Callable[[dict[str, Tensor]], Tensor]:
    run = call(op, backend)
    return lambda tensors: sum(result.square().sum() for result in run(tensors))


def dims_of(tensors: dict[str, Tensor], names: list[str]) -> dict[str, int | None]:
    return {name: 0 if name in names else None for name in tensors}


def loop(function: Callable, tensors: dict[str, Tensor], names: list[str]) -> tuple[Tensor, ...]:
    """Compute the expected results of vmap by a loop."""
    members = [{n: t[index] if n in names else t for n, t in tensors.items()} for index in range(N)]
    return tuple(map(torch.stack, zip(*map(function, members))))


def error(op: Operands, backend: str, names: list[str], loop_backend: str = "reference") -> float:
    """Return the error of results, and of gradients taken outside of vmap, against a loop."""
    tensors = stacked(op, names)
    leaves = [tensors[name] for name in op.tensors]
    results = vmap(call(op, backend), (dims_of(tensors, names),))(tensors)
    exact = loop(call(op, loop_backend), tensors, names)
    d_results = random_like(exact)
    gradients, expected = (torch.autograd.grad(outcome, leaves, d_results) for outcome in (results, exact))
    return relative_error([*results, *gradients], [*exact, *expected])


def error_of_members(op: Operands, backend: str, names: list[str], loop_backend: str = "reference") -> float:
    """Return the error of the gradients of each member, including shared operands, against a loop."""
    tensors = {name: t.detach() for name, t in stacked(op, names).items()}

    def gradients(tensors, name):
        leaves = {n: t for n, t in tensors.items() if n in op.tensors}
        fixed = {n: t for n, t in tensors.items() if n not in op.tensors}
        return tuple(grad(lambda leaves: loss(op, name)({**leaves, **fixed}))(leaves).values())

    results = vmap(lambda t: gradients(t, backend), (dims_of(tensors, names),))(tensors)
    return relative_error(results, loop(lambda t: gradients(t, loop_backend), tensors, names))


# Values and gradients ---------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize("names", BATCHED.values(), ids=BATCHED)
@pytest.mark.parametrize("kind", KINDS)
def test_results_and_gradients(cell, backend, kind, names):
    op = KINDS[kind](operands(cell, SHAPE))
    assert error(op, backend, names) < 1e-11


@BACKENDS
@pytest.mark.parametrize("names", [BATCHED["sequences"], BATCHED["weights"]], ids=["sequences", "weights"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_each_member(cell, backend, kind, names):
    """vmap over grad gives each member's gradients, shared operands included."""
    assert error_of_members(KINDS[kind](operands(cell, SHAPE)), backend, names) < 1e-11


class Calls(TorchDispatchMode):
    """Records the names of the operators called, and what forward calls save."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.saves = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, _, name = function._schema.name.partition("::")
        if namespace == "fused_rnn":
            self.names.append(name)
            self.saves += [args[-1]] if name == "forward" else []
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("names", "calls"), [(["input"], 1), (STATES, 1), (ops.WEIGHTS, N)])
def test_sequences_fold_and_weights_run_one_after_the_other(cell, backend, names, calls):
    op = operands(cell, SHAPE)
    tensors = stacked(op, names)
    with Calls() as seen:
        vmap(call(op, backend), (dims_of(tensors, names),))(tensors)[0].sum().backward()
    assert seen.names == ["forward"] * calls + ["backward"] * calls


def test_no_more_is_saved_than_is_read(backend):
    op = replace(operands("lstm", SHAPE), return_cells=False)
    tensors = stacked(op, BATCHED["all"])
    frozen = {name: t.detach() for name, t in tensors.items()}
    run = vmap(call(op, backend))
    for given, grad_mode, save in (
        (tensors, True, "everything"),
        (tensors, False, "nothing"),
        (frozen, True, "nothing"),
        ({**frozen, "bias_hh": tensors["bias_hh"]}, True, "everything"),
    ):
        with Calls() as seen, torch.set_grad_enabled(grad_mode):
            assert run(given)[0].requires_grad == (save == "everything")
        assert seen.saves == [save] * N
    with Calls() as seen:
        assert vmap(call(replace(op, recompute=True), backend))(tensors)[0].requires_grad
    assert seen.saves == ["states"] * N


@BACKENDS
def test_other_dimensions(cell, backend):
    """The new dimension may be any of a tensor's, and in only some tensors."""
    op = replace(operands(cell, SHAPE), lengths=torch.tensor([3, 1]))
    names = ["input", "h_0", "lengths", "weight_hh", "bias_ih"]
    tensors = stacked(op, names)
    dims = {"input": 1, "h_0": -1, "lengths": 1, "weight_hh": 2, "bias_ih": 1}
    moved = {name: t.movedim(0, dims[name]) if name in dims else t for name, t in tensors.items()}
    in_dims = {name: dims.get(name) for name in tensors}
    results = vmap(call(op, backend), (in_dims,), out_dims=1)(moved)
    exact = loop(call(op, "reference"), tensors, names)
    assert relative_error([r.transpose(0, 1) for r in results], exact) < 1e-11


@BACKENDS
def test_gradient_of_vmap(cell, backend):
    """grad over vmap is right for members with their own weights and with common ones."""
    op = operands(cell, SHAPE)
    for names in (BATCHED["sequences"], BATCHED["weights"]):
        tensors = {n: t.detach() for n, t in stacked(op, names).items()}
        dims = dims_of(tensors, names)
        result = grad(lambda given, dims=dims: vmap(loss(op, backend), (dims,))(given).sum())(tensors)
        leaves = {n: t.requires_grad_() for n, t in tensors.items()}
        (losses,) = loop(lambda t: (loss(op, "reference")(t),), leaves, names)
        exact = torch.autograd.grad(losses.sum(), list(leaves.values()))
        assert relative_error([result[n] for n in leaves], exact) < 1e-11


@BACKENDS
def test_vmap_of_vmap(cell, backend):
    """vmap over sets of weights, and inside it over sets of sequences, is right; so is the opposite nesting."""
    op = operands(cell, SHAPE)
    once = stacked(op, BATCHED["all"])
    weights = {n: t for n, t in once.items() if n in ops.WEIGHTS}
    rest = {n: t for n, t in once.items() if n not in ops.WEIGHTS}
    one = call(op, backend)
    by_weights = vmap(vmap(lambda w, r: one({**r, **w}), (None, 0)), (0, None))(weights, rest)
    by_sequences = vmap(vmap(lambda r, w: one({**r, **w}), (None, 0)), (0, None))(rest, weights)
    exact = [
        [call(op, "reference")({**{n: t[s] for n, t in rest.items()}, **{n: t[w] for n, t in weights.items()}})]
        for w in range(N)
        for s in range(N)
    ]
    exact = [torch.stack([e[0][i] for e in exact]).unflatten(0, (N, N)) for i in range(len(exact[0][0]))]
    d_results = random_like(exact)
    expected = torch.autograd.grad(exact, list(once.values()), d_results)
    for results in (by_weights, [r.transpose(0, 1) for r in by_sequences]):
        gradients = torch.autograd.grad(results, list(once.values()), d_results)
        assert relative_error([*results, *gradients], [*exact, *expected]) < 1e-11


# Other transforms -------------------------------------------------------------------------------------------


@of_few_cells
@BACKENDS
@pytest.mark.parametrize("name", ["input", "h_0", "weight_hh", "bias_ih"])
def test_jacobian(cell, backend, name):
    op = KINDS["all-options"](operands(cell, SHAPE))
    run = call(op, backend)
    tensors = {n: t.detach() for n, t in (op.tensors | constants(op)).items()}
    jacobians = jacrev(lambda t: run({**tensors, name: t}))(tensors[name])
    t = op.tensors[name]
    for result, jacobian in zip(op.run("reference"), jacobians, strict=True):
        rows = [torch.autograd.grad(element, t, retain_graph=True)[0] for element in result.flatten()]
        assert relative_error([jacobian], [torch.stack(rows).view(jacobian.shape)]) < 1e-11


SMALL = Shape(2, 2, 2, 3)


@of_few_cells
@BACKENDS
def test_second_derivatives(cell, backend):
    """Jacobians of gradients are right for each of several members, in reverse mode, the one that kernels have."""
    op = operands(cell, SMALL)
    tensors = {n: t.detach() for n, t in stacked(op, ["input"]).items()}
    names = "input", "weight_hh"

    def second(x, w, backend):
        def value(x, w):
            return loss(op, backend)({**tensors, "input": x, "weight_hh": w})

        return jacrev(grad(value, (0, 1)), (0, 1))(x, w)

    x, w = (tensors[name] for name in names)
    result = vmap(lambda x, w: second(x, w, backend), (0, None))(x, w)
    for index in range(N):
        exact = torch.autograd.functional.hessian(
            lambda x, w: loss(op, "reference")({**tensors, "input": x, "weight_hh": w}), (x[index], w)
        )
        for row, expected in zip(result, exact, strict=True):
            assert relative_error([part[index] for part in row], expected) < 1e-10


def test_forward_mode_within_vmap(cell):
    """As outside of vmap, auto takes the reference, and a backend by name refuses."""
    op = operands(cell, SMALL)
    tensors = {n: t.detach() for n, t in stacked(op, ["input"]).items()}
    x = tensors["input"]

    def output(x, backend):
        return call(op, backend)({**tensors, "input": x})[0]

    tangents, jacobians, hessians = (
        vmap(transform)(x)
        for transform in (
            lambda x: jvp(lambda x: output(x, "auto"), (x,), (x,))[1],
            jacfwd(lambda x: output(x, "auto")),
            hessian(lambda x: output(x, "auto").square().sum()),
        )
    )
    for index in range(N):
        exact = jacrev(lambda x: output(x, "reference"))(x[index])
        twice = jacrev(grad(lambda x: output(x, "reference").square().sum()))(x[index])
        along = torch.tensordot(exact, x[index], 3)
        assert relative_error([tangents[index], jacobians[index], hessians[index]], [along, exact, twice]) < 1e-10
    for transform in (vmap(jacfwd(lambda x: output(x, "cpu"))), jacfwd(vmap(lambda x: output(x, "cpu")))):
        with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
            transform(x)


@BACKENDS
def test_pulling_back_after_the_transform_has_ended(backend):
    """The function that vjp returns is called, and differentiated, after its level has ended."""
    op = operands("lstm", SHAPE)
    tensors = {n: t.detach() for n, t in op.tensors.items()}
    results, pull_back = vjp(lambda x: call(op, backend)({**tensors, "input": x}), tensors["input"])
    d_results = [d.requires_grad_() for d in random_like(results)]
    (result,) = pull_back(tuple(d_results))
    exact = torch.autograd.grad(op.run("reference"), op.tensors["input"], d_results, create_graph=True)
    first, second = (torch.autograd.grad(g.square().sum(), d_results) for g in (result, exact[0]))
    assert relative_error([result, *first], [*exact, *second]) < 1e-11


def test_batched_gradients(backend):
    """Autograd's ``is_grads_batched``, which is vmap over the backward pass, equals a loop."""
    op = operands("gru", SHAPE)
    leaves = list(op.tensors.values())
    results = op.run(backend)
    d_results = [random_like([torch.zeros(N, *r.shape)], seed)[0].double() for seed, r in enumerate(results)]
    batched = torch.autograd.grad(results, leaves, d_results, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(results, leaves, d, retain_graph=True) for d in zip(*d_results)]
    assert relative_error(batched, [torch.stack(g) for g in zip(*single)]) < 1e-11
