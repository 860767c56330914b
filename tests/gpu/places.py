"""The devices and backends of these tests, and sizes that make the kernels divide their work in every way."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fused_rnn import choice, cuda

from ..conftest import Operands, Shape, operands


@dataclass(frozen=True)
class Place:
    """A device and the backend under test there."""

    device: torch.device
    backend: str

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def operands(self, cell: str, shape: Shape, **options) -> Operands:
        return operands(cell, shape, **options).on(self.device)

    def stream(self) -> "torch.cuda.Stream | None":
        return torch.cuda.Stream(self.device) if self.is_gpu else None

    def on_stream(self, stream) -> contextlib.AbstractContextManager:
        return torch.cuda.stream(stream) if self.is_gpu else contextlib.nullcontext()

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def captured(self, function: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
        """Return the function as a CUDA graph: a call replays it, and returns the same tensors each time."""
        if not self.is_gpu:
            return function
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(2):
                function()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = function()

        def replay() -> list[Tensor]:
            for result in results:
                result.fill_(float("nan"))
            graph.replay()
            self.wait()
            cuda.raise_timed_out()
            return results

        return replay


ON_CPU = os.environ.get("FUSED_RNN_GPU_TESTS") == "cpu"
BACKENDS = ["cpu"] if ON_CPU else ["cuda", "triton"]
# Tests that need no more than float32 run on every GPU backend; the others run on the first.
EVERY_BACKEND = pytest.mark.parametrize("place", BACKENDS, indirect=True)


def sized(on_gpu: Shape, on_cpu: Shape) -> Shape:
    """Return a shape whose size matters, or a small one where the tests themselves are tested."""
    return on_cpu if ON_CPU else on_gpu


# A block per tile of sequences; several blocks; many; weights that do not fit the chip; odd sizes and many tiles.
SHAPES = {
    "one-block": Shape(9, 5, 12, 32),
    "some-blocks": Shape(7, 3, 33, 200),
    "many-blocks": sized(Shape(6, 20, 64, 1024), Shape(6, 20, 6, 24)),
    "streamed": sized(Shape(3, 5, 40, 5200), Shape(3, 5, 4, 52)),
    "odd": Shape(11, 67, 37, 45),
    "tiles": sized(Shape(2, 3000, 3, 24), Shape(2, 300, 3, 24)),
}
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def skip_unless_it_computes_in(place: Place, dtype: torch.dtype) -> None:
    if dtype not in choice.DTYPES[place.backend]:
        pytest.skip(f"{place.backend} does not compute in {dtype}")
