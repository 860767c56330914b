"""Modules within ``torch.func.vmap``: ensembles, random masks, mistakes, autocast, torch.compile."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn

from .conftest import FUSED, operands, random_like, relative_error
from .test_cell_modules import CELLS, parts
from .test_modules import MODULES, H, I, flat
from .test_vmap import BACKENDS, BATCHED, KINDS, SHAPE, N, call, dims_of, loss, stacked


def ensemble(make: Callable, *sizes, **options) -> tuple[list[torch.nn.Module], Callable]:
    """Return N modules, and a function of stacked parameters that gives their results."""
    torch.manual_seed(0)
    members = [make(*sizes, dtype=torch.float64, **options) for _ in range(N)]

    def run(parameters: dict[str, Tensor], *arguments, **given):
        return functional_call(members[0], (parameters,), arguments, given)

    return members, run


OPTIONS = {
    "layers": {"num_layers": 2, "bidirectional": True},
    "learnt": {"learn_initial_state": True, "batch_first": True, "gradient_clip": 0.1},
    "recompute": {"recompute": True, "zoneout": 0.3, "gradient_clip": 0.1},
}


@BACKENDS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", MODULES)
def test_ensemble(name, options, backend):
    """Stacked modules on the same sequences give the results and gradients that each gives by itself."""
    members, run = ensemble(MODULES[name], I, H, backend=backend, **options)
    for module in members:
        module.eval()
    parameters, _ = stack_module_state(members)
    x, lengths = torch.randn(4, 4, I, dtype=torch.float64), torch.tensor([1, 4, 0, 2])
    output, state = vmap(run, (0, None), randomness="error")(parameters, x, lengths=lengths)
    results = [output, *(state if isinstance(state, tuple) else (state,))]
    exact = [torch.stack(r) for r in zip(*(flat(module(x, lengths=lengths)) for module in members))]
    d_results = random_like(exact)
    gradients = torch.autograd.grad(results, list(parameters.values()), d_results)
    expected = torch.autograd.grad(exact, [p for module in members for p in module.parameters()], d_results)
    count = len(parameters)
    expected = [torch.stack(expected[index::count]) for index in range(count)]
    assert relative_error([*results, *gradients], [*exact, *expected]) < 1e-11


@BACKENDS
def test_ensemble_with_projections(backend):
    members, run = ensemble(fused_rnn.LSTM, I, H, proj_size=2, backend=backend)
    parameters, _ = stack_module_state(members)
    x, hx = torch.randn(N, 4, 2, I, dtype=torch.float64), [torch.randn(1, 2, s, dtype=torch.float64) for s in (2, H)]
    output, (h_n, c_n) = vmap(run, (0, 0, None))(parameters, x, tuple(hx))
    exact = [torch.stack(r) for r in zip(*(flat(module(x[i], tuple(hx))) for i, module in enumerate(members)))]
    d_results = random_like(exact)
    gradients = torch.autograd.grad([output, h_n, c_n], list(parameters.values()), d_results)
    expected = torch.autograd.grad(exact, [p for module in members for p in module.parameters()], d_results)
    expected = [torch.stack(expected[index :: len(parameters)]) for index in range(len(parameters))]
    assert relative_error([output, h_n, c_n, *gradients], [*exact, *expected]) < 1e-11


@BACKENDS
@pytest.mark.parametrize("name", CELLS)
def test_single_steps(name, backend):
    """Steps of an ensemble, and of one module over the rows of its input, are those without vmap."""
    members, run = ensemble(CELLS[name], I, H, backend=backend)
    parameters, _ = stack_module_state(members)
    x = torch.randn(3, I, dtype=torch.float64)

    def two_steps(step):
        return parts(step(x, step(x)))

    results = vmap(lambda p: two_steps(lambda *given: run(p, *given)))(parameters)
    exact = [torch.stack(r) for r in zip(*map(two_steps, members))]
    d_results = random_like(exact)
    gradients = torch.autograd.grad(results, list(parameters.values()), d_results)
    expected = torch.autograd.grad(exact, [p for module in members for p in module.parameters()], d_results)
    expected = [torch.stack(expected[index :: len(parameters)]) for index in range(len(parameters))]
    assert relative_error([*results, *gradients], [*exact, *expected]) < 1e-11
    unbatched = vmap(members[0])(x)
    assert relative_error(parts(unbatched), parts(members[0](x))) < 1e-11


DRAWN = [{"zoneout": 0.5}, {"weight_drop": 0.5}, {"num_layers": 2, "dropout": 0.5}]
DRAWN += [DRAWN[-1] | {"variational": True}]


@pytest.mark.parametrize("options", DRAWN, ids=str)
def test_what_is_drawn(backend, options):
    """torch must be told whether members draw the same numbers, and the module obeys."""
    torch.manual_seed(0)
    module = fused_rnn.GRU(I, H, backend=backend, **options)
    x = torch.randn(1, 5, 2, I).expand(N, -1, -1, -1).clone().requires_grad_()
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(module)(x)
    for randomness in ("same", "different"):
        output = vmap(lambda x: module(x)[0], randomness=randomness)(x)
        assert torch.equal(output[0], output[1]) == (randomness == "same")
        assert output.requires_grad


def test_packed_sequences(backend):
    """Members share the sizes and the order of packing, and have data of their own."""
    module = fused_rnn.LSTM(I, H, bidirectional=True, dtype=torch.float64, backend=backend)
    padded = torch.randn(4, 3, I, dtype=torch.float64)
    _, *how_packed = pack_padded_sequence(padded, torch.tensor([2, 4, 1]), enforce_sorted=False)
    data = torch.randn(N, 7, I, dtype=torch.float64, requires_grad=True)

    def run(data):
        output, (h_n, c_n) = module(PackedSequence(data, *how_packed))
        return output.data, h_n, c_n

    results, exact = vmap(run)(data), [torch.stack(r) for r in zip(*map(run, data))]
    leaves, d_results = [data, *module.parameters()], random_like(exact)
    gradients, expected = (torch.autograd.grad(r, leaves, d_results) for r in (results, exact))
    assert relative_error([*results, *gradients], [*exact, *expected]) < 1e-11
    batch_sizes = how_packed[0].expand(N, -1)
    with pytest.raises(RuntimeError, match="the members share the batch_sizes of a PackedSequence: for their own give"):
        vmap(lambda data, sizes: module(PackedSequence(data, sizes))[0].data)(data, batch_sizes)


def test_lengths_out_of_range_in_any_member():
    op = operands("gru", SHAPE)
    lengths = torch.tensor([[1, 4], [0, 5], [2, 2]])
    for backend in (*FUSED, "reference"):
        with pytest.raises(RuntimeError, match="lengths must be between 0 and T = 4, got 5"):
            vmap(lambda lengths, name=backend: replace(op, lengths=lengths).run(name)[0])(lengths)


@BACKENDS
def test_a_mask_with_a_gradient(backend):
    op = operands("gru", SHAPE)
    masks = torch.zeros(N, 4, 2, 5, requires_grad=True)
    with pytest.raises(ValueError, match="keep_h is a mask, which has no gradient, but requires one"):
        vmap(lambda keep: replace(op, keep_h=keep).run(backend)[0])(masks)


def test_a_mask_with_a_gradient_compiled(backend):
    op = operands("gru", SHAPE, dtype=torch.float32)
    masks = torch.zeros(N, 4, 2, 5, requires_grad=True)
    run = torch.compile(vmap(lambda keep: replace(op, keep_h=keep).run(backend)[0]), backend="aot_eager")
    with pytest.raises(Exception, match="are masks, which have no gradient, but one requires one"):
        run(masks)


def test_autocast(backend):
    """Autocast works within vmap as outside of it."""
    module = fused_rnn.LSTM(I, H, backend=backend)
    x = torch.randn(N, 4, 2, I, requires_grad=True)
    outcomes = []
    for run in (vmap(lambda x: module(x)[0]), lambda x: torch.stack([module(member)[0] for member in x])):
        with torch.autocast("cpu"):
            output = run(x)
        assert output.dtype == torch.bfloat16
        outcomes.append([output, *torch.autograd.grad(output.float().square().sum(), [x, module.weight_hh_l0])])
    assert relative_error(*outcomes) < 1e-2


# torch.compile ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lengths", "all-options"])
@pytest.mark.parametrize("names", [BATCHED["sequences"], BATCHED["weights"]], ids=["sequences", "weights"])
def test_compiled_vmap(backend, kind, names):
    op = KINDS[kind](operands("lstm", SHAPE))
    tensors = stacked(op, names)
    run = vmap(call(op, backend), (dims_of(tensors, names),))
    results, exact = torch.compile(run, backend="aot_eager", fullgraph=True)(tensors), run(tensors)
    d_results = random_like(exact)
    leaves = [tensors[name] for name in op.tensors]
    gradients, expected = (torch.autograd.grad(outcome, leaves, d_results) for outcome in (results, exact))
    assert relative_error([*results, *gradients], [*exact, *expected]) < 1e-11


def test_compiled_transforms(backend):
    """grad, vmap over it, and second derivatives by jacrev are the same compiled as not."""
    op = operands("gru", SHAPE)
    tensors = {n: t.detach() for n, t in stacked(op, ["input"]).items()}

    def value(x):
        return loss(op, backend)({**tensors, "input": x})

    for transform in (lambda x: grad(value)(x[0]), vmap(grad(value)), lambda x: jacrev(jacrev(value))(x[0])):
        x = tensors["input"]
        compiled = torch.compile(transform, backend="aot_eager", fullgraph=True)
        assert relative_error([compiled(x)], [transform(x)]) < 1e-11


def test_the_reference_does_not_compile_its_clipping():
    """Within a transform torch would compile the rest and drop the clipping, so this is an error."""
    op = replace(operands("gru", SHAPE), gradient_clip=0.1)
    tensors = stacked(op, ["input"])
    run = vmap(call(op, "reference"), (dims_of(tensors, ["input"]),))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="NotImplementedError"):
        torch.compile(run, backend="aot_eager", fullgraph=True)(tensors)
