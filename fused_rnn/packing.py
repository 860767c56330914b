"""Packed sequences for kernels that read padded ones: torch.nn.utils.rnn's layout in stretches of (T, B, features).

A packed sequence holds, step by step, the rows of those sequences that have the step, the longest sequence first. It is
cut into stretches of time. Each is padded by itself and is a call of its own, to which the one before it hands the
states of the sequences that go on. At most half of a stretch is padding, so work and memory follow the rows, however
different the lengths are. There are at most log2(B) + 1 stretches, because where one ends fewer than half of its
sequences are left; equal lengths, and all lengths that fill half of T·B, are a single one.

All of it follows from the batch sizes alone, which are always on the CPU: nothing is read back from a device, and both
directions, and their derivatives, are one gather or scatter of rows for each stretch.
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
            None if all have all of them.
    """

    def __init__(self, batch_sizes: Tensor, device: torch.device) -> None:
        steps = _cut(batch_sizes)
        parts = batch_sizes.split(steps)
        self.batch = int(batch_sizes[0])
        self._shapes = [(len(running), int(running[0])) for running in parts]
        self._rows = [int(running.sum()) for running in parts]
        padded = [rows < steps * batch for rows, (steps, batch) in zip(self._rows, self._shapes)]
        if any(padded):  # so few numbers that a GPU need not be waited for, as it would be for those of all rows
            _check_no_capture(device)
            parts = batch_sizes.to(device, non_blocking=True).split(steps)
        self.steps = len(batch_sizes)
        stretches = list(zip(padded, parts, self._shapes, self._rows))
        self.lengths = [_lengths(running, *shape) if part else None for part, running, shape, _ in stretches]
        self._places = [_places(running, *shape, rows) if part else None for part, running, shape, rows in stretches]

    def pad(self, data: Tensor) -> list[Tensor]:
        """For each stretch (T, B, features), zero past the end of a sequence, of packed rows (rows, features)."""
        stretches = zip(data.split(self._rows), self._shapes, self._places)
        return [_padded(rows, *shape, places) for rows, shape, places in stretches]

    def cut(self, resets: Tensor | None) -> list[Tensor | None]:
        """For each stretch its part (steps, sequences) of a padded tensor (T, B), in the order of packing, or None."""
        if resets is None:
            return [None] * len(self._shapes)
        parts = resets.split([steps for steps, _ in self._shapes])
        return [part[:, :batch] for part, (_, batch) in zip(parts, self._shapes)]

    def pack(self, padded: Sequence[Tensor]) -> Tensor:
        """The rows (rows, features) that ``pad`` made these of."""
        rows = (part.flatten(0, 1) for part in padded)
        packed = [part if places is None else part.index_select(0, places) for part, places in zip(rows, self._places)]
        return packed[0] if len(packed) == 1 else torch.cat(packed)


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
    """The steps of each stretch: as many as go together with no more padding than rows."""
    found = []
    while len(batch_sizes):
        padded = batch_sizes[0] * torch.arange(1, len(batch_sizes) + 1, device=batch_sizes.device)
        fits = padded <= 2 * batch_sizes.cumsum(0)  # once it does not it never does again, as fewer and fewer run
        found.append(int(fits.sum()))
        batch_sizes = batch_sizes[found[-1] :]
    return found


def _lengths(running: Tensor, steps: int, batch: int) -> Tensor:
    """(B) the steps of each sequence, of (T) how many have each step."""
    numbers = torch.arange(batch, device=running.device)
    return steps - torch.searchsorted(running.flip(0), numbers, right=True)


def _places(running: Tensor, steps: int, batch: int, rows: int) -> Tensor:
    """(rows) where each row stands among steps·batch, of (T) how many have each step."""
    times, numbers = (torch.arange(count, device=running.device) for count in (steps, rows))
    passed = times * batch - (running.cumsum(0) - running)  # by padding, before each step
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
    """``ops.run`` over one stretch of a sequence after the other; a padded sequence has but one.

    Args:
        inputs: of each stretch (T, B, I).
        state: of all sequences, with which each begins.
        lengths: of each stretch, as ``Packing`` has them.
        masks: of each stretch, keep_h and keep_c.
        resets: of each stretch, as ``Packing.cut`` has them, or None.
        how: the options of ``ops.run`` that all stretches share; h_reset and c_reset are (H).

    Returns:
        The outputs of each stretch, the final state of all sequences and, if asked for, the cell states of each.
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
        # with which the stretch of earlier steps goes on, but not over a boundary between the two
        new = how.get("h_reset"), how.get("c_reset")
        return tuple(episodes.begun(part, resets[stretch][0], beginning) for part, beginning in zip(final, new))

    sizes = [part.shape[1] for part in inputs]
    final = (_backwards if reverse else _forwards)(call, sizes, state if pair else (state,))
    outputs, *cells = map(list, zip(*sequences))
    return outputs, final if pair else final[0], *cells


def _forwards(call: Callable[[int, Parts], Parts], sizes: list[int], parts: Parts) -> Parts:
    """Call each stretch with the states of those that go on; returns those with which each sequence ended."""
    ended = []
    for stretch, going_on in enumerate([*sizes[1:], 0]):
        final = call(stretch, parts)
        parts, last = zip(*(part.split([going_on, len(part) - going_on]) for part in final))
        ended.append(last)
    return tuple(map(torch.cat, zip(*reversed(ended))))


def _backwards(call: Callable[[int, Parts], Parts], sizes: list[int], parts: Parts) -> Parts:
    """Likewise from the last stretch to the first: in each more sequences begin, at their own ends."""
    begin = [size - going_on for size, going_on in zip(sizes, [*sizes[1:], 0])]
    begin.reverse()
    final: Parts = ()
    for stretch, new in zip(reversed(range(len(sizes))), zip(*(part.split(begin) for part in parts))):
        final = call(stretch, tuple(map(torch.cat, zip(final, new))) if final else new)
    return final
