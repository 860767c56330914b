"""The products around a time loop on a GPU: all of the operators but the loop, for any backend whose kernels run that.

What does not depend on the order of the steps is done here, for all T·B rows at once, by the library behind torch's
matrix products: W x before the loop (W_m x where x is modulated, both where h₋ is), and after it every weight gradient
and δx, from the gradients of the pre-activations that the kernels leave behind. These products are in the dtype of the
tensors, and in float32 obey torch's own switch of TF32. Nothing here waits for the GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import episodes
from .cells import WEIGHTS
from .operands import BackwardCall, BackwardLoop, ForwardCall, ForwardLoop, Gradients, Kept, LoopGradients, Operands


@dataclass(frozen=True)
class Kernels:
    """The time loop in both directions: they take the fields of ``ForwardLoop`` and of ``BackwardLoop`` in order."""

    forward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]  # Results
    backward: Callable[..., tuple[Tensor, ...]]  # LoopGradients


def forward(*arguments, kernels: Kernels) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator ``forward``, by these kernels."""
    q, save = ForwardCall.of(arguments)
    loop = _loop(
        ForwardLoop,
        q,
        projected=_project(q.input, q.weight_mih if q.spec.modulates == "input" else q.weight_ih),
        input=_modulated(q),
        save=save,
    )
    return kernels.forward(*loop)


def backward(*arguments, kernels: Kernels) -> tuple[Tensor, ...]:
    """The operator ``backward``, by these kernels."""
    d_results, kept, q, wanted = BackwardCall.of(arguments)
    modulated = _modulated(q)
    loop = _loop(BackwardLoop, q, **d_results._asdict(), **kept._asdict(), input=modulated)
    of_loop = LoopGradients(*kernels.backward(*loop))
    products = _Products(q, kept, modulated, of_loop)
    d_input = products.input_gradient() if wanted.input_gradient else _empty(q.input)
    names = [name for name, weight in zip(WEIGHTS, q.weights) if wanted.weight_gradients and weight is not None]
    found = products.weight_gradients(names)
    d_weights = (found[name] if name in names else _empty(q.input) for name in WEIGHTS)
    d_reset = (d.to(q.input.dtype) for d in (of_loop.d_h_reset, of_loop.d_c_reset))
    return Gradients(d_input, of_loop.d_h_0, of_loop.d_c_0, *d_weights, *d_reset)


def _loop(kind: type[ForwardLoop] | type[BackwardLoop], q: Operands, **others) -> ForwardLoop | BackwardLoop:
    """What a loop is given: other than in the operators, or by the name that it has there."""
    others["weight_ih"] = q.weight_ih if q.spec.modulates == "input" else None  # else W x is all that is needed of it
    return kind(*(others[name] if name in others else getattr(q, name) for name in kind._fields))


def _empty(like: Tensor) -> Tensor:
    """What stands for a missing result; each has memory of its own."""
    return like.new_empty(0)


def _project(input: Tensor, weight: Tensor) -> Tensor:
    """W x of all steps, (T, B, rows of W)."""
    return torch.mm(_rows(input), weight.t()).view(*input.shape[:2], -1)


def _modulated(q: Operands) -> Tensor | None:
    """What a multiplicative cell scales by m, (T, B, values of m): x, or W_m x, of which x̂ then replaces h₋."""
    if q.spec.modulates == "hidden":
        return _project(q.input, q.weight_mih)
    return q.input if q.spec.multiplicative else None


def _rows(steps: Tensor) -> Tensor:
    """(T, B, columns) as (T·B, columns); a view for all that is passed here except inputs with strides of their own."""
    return steps.flatten(0, 1)


class _Products:
    """The products after the loop, from its d (T, B, columns), the gradients of the pre-activations.

    The columns of d: H for each gate; in the reset-after GRU then H for the part of n that r scales, which takes the
    place of n beside U; in multiplicative cells then δm. Past the end of a sequence d and the outputs are zero.
    Matrix products take column slices of d as they are.
    """

    def __init__(self, q: Operands, kept: Kept, modulated: Tensor | None, found: LoopGradients) -> None:
        cell, H = q.spec, q.h_0.shape[1]
        self.q, self.cell, self.H, self.kept, self.modulated = q, cell, H, kept, modulated
        self.d = d = found.d
        self.d_modulated = found.d_input
        self.d_gates = d[..., : cell.gates * H]
        self.d_m = d[..., cell.gradients * H :]
        # beside U: where n has a product of its own there, the last H columns, and before them r and z
        self.n_apart = cell.reset_before or cell.gradients > cell.gates
        self.d_rz = d[..., : 2 * H]
        self.d_n = d[..., (cell.gradients - 1) * H : cell.gradients * H]

    def input_gradient(self) -> Tensor:
        if self.cell.modulates == "input":
            d_input = self.d_modulated  # the part that does not pass through W_m
            _rows(d_input).addmm_(_rows(self.d_m), self.q.weight_mih)
            return d_input
        d_input = torch.mm(_rows(self.d_gates), self.q.weight_ih).view(self.q.input.shape)
        if self.cell.modulates == "hidden":
            _rows(d_input).addmm_(_rows(self.d_modulated), self.q.weight_mih)
        return d_input

    def weight_gradients(self, wanted: list[str]) -> dict[str, Tensor]:
        """At least those that are wanted, by name."""
        if not wanted:
            return {}
        x, d_gates = self._active(self.q.input), _rows(self.d_gates)
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
            result["weight_mih"] = torch.mm(_rows(self.d_m).t(), x)
            x = m * x
        result["weight_ih"] = torch.mm(d_gates.t(), x)
        if any(name.startswith("bias") for name in wanted):
            result |= self._bias_gradients()
        return result

    def _bias_gradients(self) -> dict[str, Tensor]:
        """Sums over all rows, in memory of their own."""
        H, sums = self.H, self.d.sum((0, 1))
        gates, last = sums[: self.cell.gates * H], (self.cell.gradients - 1) * H
        recurrent = torch.cat([sums[: 2 * H], sums[last : last + H]]) if self.n_apart else gates.clone()
        return {"bias_ih": gates.clone(), "bias_hh": recurrent, "bias_m": sums[self.cell.gradients * H :].clone()}

    def _recurrent(self) -> Tensor:
        """The gradient of U; in the reset-before GRU U_n multiplies r⊙h₋."""
        if not self.n_apart:
            return self._with_states(self.d_gates)
        r = self.kept.saved[..., : self.H] if self.cell.reset_before else None
        return torch.cat([self._with_states(self.d_rz), self._with_states(self.d_n, r)])

    def _with_states(self, d: Tensor, factor: Tensor | None = None) -> Tensor:
        """Σ dᵀ h₋ over all steps, h₋ scaled elementwise by a factor (T, B, H)."""
        after, before = slice(1, None), slice(None, -1)
        if self.q.reverse:
            after, before = before, after
        first, rest = self.q.h_0, self.kept.output[before]
        if (begins := self.q.resets) is not None:
            first = episodes.begun(first, self._first(begins.unsqueeze(2)).squeeze(1), self.q.h_reset)
            rest = episodes.begun(rest, begins[after], self.q.h_reset)
        if factor is not None:
            first, rest = self._first(factor) * first, factor[after] * rest
        return torch.mm(self._first(d).t(), first).addmm_(_rows(d[after]).t(), _rows(rest))

    def _first(self, steps: Tensor) -> Tensor:
        """Of (T, B, columns) the rows (B, columns) of every sequence's first step, which begins with h_0.

        A sequence without steps may show any row, where d is zero. In a reverse run the step after the last one of a
        sequence shows an output of zero, and adds nothing.
        """
        if not self.q.reverse:
            return steps[0]
        if self.q.lengths is None:
            return steps[-1]
        first = (self.q.lengths - 1).clamp(0, len(steps) - 1)
        return steps[first, torch.arange(len(first), device=first.device)]

    def _active(self, steps: Tensor) -> Tensor:
        """The rows of (T, B, columns) with zeros past the ends of sequences, where an input may hold anything."""
        if self.q.lengths is None:
            return _rows(steps)
        times = torch.arange(len(steps), device=steps.device).unsqueeze(1)
        return _rows(steps.masked_fill((times >= self.q.lengths).unsqueeze(2), 0))
