"""Sequences of episodes: ours with ``resets``, and the three ways that those have who train with torch.nn.

torch.nn does not support episodes. There is a loop over steps, in which the state of sequences that begin anew is
zeroed; calls that end wherever any sequence begins anew; and packed sequences, one for each episode. Everything that a
way computes from the boundaries is part of its time, because every batch has others.

Shapes: ``input`` (T, B, I); ``resets`` (T, B); results (T, B, H).
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from .eager import State


def with_resets(module: nn.Module, input: Tensor, resets: Tensor) -> Tensor:
    return module(input, resets=resets)[0]


def step_by_step(steps: nn.Module, input: Tensor, resets: Tensor) -> Tensor:
    """Loop over calls of torch.nn's module of single steps."""
    keeps, state, outputs = _keeps(input, resets), None, []
    for x, keep in zip(input, keeps):
        state = steps.cell(x, _kept(state, keep))
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outputs)


def cut_at_boundaries(module: nn.Module, input: Tensor, resets: Tensor) -> Tensor:
    """Call the module once for each stretch of time in which no sequence begins anew."""
    times = [t for t in resets.any(1).nonzero().flatten().tolist() if t > 0]
    keeps, state, outputs = _keeps(input, resets), None, []
    for begin, end in zip([0, *times], [*times, len(input)]):
        output, state = module(input[begin:end], _kept(state, keeps[begin]))
        outputs.append(output)
    return torch.cat(outputs)


def packed_episodes(module: nn.Module, input: Tensor, resets: Tensor) -> Tensor:
    """Call the module with a packed sequence for every episode; rows are gathered, because slices would cost more."""
    steps, batch, _ = input.shape
    begins = resets.T.clone()
    begins[:, 0] = True
    first = begins.flatten().nonzero().flatten()
    lengths = first.diff(append=first.new_tensor([steps * batch])).tolist()
    order = pack_sequence(torch.arange(steps * batch, device=input.device).split(lengths), enforce_sorted=False)
    rows = input.transpose(0, 1).flatten(0, 1).index_select(0, order.data)
    packed, _ = module(PackedSequence(rows, order.batch_sizes, order.sorted_indices, order.unsorted_indices))
    return packed.data.index_select(0, order.data.argsort()).unflatten(0, (batch, steps)).transpose(0, 1)


def _keeps(input: Tensor, resets: Tensor) -> Tensor:
    """Return factors (T, B, 1) of states: 0 where a sequence begins anew, else 1."""
    return (~resets).to(input.dtype).unsqueeze(2)


def _kept(state: State | None, keep: Tensor) -> State | None:
    if state is None:
        return None
    return tuple(part * keep for part in state) if isinstance(state, tuple) else state * keep
