"""The check that a training step fits into memory, estimated before anything large is allocated."""

from pathlib import Path

import torch

from benchmarks.common import DTYPES, InputError, recurrent_parameters

from .model import ModelConfig

# Values that the forward pass of a cell keeps for the backward pass: (per unit, per feature of the input), for
# each step of each sequence in each layer, the output among the first and the input among the second.
SAVED = {
    "rnn": (1, 1),
    "lstm": (6, 1),
    "gru": (4, 1),
    "multiplicative_lstm": (6, 2),
    "multiplicative_gru": (4, 2),
    "gru_reset_after": (5, 1),
    "multiplicative_lstm_hidden": (8, 1),
    "torch_rnn": (1, 1),
    "torch_lstm": (6, 1),
    "torch_gru": (5, 1),
}
# The cells that have as many parameters as torch.nn's.
BASELINES = {"torch_rnn": "rnn", "torch_lstm": "lstm", "torch_gru": "gru_reset_after"}
OPTIMISER_COPIES = {"adam": 2, "rmsprop": 1, "sgd": 0}  # of the parameters
SCORES = 3  # the scores, their logarithmic softmax and their gradient
GIB = 2**30


def estimate(config: ModelConfig, optimiser: str, steps: int, batch: int) -> tuple[int, int]:
    """Return bytes of a training step: of parameters with gradients and the optimiser's state, and of activations."""
    fused = BASELINES.get(config.cell, config.cell)
    parameters = recurrent_parameters(fused, config.embedding, config.hidden, config.layers)
    parameters += config.symbols * (config.hidden + 1)  # the decoder
    parameters += 0 if config.tie else config.symbols * config.embedding
    size, computed_size = (DTYPES[dtype].itemsize for dtype in (config.dtype, config.computed_in))
    per_unit, per_feature = SAVED[config.cell]
    features = config.embedding + (config.layers - 1) * config.hidden
    values = per_unit * config.layers * config.hidden + per_feature * features
    per_step = values * computed_size + SCORES * config.symbols * 4
    return parameters * (2 + OPTIMISER_COPIES[optimiser]) * size, per_step * steps * batch


def available(device: str) -> int:
    """Return the bytes available to a new process: on the GPU, or in main memory within its control group's limits."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))


def check_fits(config: ModelConfig, optimiser: str, steps: int, batch: int, device: str, sharers: int = 1) -> None:
    """Raise InputError with the estimate if a training step needs more memory than ``device`` has left per sharer."""
    fixed, activations = estimate(config, optimiser, steps, batch)
    free = available(device) // sharers
    if fixed + activations > free:
        raise InputError(
            f"training {config.cell} needs about {(fixed + activations) / GIB:,.1f} GiB ({fixed / GIB:,.1f} for "
            f"parameters and {optimiser}, {activations / GIB:,.1f} for {steps} steps of {batch} sequences), but "
            f"{device} has {free / GIB:,.1f} GiB free: lower --hidden, --layers, --batch, --bptt or --max-length"
        )
