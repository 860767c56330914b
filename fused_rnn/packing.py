"""Packed sequences for kernels that read padded ones: torch.nn.utils.rnn's layout, (T, B, features) and lengths.

A packed sequence holds, step by step, the rows of those sequences that have the step, the longest sequence first. So
its row number among the T·B of a padded batch follows from the batch sizes alone, which are always on the CPU: nothing
is read back from a device, and both directions, and their derivatives, are one gather or scatter of rows.
"""

import torch
from torch import Tensor


class Packing:
    """The layout of a packed sequence.

    Args:
        batch_sizes: (T) int64 on the CPU, the sequences that have each step, never increasing.
        device: of the data.

    Attributes:
        batch: B, all sequences.
        lengths: (B) int64 on the device, the steps of each sequence, decreasing; None if all have T.
    """

    def __init__(self, batch_sizes: Tensor, device: torch.device) -> None:
        self.steps, self.batch = len(batch_sizes), int(batch_sizes[0])
        self.lengths = self._rows = None
        if int(batch_sizes[-1]) < self.batch:
            present = torch.arange(self.batch) < batch_sizes.unsqueeze(1)  # (T, B)
            self.lengths = present.sum(0).to(device, non_blocking=True)
            self._rows = present.flatten().nonzero().squeeze(1).to(device, non_blocking=True)

    def pad(self, data: Tensor) -> Tensor:
        """(T, B, features), zero past the end of a sequence, of packed rows (rows, features)."""
        if self._rows is None:
            return data.reshape(self.steps, self.batch, -1)
        rows = data.new_zeros(self.steps * self.batch, data.shape[1]).index_copy(0, self._rows, data)
        return rows.view(self.steps, self.batch, -1)

    def pack(self, padded: Tensor) -> Tensor:
        """The rows (rows, features) that ``pad`` made this of."""
        rows = padded.flatten(0, 1)
        return rows if self._rows is None else rows.index_select(0, self._rows)
