"""What is measured: from a middling size one of T, B, H and the number of layers grows, up to the largest sensible.

I = H throughout. Between powers of two lie sizes that fill no whole tile of a kernel, and sizes whose weights only just
fit, or no longer fit, some cache or register file: that is where leaps would be.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.speed.cases import CELLS, Case, Shape

AXES = {"steps": "T", "batch": "B", "hidden_size": "H", "layers": "layers"}
MODES = ("training", "forward")
Sizes = dict[str, tuple[int, ...]]
CPU_BASE = {"steps": 64, "batch": 16, "hidden_size": 128, "layers": 1}
CPU_SIZES: Sizes = {
    "steps": (16, 32, 64, 128, 256, 512, 1024),
    "batch": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256),
    "hidden_size": (32, 64, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024),
    "layers": (1, 2, 3, 4, 6, 8),
}
GPU_BASE = {"steps": 128, "batch": 32, "hidden_size": 512, "layers": 1}
GPU_SIZES: Sizes = {
    "steps": (16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
    "batch": (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024),
    "hidden_size": (32, 64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 896, 1024, 1280, 1536, 2048, 3072, 4096),
    "layers": (1, 2, 3, 4, 6, 8),
}
QUICK_BASE = {"steps": 4, "batch": 2, "hidden_size": 8, "layers": 1}
QUICK_SIZES: Sizes = {"steps": (4, 8, 12), "batch": (1, 2), "hidden_size": (8, 9), "layers": (1, 2)}


@dataclass(frozen=True)
class Plan:
    """What one run measures and how; travels to the child process as JSON.

    Every sweep is passed over several times, so that a machine that slows down for a while slows no single size; in
    each pass the candidates of a size take turns.
    """

    cells: tuple[str, ...] = tuple(CELLS)
    axes: tuple[str, ...] = tuple(AXES)
    backend: str = "cpu"
    device: str = "cpu"
    dtype: str = "float32"
    minutes: float = 20.0
    passes: int = 3
    warm_up: int = 1  # rounds of a size in each pass
    rounds: int = 5  # of a size in each pass, at most
    seconds: float = 0.25  # for the rounds of a size in each pass, beyond the first
    quick: bool = False  # a few tiny sizes, for a smoke run

    @property
    def table(self) -> tuple[dict[str, int], Sizes]:
        """The size that everything starts from, and the sizes along each axis."""
        if self.quick:
            return QUICK_BASE, QUICK_SIZES
        return (CPU_BASE, CPU_SIZES) if self.device == "cpu" else (GPU_BASE, GPU_SIZES)

    def sweeps(self) -> list["Sweep"]:
        return [Sweep(cell, axis, tuple(self._shapes(axis))) for cell in self.cells for axis in self.axes]

    def _shapes(self, axis: str) -> Iterator[Shape]:
        base, along = self.table
        for value in along[axis]:
            sizes = {**base, axis: value}
            yield Shape(f"{AXES[axis]}={value}", input_size=sizes["hidden_size"], modes=MODES, **sizes)


@dataclass(frozen=True)
class Sweep:
    cell: str
    axis: str
    shapes: tuple[Shape, ...]

    @property
    def cost(self) -> float:
        return sum(case.cost for case in self.cases())

    def cases(self) -> list[Case]:
        return [Case(self.cell, shape, mode) for shape in self.shapes for mode in shape.modes]
