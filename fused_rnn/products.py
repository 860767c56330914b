"""The products around a time loop on a GPU: all of the operators but the loop, for any backend with kernels for that.

Everything that does not depend on the order of the steps is done here, for all T·B rows at once, by the library behind
torch's matrix products: before the loop the projection of x, and after it every weight gradient and δx, from the
gradients of the pre-activations that the kernels return. The projection is W x in plain cells, W_m x if x is modulated,
and both if h₋ is. These products are in the dtype of the tensors, and in float32 obey torch's switch of TF32. Nothing
here waits for the GPU.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from . import episodes
from .cells import WEIGHTS
from .operands import (
    DIFFERENTIABLE,
    BackwardCall,
    BackwardLoop,
    ForwardCall,
    ForwardLoop,
    Gradients,
    Kept,
    LoopGradients,
    Operands,
    ResultGradients,
)


@dataclass(frozen=True)
class Kernels:
    """The kernels of the time loop; they take the fields of ``ForwardLoop`` and of ``BackwardLoop`` in order."""

    forward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]  # Results
    backward: Callable[..., tuple[Tensor, ...]]  # LoopGradients


def forward(*arguments, kernels: Kernels) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the operator ``forward`` with these kernels."""
    q, save = ForwardCall.of(arguments)
    modulated, weight_ih = _modulated(q)
    projected = _project(q.input, q.weight_ih if weight_ih is None else q.weight_mih)
    return kernels.forward(*_loop(ForwardLoop, q, (projected, modulated, weight_ih, save)))


def backward(*arguments, kernels: Kernels) -> tuple[Tensor, ...]:
    """Run the operator ``backward`` with these kernels; placeholders of missing results have memory of their own."""
    found = gradients(*arguments, kernels=kernels)
    d_h_0 = found[DIFFERENTIABLE.index("h_0")]
    return Gradients(*(d_h_0.new_empty(0) if gradient is None else gradient for gradient in found))


def gradients(*arguments, kernels: Kernels) -> tuple[Tensor | None, ...]:
    """Return the results of ``backward``, but None for gradients of inputs and weights that it lacks."""
    d_results, kept, q, wanted = BackwardCall.of(arguments)
    modulated, weight_ih = _modulated(q)
    of_loop = LoopGradients(*kernels.backward(*_loop(BackwardLoop, q, (*d_results, *kept, modulated, weight_ih))))
    products = _Products(q, kept, modulated, of_loop)
    d_input = products.input_gradient() if wanted.input_gradient else None
    d_weights = products.weight_gradients() if wanted.weight_gradients else {}
    d_reset = of_loop.d_h_reset, of_loop.d_c_reset
    if q.resets is not None:  # these are sums in float32; otherwise they are empty
        d_reset = tuple(d.to(q.input.dtype) for d in d_reset)
    return d_input, of_loop.d_h_0, of_loop.d_c_0, *map(d_weights.get, WEIGHTS), *d_reset


# Operands of a loop that are not the operators' own, or have another name there.
_OTHERS = {
    ForwardLoop: ("projected", "input", "weight_ih", "save"),
    BackwardLoop: (*ResultGradients._fields, *Kept._fields, "input", "weight_ih"),
}


@functools.cache
def _places(kind: type) -> itemgetter:
    """Make a getter of the operands of a loop, in its order, from ``_OTHERS`` followed by the operators' operands."""
    return itemgetter(*map((*_OTHERS[kind], *Operands._fields).index, kind._fields))


def _loop(kind: type[ForwardLoop] | type[BackwardLoop], q: Operands, others: tuple) -> tuple:
    """Return the fields of a loop in order, selected by position because every call makes them."""
    return _places(kind)((*others, *q))


def _project(input: Tensor, weight: Tensor) -> Tensor:
    """Compute W x of all steps, (T, B, rows of W)."""
    return torch.mm(_rows(input), weight.t()).view(*input.shape[:2], -1)


def _modulated(q: Operands) -> tuple[Tensor | None, Tensor | None]:
    """Return what a multiplicative cell scales by m, (T, B, values of m), and the weight that then multiplies it.

    That is x with its weight; or W_m x, whose x̂ replaces h₋, without one, as the loop knows it. Other cells, whose loop
    needs only W x, have neither.
    """
    modulates = q.spec.modulates
    if modulates is None:
        return None, None
    return (q.input, q.weight_ih) if modulates == "input" else (_project(q.input, q.weight_mih), None)


def _rows(steps: Tensor) -> Tensor:
    """Reshape (T, B, columns) to (T·B, columns), without a copy except for inputs with strides of their own."""
    return steps.flatten(0, 1)


class _Products:
    """The products after the loop, from d (T, B, columns), the gradients of the pre-activations.

    d has H columns for each gate; then, in the reset-after GRU, H for the part of n that r scales, which replaces n in
    products with U; then, in multiplicative cells, δm. d and the outputs are zero past the end of a sequence. Here d is
    transposed, because it is so in all products but one; these read slices of it without a copy.
    """

    def __init__(self, q: Operands, kept: Kept, modulated: Tensor | None, found: LoopGradients) -> None:
        self.q, self.cell, self.kept, self.modulated = q, q.spec, kept, modulated
        self.steps, self.batch, self.H = kept.output.shape
        self.d = _rows(found.d).t()
        self.d_modulated = found.d_input
        self.d_gates = self._of_gates(0, self.cell.gates)

    def _of_gates(self, begin: int, end: int) -> Tensor:
        """Return d (units, T·B) of these gates."""
        whole = (begin, end * self.H) == (0, self.d.shape[0])
        return self.d if whole else self.d.narrow(0, begin * self.H, (end - begin) * self.H)

    @property
    def d_m(self) -> Tensor:
        return self.d[self.cell.gradients * self.H :]

    def input_gradient(self) -> Tensor:
        if self.cell.modulates == "input":
            d_input = self.d_modulated  # the part that does not pass through W_m
            _rows(d_input).addmm_(self.d_m.t(), self.q.weight_mih)
            return d_input
        d_input = torch.mm(self.d_gates.t(), self.q.weight_ih).view(self.q.input.shape)
        if self.cell.modulates == "hidden":
            _rows(d_input).addmm_(_rows(self.d_modulated), self.q.weight_mih)
        return d_input

    def weight_gradients(self) -> dict[str, Tensor]:
        """Return the gradients of all weights that the call has, by name."""
        x, before, apart = self._active(self.q.input), self._before(), self._apart()
        result = self._bias_gradients(apart)
        if self.cell.multiplicative:
            m = _rows(self.kept.saved)[:, self.cell.saved * self.H :]
            result["weight_mhh"] = self._with_states(self.d_m, before)
        if self.cell.modulates == "hidden":
            result["weight_mih"] = torch.mm(_rows(self.d_modulated).t(), x)
            result["weight_hh"] = torch.mm(self.d_gates, m * self._active(self.modulated))
        else:
            result["weight_hh"] = self._recurrent(before, apart)
        if self.cell.modulates == "input":
            result["weight_mih"] = torch.mm(self.d_m, x)
            x = m * x
        result["weight_ih"] = torch.mm(self.d_gates, x)
        return result

    def _apart(self) -> tuple[Tensor, Tensor] | None:
        """Return d of r and z, and of n, if n has a product of its own with U."""
        cell = self.cell
        if not (cell.reset_before or cell.gradients > cell.gates):
            return None
        return self._of_gates(0, 2), self._of_gates(cell.gradients - 1, cell.gradients)

    def _bias_gradients(self, apart: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
        """Return sums over all steps and sequences, each in memory of its own."""
        q, result = self.q, {}
        if q.bias_ih is not None or q.bias_hh is not None:
            sums = self.d_gates.sum(1)
        if q.bias_ih is not None:
            result["bias_ih"] = sums
        if q.bias_hh is not None:
            result["bias_hh"] = torch.cat([sums.narrow(0, 0, 2 * self.H), apart[1].sum(1)]) if apart else sums.clone()
        if q.bias_m is not None:
            result["bias_m"] = self.d_m.sum(1)
        return result

    def _recurrent(self, before: tuple[Tensor, Tensor], apart: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the gradient of U; in the reset-before GRU U_n multiplies r⊙h₋."""
        if apart is None:
            return self._with_states(self.d_gates, before)
        d_rz, d_n = apart
        scaled = self._before(self.kept.saved[..., : self.H]) if self.cell.reset_before else before
        return torch.cat([self._with_states(d_rz, before), self._with_states(d_n, scaled)])

    def _with_states(self, d: Tensor, before: tuple[Tensor, Tensor]) -> Tensor:
        """Return Σ d h₋ᵀ over all steps, with d (units, T·B)."""
        first, rest = before
        gradient = torch.mm(self._first(d, 1), first)
        return gradient.addmm_(self._rest(d, 1), rest) if self.steps > 1 else gradient

    def _before(self, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return h₋ of the first step of every sequence (B, H), and of the other steps ((T-1)·B, H).

        Both are scaled elementwise by a factor (T, B, H).
        """
        first = self.q.h_0
        rest = _rows(self.kept.output).narrow(0, self.batch if self.q.reverse else 0, (self.steps - 1) * self.batch)
        if self.q.resets is not None:
            begins, new = _rows(self.q.resets.unsqueeze(2)), self.q.h_reset
            first = episodes.begun(first, self._first(begins).squeeze(1), new)
            steps_begin = self._rest(begins).view(self.steps - 1, self.batch)
            rest = _rows(episodes.begun(rest.view(self.steps - 1, self.batch, self.H), steps_begin, new))
        if factor is not None:
            factor = _rows(factor)
            first, rest = self._first(factor) * first, self._rest(factor) * rest
        return first, rest

    def _first(self, rows: Tensor, dim: int = 0) -> Tensor:
        """Select from T·B rows those of every sequence's first step, which begins with h_0.

        The row of a sequence without steps is arbitrary, because its d is zero. In a reverse run the step after the
        last one of a sequence has an output of zero, and contributes nothing.
        """
        if not self.q.reverse or self.q.lengths is None:
            return rows.narrow(dim, (self.steps - 1) * self.batch if self.q.reverse else 0, self.batch)
        first = (self.q.lengths - 1).clamp(0, self.steps - 1)
        return rows.index_select(dim, first * self.batch + torch.arange(self.batch, device=first.device))

    def _rest(self, rows: Tensor, dim: int = 0) -> Tensor:
        """Select from T·B rows those of steps that have a predecessor."""
        return rows.narrow(dim, 0 if self.q.reverse else self.batch, (self.steps - 1) * self.batch)

    def _active(self, steps: Tensor) -> Tensor:
        """Return the rows of (T, B, columns) with zeros past the ends, where an input may hold anything."""
        if self.q.lengths is None:
            return _rows(steps)
        times = torch.arange(len(steps), device=steps.device).unsqueeze(1)
        return _rows(steps.masked_fill((times >= self.q.lengths).unsqueeze(2), 0))
