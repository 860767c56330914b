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
    projected = _project(q.input, q.weight_mih if q.spec.modulates == "input" else q.weight_ih)
    return kernels.forward(*_loop(ForwardLoop, q, (projected, _modulated(q), _weight_ih(q), save)))


def backward(*arguments, kernels: Kernels) -> tuple[Tensor, ...]:
    """Run the operator ``backward`` with these kernels."""
    d_results, kept, q, wanted = BackwardCall.of(arguments)
    modulated = _modulated(q)
    loop = _loop(BackwardLoop, q, (*d_results, *kept, modulated, _weight_ih(q)))
    of_loop = LoopGradients(*kernels.backward(*loop))
    products = _Products(q, kept, modulated, of_loop)
    d_input = products.input_gradient() if wanted.input_gradient else _empty(q.input)
    names = [name for name, weight in zip(WEIGHTS, q.weights) if wanted.weight_gradients and weight is not None]
    found = products.weight_gradients(names)
    d_weights = (found[name] if name in names else _empty(q.input) for name in WEIGHTS)
    d_reset = of_loop.d_h_reset, of_loop.d_c_reset
    if q.resets is not None:  # these are sums in float32; otherwise they are empty
        d_reset = tuple(d.to(q.input.dtype) for d in d_reset)
    return Gradients(d_input, of_loop.d_h_0, of_loop.d_c_0, *d_weights, *d_reset)


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


def _weight_ih(q: Operands) -> Tensor | None:
    """Return ``weight_ih`` if x is modulated; otherwise the loop needs only W x."""
    return q.weight_ih if q.spec.modulates == "input" else None


def _empty(like: Tensor) -> Tensor:
    """Make the placeholder of a missing result; each has memory of its own."""
    return like.new_empty(0)


def _project(input: Tensor, weight: Tensor) -> Tensor:
    """Compute W x of all steps, (T, B, rows of W)."""
    return torch.mm(_rows(input), weight.t()).view(*input.shape[:2], -1)


def _modulated(q: Operands) -> Tensor | None:
    """Return what a multiplicative cell scales by m, (T, B, values of m): x, or W_m x, whose x̂ replaces h₋."""
    if q.spec.modulates == "hidden":
        return _project(q.input, q.weight_mih)
    return q.input if q.spec.multiplicative else None


def _rows(steps: Tensor) -> Tensor:
    """Reshape (T, B, columns) to (T·B, columns), without a copy except for inputs with strides of their own."""
    return steps.flatten(0, 1)


class _Products:
    """The products after the loop, from d (T, B, columns), the gradients of the pre-activations.

    d has H columns for each gate; then, in the reset-after GRU, H for the part of n that r scales, which replaces n in
    products with U; then, in multiplicative cells, δm. d and the outputs are zero past the end of a sequence. Matrix
    products read column slices of d without a copy.
    """

    def __init__(self, q: Operands, kept: Kept, modulated: Tensor | None, found: LoopGradients) -> None:
        cell, H = q.spec, q.h_0.shape[1]
        self.q, self.cell, self.H, self.kept, self.modulated = q, cell, H, kept, modulated
        self.d = _rows(found.d)
        self.d_modulated = found.d_input
        self.d_gates = self._columns(0, cell.gates)
        # for U: n has a product of its own, with the last H columns, and r and z have the columns before them
        self.n_apart = cell.reset_before or cell.gradients > cell.gates

    def _columns(self, begin: int, end: int) -> Tensor:
        """Return columns of d (T·B, columns), numbered in units of a gate."""
        whole = (begin, end * self.H) == (0, self.d.shape[1])
        return self.d if whole else self.d[:, begin * self.H : end * self.H]

    @property
    def d_m(self) -> Tensor:
        return self.d[:, self.cell.gradients * self.H :]

    def input_gradient(self) -> Tensor:
        if self.cell.modulates == "input":
            d_input = self.d_modulated  # the part that does not pass through W_m
            _rows(d_input).addmm_(self.d_m, self.q.weight_mih)
            return d_input
        d_input = torch.mm(self.d_gates, self.q.weight_ih).view(self.q.input.shape)
        if self.cell.modulates == "hidden":
            _rows(d_input).addmm_(_rows(self.d_modulated), self.q.weight_mih)
        return d_input

    def weight_gradients(self, wanted: list[str]) -> dict[str, Tensor]:
        """Return at least the gradients that are wanted, by name."""
        if not wanted:
            return {}
        x, d_gates = self._active(self.q.input), self.d_gates
        result = {}
        if self.cell.multiplicative:
            result["weight_mhh"] = self._with_states(self.d_m)
            m = _rows(self.kept.saved)[:, self.cell.saved * self.H :]
        if self.cell.modulates == "hidden":
            result["weight_mih"] = torch.mm(_rows(self.d_modulated).t(), x)
            result["weight_hh"] = torch.mm(d_gates.t(), m * self._active(self.modulated))
        else:
            result["weight_hh"] = self._recurrent()
        if self.cell.modulates == "input":
            result["weight_mih"] = torch.mm(self.d_m.t(), x)
            x = m * x
        result["weight_ih"] = torch.mm(d_gates.t(), x)
        return result | self._bias_gradients([name for name in wanted if name.startswith("bias")])

    def _bias_gradients(self, wanted: list[str]) -> dict[str, Tensor]:
        """Return sums over all rows, each in memory of its own."""
        if not wanted:
            return {}
        H, sums = self.H, self.d.sum(0)
        of_gates, last = self.cell.gates * H, (self.cell.gradients - 1) * H
        # the first result may take the sums themselves if it uses all of them
        result = {"bias_ih": sums if len(sums) == of_gates else sums[:of_gates].clone()}
        if "bias_hh" in wanted:
            apart = (sums[: 2 * H], sums[last : last + H])
            result["bias_hh"] = torch.cat(apart) if self.n_apart else sums[:of_gates].clone()
        if "bias_m" in wanted:
            result["bias_m"] = sums[self.cell.gradients * H :].clone()
        return result

    def _recurrent(self) -> Tensor:
        """Return the gradient of U; in the reset-before GRU U_n multiplies r⊙h₋."""
        if not self.n_apart:
            return self._with_states(self.d_gates)
        r = self.kept.saved[..., : self.H] if self.cell.reset_before else None
        d_n = self._columns(self.cell.gradients - 1, self.cell.gradients)
        return torch.cat([self._with_states(self._columns(0, 2)), self._with_states(d_n, r)])

    def _with_states(self, d: Tensor, factor: Tensor | None = None) -> Tensor:
        """Return Σ dᵀ h₋ over all steps, with h₋ scaled elementwise by a factor (T, B, H); d is (T·B, columns)."""
        steps, batch = self.kept.output.shape[:2]
        begin = 0 if self.q.reverse else batch  # of the rows of steps that have a predecessor
        count, outputs = (steps - 1) * batch, _rows(self.kept.output)
        first, rest = self.q.h_0, outputs.narrow(0, batch - begin, count)
        if self.q.resets is not None:
            begins, new = _rows(self.q.resets.unsqueeze(2)), self.q.h_reset
            first = episodes.begun(first, self._first(begins).squeeze(1), new)
            steps_begin = begins.narrow(0, begin, count).view(steps - 1, batch)
            rest = _rows(episodes.begun(rest.view(steps - 1, batch, -1), steps_begin, new))
        if factor is not None:
            factor = _rows(factor)
            first, rest = self._first(factor) * first, factor.narrow(0, begin, count) * rest
        gradient = torch.mm(self._first(d).t(), first)
        return gradient.addmm_(d.narrow(0, begin, count).t(), rest) if count else gradient

    def _first(self, rows: Tensor) -> Tensor:
        """Select from (T·B, columns) the rows (B, columns) of every sequence's first step, which begins with h_0.

        The row of a sequence without steps is arbitrary, because its d is zero. In a reverse run the step after the
        last one of a sequence has an output of zero, and contributes nothing.
        """
        steps, batch = self.kept.output.shape[:2]
        if not self.q.reverse or self.q.lengths is None:
            return rows.narrow(0, (steps - 1) * batch if self.q.reverse else 0, batch)
        first = (self.q.lengths - 1).clamp(0, steps - 1)
        return rows[first * batch + torch.arange(batch, device=first.device)]

    def _active(self, steps: Tensor) -> Tensor:
        """Return the rows of (T, B, columns) with zeros past the ends, where an input may hold anything."""
        if self.q.lengths is None:
            return _rows(steps)
        times = torch.arange(len(steps), device=steps.device).unsqueeze(1)
        return _rows(steps.masked_fill((times >= self.q.lengths).unsqueeze(2), 0))
