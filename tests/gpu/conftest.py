"""The place under test; without a GPU, tests are skipped with the reason."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

import fused_rnn
from fused_rnn import cuda

from .places import BACKENDS, ON_CPU, Place


@pytest.fixture
def place(request) -> Iterator[Place]:
    backend = getattr(request, "param", BACKENDS[0])
    place = Place(torch.device("cpu") if ON_CPU else torch.device("cuda", 0), backend)
    status = fused_rnn.backends()[backend]
    if not status.startswith("available"):
        pytest.skip(f"no GPU to test on: {status}")
    with torch.cuda.device(place.device) if place.is_gpu else contextlib.nullcontext():
        yield place
    if place.is_gpu:
        place.wait()
        cuda.raise_timed_out()


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Turn TF32 off in cuDNN; in torch's products it is off by default."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
