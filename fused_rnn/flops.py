"""The floating-point operations of our operators, for torch.utils.flop_counter, which cannot look inside them.

The formulas follow torch's own: two operations for each element of a matrix and each row that it multiplies, none for
anything else. Steps past the end of a sequence count, as they do in torch's padded sequences.
"""

import importlib.abc
import importlib.util
import sys
from math import prod
from types import ModuleType

import torch

from .operands import BackwardCall, ForwardCall, Operands
from .triton_backend import NAMESPACE

_COUNTER = "torch.utils.flop_counter"


def forward(*arguments, out_shape=None) -> int:
    """Count the operations of ``fused_rnn::forward``; like all formulas here, it gets shapes in place of tensors."""
    return _forward(ForwardCall.of(arguments).operands)


def backward(*arguments, out_shape=None) -> int:
    """Count the operations of ``fused_rnn::backward``: each matrix has its own gradient, and that of its operand."""
    call = BackwardCall.of(arguments)
    q, wanted = call.operands, call.wanted
    flops = (2 if wanted.weight_gradients else 1) * _forward(q)
    if not wanted.input_gradient:
        of_input = (q.weight_mih,) if q.spec.modulates == "input" else (q.weight_ih, q.weight_mih)
        flops -= _products(q.input, of_input)
    return flops


def backward_from_states(*arguments, out_shape=None) -> int:
    """Count the operations of ``fused_rnn::backward_from_states``, which repeats the forward pass."""
    return backward(*arguments) + _forward(BackwardCall.of(arguments).operands)


def _forward(operands: Operands) -> int:
    return _products(operands.input, operands.weights)


def _products(input, shapes) -> int:
    """Count the products of all matrices among these shapes with the rows of the input (T, B, I)."""
    matrices = [shape for shape in shapes if isinstance(shape, torch.Size) and len(shape) == 2]
    return 2 * input[0] * input[1] * sum(map(prod, matrices))


def _register(counter: ModuleType) -> None:
    for namespace in ("fused_rnn", NAMESPACE):
        operators = getattr(torch.ops, namespace)
        for formula in (forward, backward, backward_from_states):
            if hasattr(operators, formula.__name__):  # they are missing without the compiled library
                counter.register_flop_formula(getattr(operators, formula.__name__))(formula)


class _WhenImported(importlib.abc.MetaPathFinder):
    """A hook that registers the formulas when torch's counter is imported; importing it here would import Triton."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            _register(module)

        spec.loader.exec_module = load_and_register
        return spec


def register() -> None:
    """Give torch's counter the formulas, now or when it is imported."""
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _WhenImported())
