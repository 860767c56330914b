"""Both directions of a layer at the same time: on a GPU the second runs on a stream beside the current one.

With few sequences the kernels of one direction fill a part of a GPU, and those of the other fit beside them. So the
second direction is forked off to a side stream, with its products and all, and joined before anything reads its
results. Autograd runs the backward pass of each operation on the stream of its forward pass, and makes streams wait for
each other when a gradient passes between them, so the backward passes of both directions overlap as well.

The allocator knows of each block of memory only the stream on which it was allocated. It reuses the block there as soon
as the last reference is gone, even if another stream may still have to read it, unless ``record_stream`` has named the
reader:

* The inputs of the side stream were allocated on the current one. In the forward pass the join makes that safe, even
  after an error: all later work on the current stream comes after the join. But autograd saves some inputs, and in the
  backward pass releases them once it has queued the last reader, long before it joins the streams. So they are recorded
  if gradients are enabled, weights included: weights that were drawn or cast for one call are freed with the call.
* The results of the side stream are read on the current one, and released there. We fork only after all work that is
  queued on the current stream, and so would reuse no memory too early; but torch has 32 streams in all and hands out
  the same ones again, so that others who do not wait may allocate on this one. So results are recorded.
* Autograd records gradients that pass from one stream to the other.

The side stream receives views of the tensors, made on the current stream if gradients are enabled. Without them a
parameter's gradient would be accumulated, and hooks on it run, on the side stream, in memory of the side stream with no
record of its readers; and torch would warn of parameters that are also used elsewhere. The node of a view hands the
gradient over to the current stream. The views come before the first direction: autograd processes the latest operations
first, and so queues that direction's backward pass before the current stream waits for the other.

To fork costs the host time, so only long calls do: those in which the kernels, and not the host, are what one waits
for. ``FUSED_RNN_TWO_STREAMS`` in the environment, read at every call, is 1 for all calls and 0 for none.

A CUDA graph captures fork and join as its edges. Memory that was recorded is not reused within the same capture. Random
numbers are drawn before the fork, in the same order as if one direction ran after the other.
"""

import os
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from . import watchers

WANTED = "FUSED_RNN_TWO_STREAMS"
# T · H of long calls. On an H200 with an LSTM of 16 or 64 sequences, in bfloat16 and float32, two streams took 0.56 to
# 1.0 of the time of one from there on, without gradients and in training; in shorter calls 0.57 to 1.28.
LONG = 1000 * 256
_DEVICES = "cuda"  # the kind of devices with such streams
_SIDES: dict[torch.cuda.Stream, torch.cuda.Stream] = {}


def can_fork(inputs: list[Tensor], hidden_size: int) -> bool:
    """Whether the directions of a layer, whose input is one stretch of a sequence after the other, shall run at once.

    They shall in long calls on a GPU, or as the environment says. They may not if a compiler or a tracer looks on, or
    a tensor stands for others, because these see operators but no streams; nor with hooks on saved tensors. The hooks
    of ``torch.utils.checkpoint`` run the forward pass anew on the stream of whichever operation asks first, and give
    the results to operations on others that do not wait for it. Within ``torch.func`` and forward-mode derivatives,
    tensors have more memory than their own that would have to be recorded.
    """
    return (
        not watchers.look_on()
        and type(inputs[0]) in (Tensor, nn.Parameter)
        and inputs[0].device.type == _DEVICES
        and _is_wanted(sum(map(len, inputs)), hidden_size)
    )


def _is_wanted(steps: int, hidden_size: int) -> bool:
    value = os.environ.get(WANTED)
    if not value:
        return steps * hidden_size >= LONG
    if value not in ("0", "1"):
        raise ValueError(f"{WANTED} in the environment must be 1 for two streams or 0 for one, got {value!r}")
    return value == "1"


def run_both(first: partial, second: partial, device: torch.device) -> tuple[tuple, tuple]:
    """Run both calls, the second beside the first, and return their results, which hold tensors on ``device``.

    The current stream has joined the side stream when this returns or raises, so that an error leaves nothing running
    that reads memory which the caller frees.
    """
    current = torch.cuda.current_stream(device)
    side = _side_of(current)
    if torch.is_grad_enabled():
        second = partial(second.func, *_handed(second.args, side), **_handed(second.keywords, side))
    side.wait_stream(current)
    try:
        results = first()
        with torch.cuda.stream(side):
            others = second()
    finally:
        current.wait_stream(side)
    for tensor in _tensors(others):
        tensor.record_stream(current)
    return results, others


def _side_of(current: torch.cuda.Stream) -> torch.cuda.Stream:
    """Return the stream beside this one: always the same, because the allocator and cuBLAS hold memory per stream.

    Threads with a current stream of their own have a side stream of their own. Threads that share the current stream
    share this one too, because their work runs in its order anyway.
    """
    side = _SIDES.get(current)
    if side is None:
        while (side := torch.cuda.Stream(current.device, priority=current.priority)) == current:
            pass  # torch hands its streams out in turn, this one too
        side = _SIDES.setdefault(current, side)
    return side


def _handed(value, side: torch.cuda.Stream):
    """Return the same arguments as views, which the side stream may read as long as autograd saves them."""
    if isinstance(value, Tensor):
        if value.device == side.device:  # the call refuses a tensor on another one, with a message of its own
            value.record_stream(side)
        return value.view_as(value)
    if isinstance(value, tuple | list):
        return type(value)(_handed(part, side) for part in value)
    if isinstance(value, dict):
        return {name: _handed(part, side) for name, part in value.items()}
    return value


def _tensors(value) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
