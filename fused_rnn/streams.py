"""Both directions of a layer at the same time: on a GPU the second runs on a stream beside the current one.

With few sequences the kernels of one direction fill a part of a GPU, and those of the other fit beside them. So the
second direction is forked off to a side stream, with its products and all, and joined before anything reads what it
gives. Autograd runs the backward pass of each operation on the stream of its forward pass, and makes streams wait for
each other where a gradient goes from one to the other: so the backward passes of both directions overlap as well.

Of memory the allocator knows only on which stream it was allocated. It hands it out again there as soon as the last
reference is gone, when another stream may still have to read it, unless ``record_stream`` has told it of the reader:

* What the side stream reads was allocated on the current one. In the forward pass the join makes that safe, after an
  error too: all that comes later on the current stream comes after the join. But autograd saves some of it, and in the
  backward pass lets go of it when it has queued the last reader, long before it joins the streams. So it is recorded
  where gradients are enabled, weights included: those that were drawn or cast for one call go with the call.
* What the side stream gives is read on the current one, and let go of there. We fork only after all that is queued on
  the current stream, and so would reuse no memory too early; but torch has 32 streams in all and deals out the same
  ones again, so that others may allocate on this one who do not wait. So results are recorded.
* Gradients that go from one stream to the other are recorded by autograd.

The tensors that are handed to the side stream are views, made on the current one where gradients are enabled. Without
them a parameter's gradient would be accumulated, and hooks on it run, on the side stream, whose memory it would be with
no record of who reads it; and torch would warn of parameters that are also used elsewhere. The node of a view takes the
gradient over to the current stream. The views come before the first direction: autograd goes from what came last to
what came first, and so queues that direction's backward pass before the current stream waits for the other.

This has not yet run on a GPU, and is done where the environment says ``FUSED_RNN_TWO_STREAMS=1``, asked at every call.

A CUDA graph captures fork and join as what they are, edges. Memory that was recorded is not reused within the same
capture. Random numbers are drawn before the fork, in the order in which one direction after the other draws them.
"""

import os
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from . import watchers

WANTED = "FUSED_RNN_TWO_STREAMS"
_DEVICES = "cuda"  # the kind of those that have such streams
_SIDES: dict[torch.cuda.Stream, torch.cuda.Stream] = {}


def can_fork(input: Tensor) -> bool:
    """Whether the directions of a layer with this input may run at the same time.

    Only if that is wanted. Not on other devices; not where a compiler or a tracer looks on, or a tensor stands for
    others: these see operators, and no streams. Not with hooks on saved tensors either. Those of
    ``torch.utils.checkpoint`` run the forward pass anew on the stream of whichever operation asks first, and give the
    results to operations on others that do not wait for it. Within ``torch.func`` and forward-mode derivatives there
    is memory beneath and beside a tensor's own to be recorded.
    """
    return (
        not watchers.look_on()
        and type(input) in (Tensor, nn.Parameter)
        and input.device.type == _DEVICES
        and _is_wanted()
    )


def _is_wanted() -> bool:
    value = os.environ.get(WANTED) or "0"
    if value not in ("0", "1"):
        raise ValueError(f"{WANTED} in the environment must be 1 for two streams or 0 for one, got {value!r}")
    return value == "1"


def run_both(first: partial, second: partial, device: torch.device) -> tuple[tuple, tuple]:
    """The results of both calls, which hold tensors on ``device``; the second runs beside the first.

    The current stream has joined the side stream when this returns or raises, so that an error leaves nothing running
    that reads what the caller frees.
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
    """The stream beside this one: always the same, because the allocator and cuBLAS hold memory for each stream.

    Threads with a current stream of their own have a side stream of their own. Those that share the current stream
    share this one too, as an order in which their work runs.
    """
    side = _SIDES.get(current)
    if side is None:
        while (side := torch.cuda.Stream(current.device, priority=current.priority)) == current:
            pass  # torch deals its streams out in turn, this one too
        side = _SIDES.setdefault(current, side)
    return side


def _handed(value, side: torch.cuda.Stream):
    """The same arguments in views, which the side stream may read as long as autograd saves them."""
    if isinstance(value, Tensor):
        if value.device == side.device:  # on another one the call refuses it, in words of its own
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
