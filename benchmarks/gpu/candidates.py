"""What is timed at a point: the fused backends that run there, also with recompute=True, and the rivals that exist."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

import fused_rnn
from benchmarks.speed.candidates import LIBRARIES, RIVALS, Candidate, Packed, fused, obstacle, unrolled

from .points import Point

GRAPHED_UP_TO = 1024 * 64  # H * B
MODES = ("forward", "training")
OPTIONAL = ("recompute", *RIVALS)
LOOPS = ("recompute", "torch", "eager", "graphed")  # TorchScript takes longer to compile than all the rest of a point
WANTED = {  # by group, where nothing is asked for
    "honest": ("torch",),
    "people": ("torch",),
    "ragged": ("torch",),
    "rivals": ("torch", *LIBRARIES),
}


def wanted_at(point: Point, asked: Sequence[str] | None) -> Sequence[str]:
    """What of ``OPTIONAL`` is timed beside the fused backends, if it can be there: what is asked for, if anything."""
    return WANTED.get(point.group, LOOPS) if asked is None else asked


def backends_for(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The fused backends that run here in this dtype."""

    def runs(backend: str) -> bool:
        try:
            fused_rnn.choose_backend(device, dtype, backend)
        except RuntimeError:
            return False
        return True

    return [backend for backend in fused_rnn.backends() if backend != "reference" and runs(backend)]


def candidates(
    point: Point, device: torch.device, wanted: Sequence[str] = OPTIONAL, backends: Sequence[str] | None = None
) -> list[Candidate]:
    """Fused backends first, of ``backends`` if they are given, then rivals: those wanted of what can be there.

    Where lengths differ, each takes its sequences packed, and once more padded, as if all were of full length.
    """
    found = []
    for backend in backends_for(device, getattr(torch, point.dtype)):
        if backends and backend not in backends:
            continue
        candidate = replace(fused(point.cell, backend), name=backend, title=f"fused_rnn, {backend}")
        found.append(candidate)
        if "recompute" in wanted:
            saving = partial(candidate.build, recompute=True)
            title = f"{candidate.title}, recompute"
            found.append(replace(candidate, name=f"{backend}-recompute", title=title, build=saving, training_only=True))
    for name, rival in {**RIVALS, "compiled": unrolled}.items():
        if name in wanted and worthwhile(name, point) and obstacle(name, device) is None:
            found.append(rival(point.cell))
    found = [candidate for candidate in found if candidate is not None]
    return [way for candidate in found for way in packed_and_padded(candidate, point)] if point.ragged else found


def packed_and_padded(candidate: Candidate, point: Point) -> list[Candidate]:
    packed = replace(candidate, ready=Packed, translate=partial(Packed.translate, point.shape))
    return [
        replace(packed, title=f"{candidate.title}, packed"),
        replace(candidate, name=f"{candidate.name}-padded", title=f"{candidate.title}, padded"),
    ]


def worthwhile(rival: str, point: Point) -> bool:
    """Whether a rival can run a point, and is worth its time there."""
    if rival != "torch" and (point.ragged or point.directions > 1):
        return False
    if rival in LIBRARIES:
        return point.layers == 1 and point.dtype in LIBRARIES[rival].dtypes
    if rival == "graphed":  # beyond, the launches that a graph saves are not what takes the time
        return point.hidden * point.batch <= GRAPHED_UP_TO
    return True
