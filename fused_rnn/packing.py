"""Packed sequences for kernels that read padded ones: torch.nn.utils.rnn's layout in stretches of (T, B, features).

A packed sequence holds, step by step, the rows of the sequences that have the step, the longest sequence first. It is
cut into stretches of time. Each is padded by itself and is a call of its own, which takes the states of the sequences
that go on from the call before it. At most half of a stretch is padding, so work and memory are proportional to the
rows, however different the lengths are. There are at most log2(B) + 1 stretches, because fewer than half of a stretch's
sequences are left at its end; equal lengths, and all lengths that fill half of T·B, are a single one.

The layout follows from the batch sizes alone, which are always on the CPU. So nothing is read back from a device, and
both directions, and their derivatives, are one gather or scatter of rows for each stretch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import autocast, episodes, ops

Parts = tuple[Tensor, ...]  # of a state: h, or h and c


class Packing:
    """The layout of a packed sequence.

    Args:
        batch_sizes: (T) int64 on the CPU, the sequences that have each step, never increasing.
        device: of the data.

    Attributes:
        steps, batch: T and B, of all sequences.
        lengths: for each stretch (sequences in it) int64 on the device, the steps of each in this stretch, decreasing;
            None if all sequences have all steps.
    """

    def __init__(self, batch_sizes: Tensor, device: torch.device) -> None:
        steps = _cut(batch_sizes)
        parts = batch_sizes.split(steps)
        self.batch = int(batch_sizes[0])
        self._shapes = [(len(running), int(running[0])) for running in parts]
        self._rows = [int(running.sum()) for running in parts]
        padded = [rows < steps * batch for rows, (steps, batch) in zip(self._rows, self._shapes)]
        if any(padded):  # few enough to copy without waiting for a GPU, unlike indices of all rows
            _check_no_capture(device)
            parts = batch_sizes.to(device, non_blocking=True).split(steps)
        self.steps = len(batch_sizes)
        stretches = list(zip(padded, parts, self._shapes, self._rows))
        self.lengths = [_lengths(running, *shape) if part else None for part, running, shape, _ in stretches]
        self._places = [_places(running, *shape, rows) if part else None for part, running, shape, rows in stretches]

    def pad(self, data: Tensor) -> list[Tensor]:
        """Scatter packed rows (rows, features) into (T, B, features) for each stretch, with zeros past the ends."""
        stretches = zip(data.split(self._rows), self._shapes, self._places)
        return [_padded(rows, *shape, places) for rows, shape, places in stretches]

    def cut(self, resets: Tensor | None) -> list[Tensor | None]:
        """Cut a padded tensor (T, B), or None, into (steps, sequences) for each stretch, in the order of packing."""
        if resets is None:
            return [None] * len(self._shapes)
        parts = resets.split([steps for steps, _ in self._shapes])
        return [part[:, :batch] for part, (_, batch) in zip(parts, self._shapes)]

    def pack(self, padded: Sequence[Tensor]) -> Tensor:
        """Return the packed rows (rows, features), the inverse of ``pad``."""
        rows = (part.flatten(0, 1) for part in padded)
        packed = [part if places is None else part.index_select(0, places) for part, places in zip(rows, self._places)]
        return packed[0] if len(packed) == 1 else torch.cat(packed)


def check_layout(batch_sizes: Tensor, rows: int) -> None:
    """Raise ValueError if these are not the batch sizes of a packed sequence of so many rows."""
    wrong = batch_sizes < 1
    wrong[1:] |= batch_sizes.diff() > 0
    if wrong.any():
        step = int(wrong.nonzero()[0])
        after = f" after {int(batch_sizes[step - 1])}" if step else ""
        raise ValueError(
            "batch_sizes of a PackedSequence must be positive and must not increase, "
            f"got {int(batch_sizes[step])} at step {step}{after}"
        )
    if (given := int(batch_sizes.sum())) != rows:
        raise ValueError(f"the batch_sizes of a PackedSequence add up to {given} rows, and its data has {rows}")


def _check_no_capture(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph cannot capture a PackedSequence of different lengths: its replays would copy the batch "
            "sizes from the CPU once more, when they are gone: give it a padded tensor and lengths"
        )


def _padded(rows: Tensor, steps: int, batch: int, places: Tensor | None) -> Tensor:
    if places is not None:
        rows = rows.new_zeros(steps * batch, rows.shape[1]).index_copy(0, places, rows)
    return rows.reshape(steps, batch, -1)


def _cut(batch_sizes: Tensor) -> list[int]:
    """Return the steps of each stretch, as long as possible with no more padding than rows."""
    found = []
    while len(batch_sizes):
        padded = batch_sizes[0] * torch.arange(1, len(batch_sizes) + 1, device=batch_sizes.device)
        fits = padded <= 2 * batch_sizes.cumsum(0)  # once False it stays False, as fewer and fewer sequences run
        found.append(int(fits.sum()))
        batch_sizes = batch_sizes[found[-1] :]
    return found


def _lengths(running: Tensor, steps: int, batch: int) -> Tensor:
    """Return the steps (B) of each sequence, given the number (T) of sequences that have each step."""
    numbers = torch.arange(batch, device=running.device)
    return steps - torch.searchsorted(running.flip(0), numbers, right=True)


def _places(running: Tensor, steps: int, batch: int, rows: int) -> Tensor:
    """Return the indices (rows) of rows in steps·batch, given the number (T) of sequences that have each step."""
    times, numbers = (torch.arange(count, device=running.device) for count in (steps, rows))
    passed = times * batch - (running.cumsum(0) - running)  # padding before each step
    return numbers + passed.repeat_interleave(running, output_size=rows)


def run(
    cell: str,
    inputs: Sequence[Tensor],
    state: ops.State | None,
    weights: dict[str, Tensor],
    *,
    lengths: Sequence[Tensor | None],
    masks: Sequence[dict[str, Tensor]],
    reverse: bool,
    resets: Sequence[Tensor | None],
    **how,
) -> tuple:
    """Call ``ops.run`` on one stretch of sequences after the other; padded sequences have a single stretch.

    Args:
        inputs: (T, B, I) of each stretch.
        state: the state of all sequences, with which each begins.
        lengths: for each stretch, as in ``Packing``.
        masks: keep_h and keep_c of each stretch.
        resets: for each stretch, as from ``Packing.cut``, or None.
        how: the options of ``ops.run`` that all stretches share; h_reset and c_reset are (H).

    Returns:
        The outputs of each stretch, the final state of all sequences and, if requested, the cell states of each
        stretch.
    """
    if len(inputs) == 1:
        here = {"lengths": lengths[0], "resets": resets[0], **masks[0]}
        output, final, *cells = ops.run(cell, inputs[0], state, weights, reverse=reverse, **here, **how)
        return [output], final, *([part] for part in cells)
    return _run_stretches(cell, inputs, state, weights, lengths, masks, reverse, resets, how)


@autocast.casting
def _run_stretches(cell, inputs, state, weights, lengths, masks, reverse, resets, how) -> tuple:
    pair = ops.CELLS[cell].has_cell_state
    if state is None:
        zeros = inputs[0].new_zeros(inputs[0].shape[1], weights["weight_hh"].shape[1])
        state = (zeros, zeros) if pair else zeros
    sequences: list[tuple[Tensor, ...]] = [()] * len(inputs)

    def call(stretch: int, parts: Parts) -> Parts:
        state = parts if pair else parts[0]
        how_here = {"lengths": lengths[stretch], "resets": resets[stretch], **masks[stretch], **how}
        output, final, *cells = ops.run(cell, inputs[stretch], state, weights, reverse=reverse, **how_here)
        sequences[stretch] = (output, *cells)
        final = final if pair else (final,)
        if resets[stretch] is None or not reverse or stretch == 0:
            return final
        # the stretch of earlier steps goes on with these states, except across a boundary between the two
        new = how.get("h_reset"), how.get("c_reset")
        return tuple(episodes.begun(part, resets[stretch][0], beginning) for part, beginning in zip(final, new))

    sizes = [part.shape[1] for part in inputs]
    final = (_backwards if reverse else _forwards)(call, sizes, state if pair else (state,))
    outputs, *cells = map(list, zip(*sequences))
    return outputs, final if pair else final[0], *cells


def _forwards(call: Callable[[int, Parts], Parts], sizes: list[int], parts: Parts) -> Parts:
    """Call each stretch with the states of the sequences that go on; return the final state of each sequence."""
    ended = []
    for stretch, going_on in enumerate([*sizes[1:], 0]):
        final = call(stretch, parts)
        parts, last = zip(*(part.split([going_on, len(part) - going_on]) for part in final))
        ended.append(last)
    return tuple(map(torch.cat, zip(*reversed(ended))))


def _backwards(call: Callable[[int, Parts], Parts], sizes: list[int], parts: Parts) -> Parts:
    """Do the same from the last stretch to the first: in each, more sequences begin, at their own ends."""
    begin = [size - going_on for size, going_on in zip(sizes, [*sizes[1:], 0])]
    begin.reverse()
    final: Parts = ()
    for stretch, new in zip(reversed(range(len(sizes))), zip(*(part.split(begin) for part in parts))):
        final = call(stretch, tuple(map(torch.cat, zip(final, new))) if final else new)
    return final
