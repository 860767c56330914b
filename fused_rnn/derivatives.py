"""The parts of the operators other than their kernels: shape functions, derivatives, and the rules of ``torch.func``.

``complete`` gives them to the operators of a namespace; they are the same for all backends. An operator's derivative
is at the dispatch key ``Autograd``, as with ``torch.library.register_autograd``, but in a form that also works within
``torch.func.grad`` and the like. The rules of ``torch.func.vmap`` are in ``batching``.

Double backward recomputes through ``fused_rnn.reference``, so it is right for every cell, but slower.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function

from . import autocast, batching
from .cells import WEIGHTS
from .operands import DIFFERENTIABLE, SAVES, BackwardCall, ForwardCall, Kept, Operands, ResultGradients, Results, Wanted
from .recompute import backward_from_states

_LIBRARIES: list[torch.library.Library] = []  # registrations last as long as these objects


def complete(namespace: str) -> None:
    """Give the operators of a namespace everything that does not depend on the backend."""
    operators = getattr(torch.ops, namespace)
    forward, from_states = f"{namespace}::forward", f"{namespace}::backward_from_states"
    torch.library.impl(from_states, "default", functools.partial(backward_from_states, operators))
    torch.library.register_fake(forward, _forward_fake)
    _differentiate(operators.forward.default, _forward_setup, functools.partial(_forward_backward, operators))
    for operator in (operators.backward.default, operators.backward_from_states.default):
        torch.library.register_fake(operator, _backward_fake)
        _differentiate(operator, _backward_setup, _double_backward)
    for operator in (operators.forward.default, operators.backward.default, operators.backward_from_states.default):
        batching.register(operator)


def are_differentiated(tensors: Sequence[Tensor | None]) -> bool:
    """Whether results of these tensors may be differentiated with respect to any of them."""
    if not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return True  # a compiler cannot look beneath the wrappers
    return requires_grad(tensors)


def requires_grad(tensors: Sequence[Tensor | None]) -> bool:
    """Whether any tensor requires a gradient, even beneath the wrappers of ``torch.func``'s transforms."""
    if any(t is not None and t.requires_grad for t in tensors):
        return True
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return False
    return any(t is not None and any(level.requires_grad for level in levels(t)) for t in tensors)


def levels(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor and the tensors that it wraps in ``torch.func``'s transforms, down to the one with the values."""
    yield tensor
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
        yield tensor


def _differentiate(operator: torch._ops.OpOverload, setup_context: Callable, backward: Callable) -> None:
    """Make ``backward`` the derivative of an operator, within transforms too, which ``register_autograd`` refuses.

    ``backward`` returns gradients by the names of arguments; arguments that it does not name have zero gradients.
    For nested transforms the dispatcher calls the kernel once for each level that differentiates, with the tensors of
    that level, so an ``autograd.Function`` here handles a single level.
    """

    def forward(ctx, *inputs):
        *arguments, keyset = inputs
        # autograd has turned itself off in here, but outer levels still have to record
        with torch.enable_grad(), torch._C._AutoDispatchBelowAutograd():
            output = operator.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)
        setup_context(ctx, arguments, output)
        return output

    names = [*(argument.name for argument in operator._schema.arguments), "keyset"]
    defaults = [argument.default_value for argument in operator._schema.arguments]

    def of_inputs(ctx, *d_outputs):
        return tuple(map(backward(ctx, *d_outputs).get, names))

    namespace, name = operator._schema.name.split("::")
    methods = {"forward": staticmethod(forward), "backward": staticmethod(of_inputs)}
    function = type(f"{namespace}_{name}", (torch.autograd.Function,), methods)
    apply = super(torch.autograd.Function, function).apply  # without what Function adds, for all levels at once
    apply_within_transform = enable_single_level_autograd_function()(apply)

    def kernel(keyset, *arguments):
        arguments += (*defaults[len(arguments) :],)  # the dispatcher omits them
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)):
            with torch._C._AutoDispatchBelowAutograd():
                return operator.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)
        if torch._C._are_functorch_transforms_active():
            return apply_within_transform(*arguments, keyset)
        return apply(*arguments, keyset)

    library = torch.library.Library(namespace, "FRAGMENT")
    library.impl(name, kernel, "Autograd", with_keyset=True)
    _LIBRARIES.append(library)


def _forward_fake(*arguments):
    q, save = ForwardCall.of(arguments)
    if save not in SAVES:
        raise RuntimeError(f"fused_rnn: save must be 'nothing', 'states' or 'everything', got {save!r}")
    return Results.fake(q.input, q.spec, save, q.sizes)


def _forward_setup(ctx, inputs, output):
    q, ctx.save = ForwardCall.of(inputs)
    if requires_grad(q.masks):  # ops.run cannot see this in a compiled transform
        raise ValueError("keep_h and keep_c are masks, which have no gradient, but one requires one: detach it")
    results = Results(*output)
    ctx.how = q.how
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(results.saved)
    ctx.save_for_backward(*Kept(results.output, results.cells, results.saved), *q.tensors)


def _forward_backward(operators, ctx, *d_results):
    if ctx.save == "nothing":
        raise RuntimeError("fused_rnn::forward ran with save='nothing', so there is nothing to differentiate")
    *d_results, _ = d_results  # without the gradient of saved
    d_results = ResultGradients(*d_results)
    saved = ctx.saved_tensors
    kept, q = Kept(*saved[: len(Kept._fields)]), Operands.joined(saved[len(Kept._fields) :], ctx.how)
    if not q.spec.has_cell_state:
        d_results = d_results._replace(d_c_n=None, d_cells=None)  # c_n and cells are empty placeholders
    if all(d is None for d in d_results):
        return {}
    needs = ForwardCall.of(ctx.needs_input_grad[:-1]).operands  # without the keyset
    call = BackwardCall(d_results, kept, q, Wanted(needs.input, any(needs.weights)))
    backward = operators.backward if ctx.save == "everything" else operators.backward_from_states
    with autocast.off(q.input.device.type), past_autograd():
        grads = backward(*call.arguments)
    named = zip(DIFFERENTIABLE, needs.differentiable, grads)
    return {name: grad for name, need, grad in named if need}


def past_autograd() -> contextlib.AbstractContextManager:
    """Bypass autograd's Python part of an operator if nothing is recorded, because it only costs time then."""
    recording = torch.is_grad_enabled() or torch.compiler.is_compiling()
    if recording or torch._C._are_functorch_transforms_active():
        return contextlib.nullcontext()
    return torch._C._AutoDispatchBelowAutograd()


def _backward_fake(*arguments):
    call = BackwardCall.of(arguments)
    q, wanted = call.operands, call.wanted
    there = {"input": wanted.input_gradient, **dict.fromkeys(WEIGHTS, wanted.weight_gradients)}
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format)
        if there.get(name, True) and t is not None
        else q.input.new_empty(0)
        for name, t in zip(DIFFERENTIABLE, q.differentiable)
    )


def _backward_setup(ctx, inputs, output):
    call = BackwardCall.of(inputs)
    ctx.how = call.operands.how
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*call.d_results, *call.operands.tensors)


def _double_backward(ctx, *d_grads):
    """Differentiate the first-order gradients, recomputed by the reference, once more.

    ``output``, ``cells`` and ``saved`` are functions of the other inputs, so these receive the whole derivative.
    """
    saved, given = ctx.saved_tensors, len(ResultGradients._fields)
    d_results, q = saved[:given], Operands.joined(saved[given:], ctx.how)
    if q.gradient_clip:
        raise RuntimeError("clipped gradients have no derivatives: double backward goes with gradient_clip=None")

    def results(*differentiable):
        replaced = q._replace(**dict(zip(DIFFERENTIABLE, differentiable)))
        if not q.spec.has_cell_state:
            return *replaced.by_reference(return_cells=False), None, None
        output, (h_n, c_n), cells = replaced.by_reference(return_cells=True)
        return output, h_n, c_n, cells

    def gradients(*tensors):
        return _pull_back(results, tensors[given:], tensors[:given])

    with autocast.off(q.input.device.type):
        second = _pull_back(gradients, (*d_results, *q.differentiable), d_grads)
    return dict(zip((*ResultGradients._fields, *DIFFERENTIABLE), second))


def _pull_back(function: Callable, inputs: Sequence[Tensor | None], d_outputs: Sequence[Tensor | None]) -> list:
    """Return the gradients of a function's inputs, given those of its outputs; any of these may be None."""
    # the gradient of a placeholder, which is empty, carries no information
    given = [index for index, d in enumerate(d_outputs) if d is not None and d.shape != (0,)]
    if not given:
        return [None] * len(inputs)

    def of_present(*present):
        rest = iter(present)
        outputs = function(*(None if t is None else next(rest) for t in inputs))
        return tuple(outputs[index] for index in given)

    pull_back = _pull_back_within_transform if torch._C._are_functorch_transforms_active() else _pull_back_by_autograd
    grads = iter(pull_back(of_present, [t for t in inputs if t is not None], tuple(d_outputs[i] for i in given)))
    return [None if t is None else next(grads) for t in inputs]


def _pull_back_within_transform(function: Callable, inputs: list[Tensor], d_outputs: tuple[Tensor, ...]) -> tuple:
    return torch.func.vjp(function, *inputs)[1](d_outputs)


def _pull_back_by_autograd(function: Callable, inputs: list[Tensor], d_outputs: tuple[Tensor, ...]) -> tuple:
    """Do the same under hooks on saved tensors, with which ``torch.func.vjp`` refuses to run."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # views make the derivative stop here instead of running on into the history of a tensor
        inputs = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in inputs]
        outputs = function(*inputs)
    # None is the gradient of an operand that the call did not read
    read = [(output, d) for output, d in zip(outputs, d_outputs) if output is not None]
    if not read:
        return (None,) * len(inputs)
    outputs, d_outputs = zip(*read)
    return torch.autograd.grad(outputs, inputs, d_outputs, create_graph=create_graph, allow_unused=True)
