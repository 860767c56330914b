"""The backward pass after a forward pass that saved states only: ``fused_rnn::backward_from_states``.

The state before every step is known: it is the output, or the cell state, of the step before. So the other values that
backward reads are those that forward saves of a single step over T·B sequences, and no equation is repeated here.
Both operators run over one part of the sequence after the other, so that only a part is rebuilt at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import episodes
from .operands import LATER, MASKS, BackwardCall, ForwardCall, Kept, Operands, ResultGradients, Results

_FEWEST_ROWS = 1024  # steps x sequences of a part: enough to occupy the processor and to pay for packing the weights
_MOST_PARTS = 8  # enough to make what is rebuilt at a time a small share of everything


def backward_from_states(operators, *arguments) -> tuple[Tensor, ...]:
    """Run ``fused_rnn::backward`` without the saved values that it reads.

    δh and δc pass from part to part in the type of the input; weight gradients are summed in float32 or wider.
    """
    (d_output, d_h, d_c, d_cells), (output, cells, _), operands, wanted = BackwardCall.of(arguments)
    input, reverse = operands.input, operands.reverse
    d_input = input.new_empty(input.shape if wanted.input_gradient else (0,))
    d_weights: list[Tensor] = []
    for begin, end in _parts(*input.shape[:2], reverse):
        part = operands.between(begin, end)
        of_states = (output, operands.h_0, part.h_reset), (cells, operands.c_0, part.c_reset)
        before = [
            _before(states, initial, part.resets, new, begin, end, reverse, operands.lengths)
            for states, initial, new in of_states
        ]
        h_0, c_0 = (None if state is None else state[-1 if reverse else 0] for state in before)
        part = part._replace(h_0=h_0, c_0=c_0)
        d_results = ResultGradients(
            d_output=None if d_output is None else d_output[begin:end],
            d_h_n=d_h,
            d_c_n=None if c_0 is None else d_c,
            d_cells=None if d_cells is None else d_cells[begin:end],
        )
        kept = Kept(output[begin:end], cells[begin:end], _rebuild(operators, part, before))
        d_part, d_h, d_c, *d_more = operators.backward(*BackwardCall(d_results, kept, part, wanted).arguments)
        if wanted.input_gradient:
            d_input[begin:end] = d_part
        wide = torch.promote_types(input.dtype, torch.float32)
        d_weights = [s.add_(d) for s, d in zip(d_weights, d_more)] if d_weights else [d.to(wide) for d in d_more]
    return d_input, d_h, d_c, *(d.to(input.dtype) for d in d_weights)


def _parts(steps: int, batch: int, reverse: bool) -> Iterator[tuple[int, int]]:
    """Yield the times at which each part begins and ends; the part that was computed last comes first."""
    length = max(-(-steps // _MOST_PARTS), _FEWEST_ROWS // batch, 1)
    for last in range(steps, 0, -length):
        first = max(0, last - length)
        yield (steps - last, steps - first) if reverse else (first, last)


def _before(
    states: Tensor,
    initial: Tensor | None,
    begins: Tensor | None,
    new: Tensor | None,
    begin: int,
    end: int,
    reverse: bool,
    lengths: Tensor | None,
) -> Tensor | None:
    """Return the states (end - begin, B, H) before the steps of a part, None for a state that the cell lacks.

    ``begins`` marks the steps that began anew, with ``new``. The value is unused for sequences that do not have a step.
    """
    if initial is None:
        return None
    if not reverse:
        first = initial if begin == 0 else states[begin - 1]
        return episodes.begun(torch.cat([first.unsqueeze(0), states[begin : end - 1]]), begins, new)
    first = initial if end == len(states) else states[end]
    before = torch.cat([states[begin + 1 : end], first.unsqueeze(0)])
    if lengths is not None:
        times = torch.arange(begin + 1, end + 1, device=states.device).unsqueeze(1)
        before = torch.where((times < lengths).unsqueeze(2), before, initial)
    return episodes.begun(before, begins, new)


def _rebuild(operators, part: Operands, before: list[Tensor | None]) -> Tensor:
    """Compute what forward with ``save="everything"`` would save of a part, given the states before its steps."""
    steps, batch, features = part.input.shape
    h_0, c_0 = (None if state is None else state.flatten(0, 1) for state in before)
    active = None
    if part.lengths is not None:  # a row is a sequence of one step, or of none past its end
        active = (torch.arange(steps, device=part.input.device).unsqueeze(1) < part.lengths).long().flatten()
    rows = part._replace(
        input=part.input.reshape(1, steps * batch, features),
        h_0=h_0,
        c_0=c_0,
        lengths=active,
        **dict.fromkeys((*MASKS, *LATER)),  # saved values do not depend on zoneout
        reverse=False,
        gradient_clip=0.0,
    )
    return Results(*operators.forward(*ForwardCall(rows, "everything").arguments)).saved.view(steps, batch, -1)
