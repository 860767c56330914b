"""The measurements: batches of sequences in which some share of all steps begins an episode, and the ways to run them.

torch.nn does not support episodes. Users who train with it have three ways: a loop over steps, in which the state of
sequences that begin anew is zeroed; calls that end wherever any sequence begins anew; or packed sequences, one for each
episode. Everything that a way computes from the boundaries is part of its time, because every batch has others.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fused_rnn

MODES = ("training", "forward")
OURS, WITHOUT = "resets", "without"
# cells by name: our module, torch.nn's, and torch.nn's single step
CELLS: dict[str, tuple[type[nn.Module], type[nn.Module], type[nn.Module]]] = {
    "lstm": (fused_rnn.LSTM, nn.LSTM, nn.LSTMCell),
    "gru_reset_after": (fused_rnn.GRU, nn.GRU, nn.GRUCell),
}
TITLES = {
    OURS: "fused_rnn, `resets`",
    WITHOUT: "fused_rnn, without",
    "steps": "torch.nn, a loop over steps",
    "split": "torch.nn, cut at every boundary",
    "packed": "torch.nn, episodes packed",
}
Results = tuple[Tensor, Tensor]  # the outputs (T, B, H) and the final h (B, H)
Way = Callable[[Tensor, Tensor], Results]  # of an input (T, B, I) and boundaries (T, B)


@dataclass(frozen=True)
class Plan:
    """The measurements of one run; passed to the child process as JSON."""

    cells: tuple[str, ...] = tuple(CELLS)
    shares: tuple[int, ...] = (0, 1, 10)  # percent of all steps that begin an episode
    backend: str = "auto"
    device: str = "cpu"
    steps: int = 128
    batch: int = 128
    size: int = 256  # I and H
    dtype: str = "float32"
    warm_up: int = 1
    rounds: int = 5

    def cases(self) -> Iterator[tuple[str, int, str]]:
        """Yield cell, share and mode."""
        for cell in self.cells:
            for share in self.shares:
                for mode in MODES:
                    yield cell, share, mode


def ways(cell: str, plan: Plan, weights: dict[str, Tensor]) -> dict[str, tuple[nn.Module, Way]]:
    """Make, by name of the way, a module with these weights, of one layer, and the function to call."""
    ours, theirs, single = CELLS[cell]
    how = {"device": plan.device, "dtype": getattr(torch, plan.dtype)}
    fused = _loaded(ours(plan.size, plan.size, backend=plan.backend, **how), weights)
    plain = _loaded(theirs(plan.size, plan.size, **how), weights)
    step = _loaded(single(plan.size, plan.size, **how), {n.removesuffix("_l0"): w for n, w in weights.items()})
    return {
        OURS: (fused, lambda input, resets: _of_h(*fused(input, resets=resets))),
        WITHOUT: (fused, lambda input, _: _of_h(*fused(input))),
        "steps": (step, lambda input, resets: step_by_step(step, input, resets)),
        "split": (plain, lambda input, resets: cut_at_boundaries(plain, input, resets)),
        "packed": (plain, lambda input, resets: packed_episodes(plain, input, resets)),
    }


def _loaded(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    module.load_state_dict(weights)
    return module


def _of_h(output: Tensor, state) -> Results:
    return output, (state[0] if isinstance(state, tuple) else state)[0]


def _kept(state, keeps: Tensor):
    """Zero a state (B, H), or (1, B, H), or a pair of them, for sequences that do not keep it."""
    return tuple(part * keeps for part in state) if isinstance(state, tuple) else state * keeps


def step_by_step(cell: nn.Module, input: Tensor, resets: Tensor) -> Results:
    """Loop over single steps."""
    keeps, state, outputs = (~resets).to(input.dtype).unsqueeze(2), None, []
    for x, keep in zip(input, keeps):
        state = cell(x, state if state is None else _kept(state, keep))
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outputs), outputs[-1]


def cut_at_boundaries(module: nn.Module, input: Tensor, resets: Tensor) -> Results:
    """Call the module once for each stretch of time in which no sequence begins anew."""
    times = [t for t in resets.any(1).nonzero().flatten().tolist() if t > 0]
    keeps, state, outputs = (~resets).to(input.dtype).unsqueeze(2), None, []
    for begin, end in zip([0, *times], [*times, len(input)]):
        output, state = module(input[begin:end], state if state is None else _kept(state, keeps[begin]))
        outputs.append(output)
    return _of_h(torch.cat(outputs), state)


def packed_episodes(module: nn.Module, input: Tensor, resets: Tensor) -> Results:
    """Call the module with a packed sequence for every episode; rows are gathered, because slices would cost more."""
    steps, batch, _ = input.shape
    begins = resets.T.clone()
    begins[:, 0] = True
    first = begins.flatten().nonzero().flatten()
    lengths = first.diff(append=first.new_tensor([steps * batch])).tolist()
    order = pack_sequence(torch.arange(steps * batch, device=input.device).split(lengths), enforce_sorted=False)
    rows = input.transpose(0, 1).flatten(0, 1).index_select(0, order.data)
    packed, _ = module(PackedSequence(rows, order.batch_sizes, order.sorted_indices, order.unsorted_indices))
    output = packed.data.index_select(0, order.data.argsort()).unflatten(0, (batch, steps)).transpose(0, 1)
    return output, output[-1]
