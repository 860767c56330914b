"""What is timed at a point: the fused backends that run there, also with recompute=True, and the rivals that exist."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

import fused_rnn
from benchmarks.speed.candidates import RIVALS, Candidate, fused, obstacle, unrolled

from .points import MAIN_SIZES, Point

GRAPHED_UP_TO = 1024 * 64  # H * B
MODES = ("forward", "training")
OPTIONAL = ("recompute", *RIVALS)


def backends_for(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The fused backends that run here in this dtype."""

    def runs(backend: str) -> bool:
        try:
            fused_rnn.choose_backend(device, dtype, backend)
        except RuntimeError:
            return False
        return True

    return [backend for backend in fused_rnn.backends() if backend != "reference" and runs(backend)]


def candidates(point: Point, device: torch.device, wanted: Sequence[str] = OPTIONAL) -> list[Candidate]:
    """Fused backends first, then rivals; of ``OPTIONAL`` those that are wanted and can be there."""
    found = []
    for backend in backends_for(device, getattr(torch, point.dtype)):
        candidate = replace(fused(point.cell, backend), name=backend, title=f"fused_rnn, {backend}")
        found.append(candidate)
        if "recompute" in wanted:
            saving = partial(candidate.build, recompute=True)
            title = f"{candidate.title}, recompute"
            found.append(replace(candidate, name=f"{backend}-recompute", title=title, build=saving, training_only=True))
    for name, rival in {**RIVALS, "compiled": unrolled}.items():
        if name in wanted and worthwhile(name, point) and obstacle(name, device) is None:
            found.append(rival(point.cell))
    return [candidate for candidate in found if candidate is not None]


def worthwhile(rival: str, point: Point) -> bool:
    """Whether a rival is worth its time at a point."""
    if rival == "graphed":  # beyond, the launches that a graph saves are not what takes the time
        return point.hidden * point.batch <= GRAPHED_UP_TO
    # TorchScript takes longer to compile than all the rest of a point
    return rival != "script" or (point.hidden, point.batch) in MAIN_SIZES
