"""The quick path: calls without special options, straight to the operators.

A single step computes for a few microseconds, and the full path's checks of everything that a call may ask for take ten
times as long. So a few cheap checks recognise plain calls, of a cell or of a module of layers in one direction. They go
to the operator unchecked, because it checks its operands itself, and to autograd by a Function of their own, which
bypasses autograd's part of the operator. If the operator refuses, the full path explains what is wrong. The operator
is ``fused_rnn::forward``, or for a single step on the CPU ``fused_rnn::step``, which has fewer arguments.

Anything else that affects operators sends a call to the full path: a compiler, a trace, a transform of ``torch.func``,
a derivative in forward mode, autocast, modes that watch operators, hooks on saved tensors. So do weights that are not
plain parameters, because something else makes them in each call.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._C import _is_any_autocast_enabled, _len_torch_function_stack
from torch._C._functorch import is_functorch_wrapped_tensor

from . import autocast, choice, cuda, derivatives, watchers
from .cell_based import CellBased
from .cells import CELLS, WEIGHTS

_Forward = TypeVar("_Forward", bound=Callable)
_PARAMETER = nn.Parameter
_PLAIN = (Tensor, _PARAMETER)  # other classes may change what an operator means
_WEIGHT_HH = WEIGHTS.index("weight_hh")
_STEP_WEIGHTS = 4  # weights of cells that are not multiplicative, which come first
_STATES_END = 3  # weights follow input, h and c
_NO_WEIGHTS = [None] * len(WEIGHTS)
_SAVING_OUTPUTS = ("rnn_tanh", "rnn_relu")
_NO_OPTIONS = (None, None, None)  # lengths, keep_h, keep_c
_NO_CELLS = (None, None)  # d_c_n, which cells may lack, and d_cells
_HOW = (False, 0.0)  # reverse, gradient_clip
# The operators of single steps as the dispatcher has them, without what ``torch.ops`` looks for at every call.
_STEP, _STEP_BACKWARD = (
    (torch.ops.fused_rnn.step.default._op, torch.ops.fused_rnn.step_backward.default._op)
    if choice.LIBRARY_LOADED
    else (None, None)
)
# Operators that are implemented in Python for these kinds of devices. They are called directly if nothing looks on,
# because the dispatcher takes as long with the arguments as the host does with the rest of a call.
IN_PYTHON = {"cuda": (cuda.forward, cuda.gradients)}


def tried_first(quick: Callable) -> Callable[[_Forward], _Forward]:
    """Decorate a module's ``forward`` to call ``quick`` first, and itself only if that returns None.

    An error of ``quick`` is replaced by that of ``forward``, whose message is better; if ``forward`` raises none, it
    stays.
    """

    def before(full: _Forward) -> _Forward:
        @functools.wraps(full)
        def forward(module, input, hx=None, *options, **named_options):
            if options or named_options or not _is_undisturbed():
                return full(module, input, hx, *options, **named_options)
            try:
                results = quick(module, input, hx)
            except Exception as error:
                refusal = error
            else:
                return full(module, input, hx) if results is None else results
            try:
                full(module, input, hx)
                raise refusal
            finally:
                del refusal  # its traceback holds this frame, and so all tensors of the call

        return forward

    return before


def step(module: CellBased, input: Tensor, hx: Tensor | tuple[Tensor, Tensor] | None) -> tuple | Tensor | None:
    """Return the final state of a batch (B, I), as ``RecurrentCell.forward`` does; None sends the call there."""
    cell, given = module.cell, _given(module, input, hx, 2)
    weights = _weights(module, _weight_names(cell, module.bias))
    if given is None or weights is None:
        return None
    results = _run(cell, (*given, *weights))
    return results[0] if len(results) == 1 else tuple(results)


def layer(module: CellBased, input: Tensor, hx: Tensor | tuple[Tensor, Tensor] | None) -> tuple | None:
    """Return outputs and the final state of (T, B, I), as ``Recurrent.forward`` does; None sends the call there."""
    cell, given = module.cell, _given(module, input, hx, 3)
    weights = [_weights(module, names) for names in _weight_names_of_layers(cell, module.bias, module.num_layers)]
    if given is None or None in weights:
        return None
    output, *final = _run(cell, (*given, *weights[0])) if len(weights) == 1 else _layers(module, *given, weights)
    return output, final[0] if len(final) == 1 else tuple(final)


def _layers(
    module: CellBased, input: Tensor, h: Tensor | None, c: Tensor | None, weights: list[list[Tensor | None]]
) -> Sequence[Tensor]:
    """Return the results of several layers, with states (layers, B, H)."""
    cell, finals = module.cell, []
    if h is None and not input.is_cpu:  # zeros of each layer would be filled by a launch each
        h = input.new_zeros((1, input.shape[1], module.hidden_size)).expand(len(weights), -1, -1)
        c = h if CELLS[cell].has_cell_state else None
    states = ([None] * len(weights) if part is None else part.split(1) for part in (h, c))
    # states must be as many as layers, or the full path says so
    for h, c, of_layer in zip(*states, weights, strict=True):
        if finals:
            (input,) = module._drop([input])
        input, *final = _run(cell, (input, h, c, *of_layer))
        finals.append(final)
    return input, *map(torch.cat, zip(*finals))


def _is_undisturbed() -> bool:
    """Whether nothing changes what operators do, or looks on."""
    return not (watchers.look_on() or _is_any_autocast_enabled() or _len_torch_function_stack())


def _given(module: CellBased, input: Tensor, hx: Tensor | tuple | None, rank: int) -> tuple | None:
    """Return input, h and c, the states None if missing; or None if the call is not for the quick path."""
    if type(input) not in _PLAIN:
        return None
    h, c = hx if type(hx) is tuple and len(hx) == 2 else (hx, None)
    for tensor in (input,) if hx is None else (input, h) if h is hx else (input, h, c):
        if type(tensor) not in _PLAIN or tensor.dim() != rank:
            return None
        if is_functorch_wrapped_tensor(tensor):  # from a transform that has ended
            return None
    # the operator refuses an empty batch, which has nothing to compute
    if not input.numel() or not _is_for_kernels(type(module), input.device, input.dtype, module.backend):
        return None
    return input, h, c


def _weights(module: CellBased, names: Sequence[str | None]) -> list[Tensor | None] | None:
    """Return parameters by name, None where the name is; or None if any is something else than a parameter."""
    parameters, weights = module._parameters, []
    for name in names:
        weight = parameters.get(name)
        if type(weight) is not _PARAMETER and name is not None:
            return None
        weights.append(weight)
    return weights


def _run(cell: str, tensors: tuple[Tensor | None, ...]) -> Sequence[Tensor]:
    """Return the results of ``_Call`` or ``_Step`` for input, h, c and weights."""
    input, weight_ih = tensors[0], tensors[_STATES_END]
    recording = torch.is_grad_enabled() and (weight_ih.requires_grad or torch._C._any_requires_grad(*tensors))
    if len(tensors) == _STATES_END + _STEP_WEIGHTS and input.is_cpu and (input.dim() == 2 or input.shape[0] == 1):
        # this refuses tensors on different devices
        return _apply_step(cell, *tensors) if recording else _STEP(*tensors, cell, False)
    for tensor in tensors:
        if tensor is not None and tensor.is_meta:  # it would send the whole call there
            raise RuntimeError("a tensor is on meta, but not the input")
    if recording:
        return _apply(cell, *tensors)
    with torch._C._AutoDispatchBelowAutograd():
        return _forward(cell, "nothing", *tensors)[0]


@functools.lru_cache(maxsize=256)  # parametrisation makes a class for each module
def _is_for_kernels(kind: type[CellBased], device: torch.device, dtype: torch.dtype, backend: str) -> bool:
    """Whether ``fused_rnn::forward`` runs calls of modules of this class; to find out takes as long as a step."""
    if not _is_our_own(kind) or device.type not in ("cpu", "cuda"):
        return False
    return choice.choose_backend(device, dtype, backend).backend in ("cpu", "cuda")


def _is_our_own(kind: type[CellBased]) -> bool:
    """Whether a class inherits all methods that the full path may call; methods that it adds do not matter."""
    place = next(n for n, base in enumerate(kind.__mro__) if base.__module__.startswith(f"{__package__}."))
    names = {name for derived in kind.__mro__[:place] for name in vars(derived) if not name.startswith("__")}
    return not any(hasattr(kind.__mro__[place], name) for name in names - {"forward", "extra_repr"})


@functools.cache
def _weight_names(cell: str, bias: bool, suffix: str = "") -> tuple[str | None, ...]:
    """Return the names of the weights of ``step``, or of all, in the order of operators; None for missing ones."""
    names = [name for name in CELLS[cell].weights if bias or not name.startswith("bias")]
    known = WEIGHTS if CELLS[cell].multiplicative else WEIGHTS[:_STEP_WEIGHTS]
    return tuple(name + suffix if name in names else None for name in known)


@functools.cache
def _weight_names_of_layers(cell: str, bias: bool, layers: int) -> list[tuple[str | None, ...]]:
    return [_weight_names(cell, bias, f"_l{number}") for number in range(layers)]


def _forward(
    cell: str, save: str, input: Tensor, h: Tensor | None, c: Tensor | None, *weights: Tensor | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """Return the results of ``_Call``, and what its backward pass needs: the operator's results, input and states."""
    if h is None:
        h = input.new_zeros((input.shape[-2], weights[_WEIGHT_HH].shape[1]))
        c = h if CELLS[cell].has_cell_state else None
    in_python = _in_python(input)
    forward = in_python[0] if in_python else torch.ops.fused_rnn.forward
    output, h_n, c_n, cells, saved = forward(*_operands(cell, input, h, c, weights), save)
    kept = output, cells, saved, input, h, c
    if input.dim() == 2:
        return (h_n,) if c is None else (h_n, c_n), kept
    # in place, because truncated back-propagation calls detach_(), which refuses views
    h_n.unsqueeze_(0)
    return (output, h_n) if c is None else (output, h_n, c_n.unsqueeze_(0)), kept


def _in_python(input: Tensor) -> tuple[Callable, Callable] | None:
    return IN_PYTHON.get("cpu" if input.is_cpu else "cuda")  # faster than to ask for the device's type


def _operands(cell: str, input: Tensor, h: Tensor, c: Tensor | None, weights: Sequence[Tensor | None]) -> tuple:
    """Return the operands of operators, with input and states shaped as these take them: (T, B, I) and (B, H)."""
    if input.dim() == 2:
        input = input.unsqueeze(0)
    elif h.dim() == 3:
        h, c = h.squeeze(0), None if c is None else c.squeeze(0)
    return input, h, c, *weights, *_NO_WEIGHTS[len(weights) :], *_NO_OPTIONS, cell, *_HOW


class _Call(torch.autograd.Function):
    """One call: cell, input (T, B, I), h_0, c_0 (1, B, H) or None, and weights to output and final state (1, B, H).

    For a single step, input (B, I) and states (B, H) to the final state (B, H) alone.
    """

    @staticmethod
    def forward(ctx, cell, input, h, c, *weights):
        with torch._C._AutoDispatchBelowAutograd():
            results, kept = _forward(cell, "everything", input, h, c, *weights)
        ctx.cell = cell
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, *weights)
        return results

    @staticmethod
    def backward(ctx, *d_results):
        needs = ctx.needs_input_grad
        if all(d is None for d in d_results):
            return (None,) * len(needs)
        output, cells, saved, *tensors = ctx.saved_tensors
        return None, *_gradients(ctx.cell, d_results, (output, cells, saved), tensors, needs[1:])


def _gradients(
    cell: str,
    d_results: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    tensors: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Return the needed gradients of input, states and weights, by an operator that has derivatives itself."""
    input, h, c, *weights = tensors
    of_input, of_h, of_c, *of_weights = needs
    stacked = input.dim() == 3
    d_output = None
    if stacked:
        d_output, *d_results = d_results
        d_results = [None if d is None else d.squeeze(0) for d in d_results]
    arguments = (
        *(d_output, *d_results, *_NO_CELLS[len(d_results) - 1 :], *kept),
        *(*_operands(cell, input, h, c, weights), of_input, any(of_weights)),
    )
    in_python = _in_python(input)
    if in_python and _is_unrecorded((d_output, *d_results)):
        with torch._C._AutoDispatchBelowAutograd():
            d_input, d_h, d_c, *d_weights = in_python[1](*arguments)
    else:
        with autocast.off(input.device.type), derivatives.past_autograd():
            d_input, d_h, d_c, *d_weights = torch.ops.fused_rnn.backward(*arguments)
    if stacked:
        d_h, d_c = d_h.unsqueeze(0) if of_h else None, d_c.unsqueeze(0) if of_c else None
    elif of_input:
        d_input = d_input.squeeze(0)
    return [grad if need else None for grad, need in zip((d_input, d_h, d_c, *d_weights), needs)]


class _Step(torch.autograd.Function):
    """A single step on the CPU, by the operators ``fused_rnn::step`` and ``fused_rnn::step_backward``.

    Both run with recording off, which is all that their registration with autograd checks.
    """

    @staticmethod
    def forward(ctx, cell, input, h, c, *weights):
        results = _STEP(input, h, c, *weights, cell, True)
        # the backward pass of an RNN reads only its output, if it has one
        saved = results[0] if input.dim() == 3 and cell in _SAVING_OUTPUTS else results.pop()
        cells = results.pop() if CELLS[cell].has_cell_state else None
        ctx.cell = cell
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(cells, saved, input, h, c, *weights)
        return tuple(results)

    @staticmethod
    def backward(ctx, *d_results):
        needs = ctx.needs_input_grad
        if all(d is None for d in d_results):
            return (None,) * len(needs)
        cells, saved, *tensors = ctx.saved_tensors
        if not _is_unrecorded(d_results):
            return None, *_gradients_with_derivatives(ctx.cell, d_results, cells, saved, tensors, needs[1:])
        if tensors[0].dim() == 2:
            d_results = (None, *d_results)
        d_output, d_h, d_c = d_results if len(d_results) == 3 else (*d_results, None)
        _, of_input, _, _, *of_weights = needs
        # gradients that nobody needs are not read
        return None, *_STEP_BACKWARD(d_output, d_h, d_c, cells, saved, *tensors, ctx.cell, of_input, any(of_weights))


def _is_unrecorded(d_results: Sequence[Tensor | None]) -> bool:
    """Whether a backward pass is of plain gradients that are not differentiated further, and nobody looks on.

    With ``is_grads_batched``, ``torch.autograd.grad`` passes gradients of several calls at once.
    """
    if torch.is_grad_enabled() or not _is_undisturbed():
        return False
    return not any(d is not None and torch._C._functorch.is_legacy_batchedtensor(d) for d in d_results)


def _gradients_with_derivatives(
    cell: str,
    d_results: Sequence[Tensor | None],
    cells: Tensor | None,
    saved: Tensor,
    tensors: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of a single step by the operator that autograd, transforms and compilers know."""
    input, h, c, *weights = tensors
    zeros = saved.new_zeros((input.shape[-2], weights[_WEIGHT_HH].shape[1]))
    if h is None:
        h, c = zeros, None if cells is None else zeros
    unread = zeros.unsqueeze(0)  # the output, which only later steps read
    kept = unread, saved.new_empty(0) if cells is None else cells, saved
    return _gradients(cell, d_results, kept, (input, h, c, *weights), needs)


# without what Function adds for tensors of ``torch.func``, which take the full path
_apply = super(torch.autograd.Function, _Call).apply
_apply_step = super(torch.autograd.Function, _Step).apply
