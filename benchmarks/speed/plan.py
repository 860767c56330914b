"""The one table of measurements: for each kind of results its plan, and the cases of a plan.

Kinds have the names of the files of results: tables of a CPU (``speed``), with a call for each step (``steps``) or
beside every rival (``rivals``); one growing size (``scaling``); sequences of different lengths (``fills``), or made of
episodes (``resets``); and the groups of a GPU (``gpu``), the most informative first. The commands, the pytest-benchmark
suite and the reports read this.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product

from .candidates import RIVALS
from .cases import AXES, CELLS, MODES, STEP_CELLS, STEP_MODES, Case, Shape

CORES = len(os.sched_getaffinity(0))
CPU_DTYPES = ("float32", "bfloat16")
GPU_DTYPES = ("bfloat16", "float32", "float16")


@dataclass(frozen=True)
class Plan:
    """The measurements of one run; passed to the measuring process as JSON."""

    kind: str
    cells: tuple[str, ...]
    names: tuple[str, ...]  # of shapes, of axes, of fills or shares in percent, or of groups
    dtypes: tuple[str, ...] = ("float32",)
    device: str = "cpu"
    threads: tuple[int, ...] = (1,)  # of the CPU; PyTorch's default if empty
    allocator: str = "resident"  # settings of malloc, for times
    backends: tuple[str, ...] = ("cpu",)  # of the fused cells
    candidates: tuple[str, ...] | None = None  # candidates timed beside the fused cells; those of the group if None
    hidden: tuple[int, ...] = ()  # sizes given one by one, instead of groups
    batch: tuple[int, ...] = ()
    steps: int | None = None
    quick: bool = False  # tiny sizes, for a smoke run
    minutes: float | None = None  # after which no measurement begins
    passes: int = 1  # over all sizes that are measured together, because a machine may change its pace between them
    warm_up: int = 5  # rounds of each pass
    rounds: int = 15  # of each pass, at most
    least_rounds: int = 1
    seconds: float | None = None  # for the rounds of a case in each pass, beyond the least number; None for all rounds
    sets: int = 1  # of operands
    patience: float | None = None  # seconds within which a candidate must have run once
    host_calls: int = 0  # successive calls to time the host's part of one
    ceilings: bool = True  # whether times are compared with the limits of the machine

    def cases(self) -> list[Case]:
        """List the cases in the order of measurement."""
        return list(CASES[self.kind](self))

    def parts(self) -> list["Part"]:
        """List the cases that are measured together: those of a sweep, others one by one."""
        if self.kind != "scaling":
            return [Part((case,), cost(case, self.device)) for case in self.cases()]
        sweeps = groupby(self.cases(), key=lambda case: (case.cell, case.group))
        return [Part(tuple(cases), 0.0) for _, cases in sweeps]  # too different to predict each other

    @property
    def whole(self) -> bool:
        """Whether this is all of its kind, or whole groups of it, and so belongs with results for the report."""
        free = {"gpu": ("names",), "scaling": ("dtypes",)}.get(self.kind, ("dtypes", "rounds"))
        free += ("allocator",) if self.kind in TABLES else ("minutes",)
        free += ("device", "backends") if self.kind != "gpu" and self.device != "cpu" else ("device",)
        all_of_it = replace(PLANS[self.kind], **{name: getattr(self, name) for name in free})
        return self == all_of_it and (self.device != "cpu" or self.kind != "gpu")

    @property
    def base(self) -> dict[str, int]:
        """The size from which sizes grow one at a time."""
        return SWEEPS["quick" if self.quick else self.device.partition(":")[0]][0]


@dataclass(frozen=True)
class Part:
    cases: tuple[Case, ...]
    cost: float  # by which a budget predicts its duration


def cost(case: Case, device: str) -> float:
    """Estimate the time of a case, in arbitrary units: its products, and the launches of each step's operations."""
    shape = case.shape
    products = shape.batch * shape.hidden_size * (shape.input_size + shape.hidden_size)
    launches = 500_000 if device == "cpu" else 200_000_000
    compiling = 20 if case.group == "compiled" else 1
    passes = 3 if case.mode.endswith("training") else 1
    return shape.steps * shape.layers * shape.directions * (products + launches) * passes * compiling


# Tables of a CPU ----------------------------------------------------------------------------------------------

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("a", batch=32, input_size=11, hidden_size=128, steps=200, memory=True),
        Shape("b", batch=64, input_size=128, hidden_size=256, steps=128, memory=True),
        Shape("c", batch=20, input_size=650, hidden_size=650, steps=35),
        Shape("d", batch=1, input_size=128, hidden_size=256, steps=100, modes=("forward", "stream")),
        Shape("e", batch=32, input_size=11, hidden_size=128, steps=200, modes=("training",), last_only=True),
    )
}
# Sizes of single steps are those of decoders and policies, in which the host's part of a call dominates.
STEP_SHAPES = {
    f"H{hidden}B{batch}": Shape(f"H{hidden}B{batch}", batch, hidden, hidden, steps=50, modes=STEP_MODES)
    for hidden, batch in ((64, 1), (64, 8), (256, 1), (256, 8))
}


def _tables(plan: Plan) -> Iterator[Case]:
    for name, cell in product(plan.names, plan.cells):
        shape = {**SHAPES, **STEP_SHAPES}[name]
        shape = replace(shape, steps=min(shape.steps, 8)) if plan.quick else shape
        yield from (Case(cell, shape, mode, *plan.dtypes) for mode in shape.modes)


# One size that grows ------------------------------------------------------------------------------------------

# Sizes grow from a middling one up to the largest sensible one, with I = H throughout. Between powers of two are sizes
# that fill no whole tile of a kernel, and sizes whose weights only just fit, or no longer fit, some cache or register
# file, because leaps would be there.
SWEEPS: dict[str, tuple[dict[str, int], dict[str, Sequence[int]]]] = {
    "cpu": (
        {"steps": 64, "batch": 16, "hidden_size": 128, "layers": 1},
        {
            "steps": (16, 32, 64, 128, 256, 512, 1024),
            "batch": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256),
            "hidden_size": (32, 64, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024),
            "layers": (1, 2, 3, 4, 6, 8),
        },
    ),
    "cuda": (
        {"steps": 128, "batch": 32, "hidden_size": 512, "layers": 1},
        {
            "steps": (16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
            "batch": (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024),
            "hidden_size": (
                *(32, 64, 96, 128, 192, 256, 320, 384, 512),
                *(640, 768, 896, 1024, 1280, 1536, 2048, 3072, 4096),
            ),
            "layers": (1, 2, 3, 4, 6, 8),
        },
    ),
    "quick": (
        {"steps": 4, "batch": 2, "hidden_size": 8, "layers": 1},
        {"steps": (4, 8, 12), "batch": (1, 2), "hidden_size": (8, 9), "layers": (1, 2)},
    ),
}


def _sweeps(plan: Plan) -> Iterator[Case]:
    _, along = SWEEPS["quick" if plan.quick else plan.device.partition(":")[0]]
    for cell, axis in product(plan.cells, plan.names):
        for value in along[axis]:
            sizes = {**plan.base, axis: value}
            shape = Shape(f"{AXES[axis]}={value}", input_size=sizes["hidden_size"], **sizes)
            yield from (Case(cell, shape, mode, *plan.dtypes, group=axis) for mode in MODES)


# Sequences of different lengths -------------------------------------------------------------------------------

FILLS = ("1 %", "3 %", "10 %", "30 %", "50 %", "100 %")  # of T·B
LIBRARY_CELLS = ("lstm", "gru_reset_after")  # cells that torch.nn has too, except the RNN


def filled(name: str, steps: int = 400, batch: int = 200, size: int = 64, memory: bool = False) -> Shape:
    """Return a batch whose longest sequence has all steps, while the others fall off by a power law.

    Sorted lengths of text or speech look like that, and for little fill it is the hardest case: most sequences have a
    few steps, and one or two of them run nearly all the time.
    """
    lengths = lengths_that_fill(percent(name) / 100, steps, batch)
    return Shape(name, batch, size, size, steps, memory=memory, lengths=lengths)


def percent(name: str) -> int:
    return int(name.removesuffix(" %"))


def lengths_that_fill(part: float, steps: int, batch: int) -> tuple[int, ...]:
    """Return the lengths of ``batch`` sequences, falling from ``steps``, that fill about this part of steps · batch."""

    def lengths(power: float) -> tuple[int, ...]:
        return tuple(max(1, round(steps * (1 - number / batch) ** power)) for number in range(batch))

    low, high = 0.0, 1000.0  # powers, the first of which fills everything, and the second as little as possible
    for _ in range(50):
        power = (low + high) / 2
        low, high = (power, high) if sum(lengths(power)) > part * steps * batch else (low, power)
    return lengths(low)


def _fills(plan: Plan) -> Iterator[Case]:
    sizes = {"steps": 20, "batch": 10, "size": 8} if plan.quick else {}
    names = [name for name in plan.names if name in ("10 %", "100 %")] if plan.quick else plan.names
    for name, cell in product(names, plan.cells):
        with_memory = ("10 %",) if plan.quick else ("1 %", "10 %", "100 %")
        shape = filled(name, **sizes, memory=cell == plan.cells[0] and name in with_memory)
        yield from (Case(cell, shape, mode, *plan.dtypes, group="fills") for mode in shape.modes)


# Episodes within sequences ------------------------------------------------------------------------------------

SHARES = ("0 %", "1 %", "10 %")  # of all steps, which begin an episode


def episodic(name: str, steps: int = 128, batch: int = 128, size: int = 256) -> Shape:
    return Shape(name, batch, size, size, steps, episodes=percent(name))


def _episodes(plan: Plan) -> Iterator[Case]:
    sizes = {"steps": 12, "batch": 6, "size": 8} if plan.quick else {}
    for name, cell in product(plan.names, plan.cells):
        shape = episodic(name, **sizes)
        yield from (Case(cell, shape, mode, *plan.dtypes, group="resets") for mode in shape.modes)


# A GPU --------------------------------------------------------------------------------------------------------

GPU_SIZES = ((512, 64), (1024, 16), (128, 16), (256, 64))  # (H, B) of the tables, with I = H
GPU_HIDDEN = (64, 128, 256, 512, 1024, 2048)  # further sizes that may be requested
GPU_BATCHES = (1, 16, 64, 256)
GPU_STEPS = 256
SWEPT_CELLS = ("lstm", "gru", "multiplicative_lstm")
GROUPS = {  # as tables name them
    "honest": "Where cuDNN is at its best",  # cuDNN has persistent kernels for these sizes and dtypes
    "people": "Shapes that people use",
    "main": "Every cell in bfloat16",
    "single": "One sequence at a time",
    "ragged": "Sequences of different lengths, packed and padded",
    "grid": "Other dtypes and sizes",
    "rivals": "Beside other people's kernels",  # they compile for minutes, as torch.compile does
    "compiled": "Beside the loop by torch.compile",
    "chosen": "All points",  # of the sizes on the command line
}


def sized(
    hidden: int, batch: int, steps: int = GPU_STEPS, input_size: int | None = None, ragged: bool = False, **sides: int
) -> Shape:
    """Make a shape, with I = H by default; ``ragged`` sequences have lengths from steps down to steps / batch."""
    lengths = tuple(steps - number * steps // batch for number in range(batch)) if ragged else None
    modes = ("forward", "training")
    return Shape(f"H{hidden}B{batch}", batch, input_size or hidden, hidden, steps, modes, lengths=lengths, **sides)


GPU_SHAPES = {
    shape.name: shape
    for shape in (*(sized(*size) for size in GPU_SIZES), replace(sized(512, 1), modes=("forward", "stream")))
}
Point = tuple[str, str, Shape]  # a cell in a dtype at a shape


def _grid(sizes: Sequence[tuple[int, int]], dtypes: Sequence[str], cells: Sequence[str] = tuple(CELLS)) -> list[Point]:
    return [(cell, dtype, sized(*size)) for size, dtype, cell in product(sizes, dtypes, cells)]


def _points() -> dict[str, list[Point]]:
    """Return the points of every group except the chosen one, in the order of measurement."""
    lstm, gru = LIBRARY_CELLS
    main = _grid(GPU_SIZES, ["bfloat16"])
    single = [(lstm, "bfloat16", sized(512, 1)), (lstm, "float32", sized(128, 1)), (gru, "bfloat16", sized(512, 1))]
    around = [size for size in product(GPU_HIDDEN, GPU_BATCHES) if size[0] == 512 or size[1] == 16]
    swept = [point for cell in SWEPT_CELLS for point in _grid(around, ["bfloat16"], [cell])]
    grid = [*_grid(GPU_SIZES, ["float32"]), *_grid(GPU_SIZES, ["float16"], LIBRARY_CELLS), *swept]
    return {
        "honest": [
            *((lstm, "float16", sized(*size, 512)) for size in ((128, 16), (512, 64), (768, 16))),
            *((lstm, "float32", sized(*size, 512)) for size in ((128, 16), (512, 64))),
            *((gru, "float16", sized(*size, 512)) for size in ((128, 16), (512, 64))),
            (gru, "float32", sized(128, 16, 512)),
        ],
        "people": [
            (lstm, "bfloat16", sized(768, 16, 1024)),
            (lstm, "bfloat16", sized(256, 4096, 24, input_size=32)),
            (lstm, "bfloat16", sized(128, 1024, 150, input_size=300, directions=2)),
            (lstm, "bfloat16", sized(256, 32, 512, directions=2)),
            (lstm, "float32", sized(168, 62, 2058)),
            (lstm, "bfloat16", sized(384, 32, layers=2)),
        ],
        "main": main,
        "single": single,
        "ragged": [(lstm, "float32", sized(128, 32, steps, ragged=True)) for steps in (1000, 100, 10, 4000)],
        "grid": [point for point in grid if point not in main + single],
        "rivals": [
            *((cell, "bfloat16", sized(hidden, 16, 1024)) for cell, hidden in ((lstm, 768), (lstm, 128), (gru, 128))),
            (lstm, "float32", sized(128, 16, 1024)),
        ],
        "compiled": _grid(GPU_SIZES[:1], ["bfloat16"], (lstm, "multiplicative_lstm")),
    }


POINTS = _points()
QUICK_POINTS: dict[str, list[Point]] = {  # any CPU runs them in a moment
    "main": [("lstm", "float32", sized(8, 2, 4)), ("multiplicative_gru", "float32", sized(5, 3, 4))],
    "people": [("gru_reset_after", "float32", sized(6, 3, 4, input_size=5, layers=2, directions=2))],
    "ragged": [("lstm", "float32", sized(6, 3, 7, ragged=True))],
}


def _groups(plan: Plan) -> Iterator[Case]:
    """Yield groups of points, or every combination of the given sizes, those of the tables first."""
    points = QUICK_POINTS if plan.quick else POINTS
    if plan.hidden or plan.batch or plan.steps:
        sizes = list(product(plan.hidden or GPU_HIDDEN, plan.batch or GPU_BATCHES, [plan.steps or GPU_STEPS]))
        sizes.sort(key=lambda size: GPU_SIZES.index(size[:2]) if size[:2] in GPU_SIZES else len(GPU_SIZES))
        points = {"chosen": _grid(sizes, plan.dtypes, plan.cells)}
    for group, found in points.items():
        for cell, dtype, shape in found:
            if cell in plan.cells and dtype in plan.dtypes and group in (*plan.names, "chosen"):
                yield from (Case(cell, shape, mode, dtype, group) for mode in shape.modes)


TABLES = ("speed", "steps", "rivals")
OPTIONS = {  # of the command, for kinds that have one
    "steps": "--single-steps",
    "rivals": "--all-rivals",
    "fills": "--fills",
    "resets": "--resets",
    "scaling": "--sweep",
}
CASES: dict[str, Callable[[Plan], Iterator[Case]]] = {
    **dict.fromkeys(TABLES, _tables),
    "scaling": _sweeps,
    "fills": _fills,
    "resets": _episodes,
    "gpu": _groups,
}
PLANS = {
    plan.kind: plan
    for plan in (
        Plan("speed", tuple(CELLS), tuple(SHAPES), threads=tuple(range(1, min(2, CORES) + 1))),
        # Python and dispatch dominate a single step, and do not depend on threads
        Plan("steps", tuple(STEP_CELLS), tuple(STEP_SHAPES), ceilings=False),
        # compiling a loop takes a minute, so few points have all rivals
        Plan(
            "rivals", ("lstm", "gru", "multiplicative_lstm", "multiplicative_gru"), ("a", "d"), candidates=tuple(RIVALS)
        ),
        Plan("scaling", tuple(CELLS), tuple(AXES), minutes=20.0, passes=3, warm_up=1, rounds=5, seconds=0.25),
        Plan("fills", LIBRARY_CELLS, FILLS, warm_up=1, rounds=5, ceilings=False),
        Plan("resets", LIBRARY_CELLS, SHARES, warm_up=1, rounds=5, ceilings=False),
        Plan(
            "gpu",
            tuple(CELLS),
            tuple(POINTS),
            GPU_DTYPES,
            device="cuda",
            threads=(),
            allocator="default",
            backends=(),
            minutes=9.0,
            warm_up=3,
            rounds=30,
            least_rounds=5,
            seconds=1.5,
            sets=2,
            patience=120.0,
            host_calls=20,
        ),
    )
}
