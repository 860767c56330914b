"""Ranges of sizes in which warp kernels are ahead, from the points at which they were measured.

The points of a cell and a dtype form a grid of H x B, or of H x B x I for modulated inputs. Multiples of 8 for H and I,
whose rows travel as a piece, and other sizes, whose values travel one by one, form separate grids. The sizes between
measured points follow from two assumptions: neither family becomes faster when a size grows, and a batch takes no
longer than its parts one after the other. So between neighbours of the grid the clusters take no more time than at the
largest sizes there, nor than smaller batches that make up the batch; and blocks take no less than at the smallest
sizes, nor than the larger batch there divided by the number of such batches that make it up. If the first bound is
below the second at every batch, and all corners are ahead, the clusters are ahead at every size between them, whatever
sizes they pad to and however many tiles take turns. Otherwise only the corners themselves, or the sizes between some of
them, are ahead. Sizes outside the grid are not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations_with_replacement, product

from .results import CELLS, DTYPES, Outcome

AXES = ("hidden", "batch", "features")
Range = tuple[tuple[int, int], ...]  # minimum and maximum of each axis, both included


@dataclass(frozen=True)
class Row:
    """Sizes between a minimum and a maximum, both included, which travel either all in whole rows or all one by one.

    Features are zero for cells whose kernels do not depend on them.
    """

    cell: str
    dtype: str
    whole_rows: bool
    least_hidden: int
    most_hidden: int
    least_batch: int
    most_batch: int
    least_features: int = 0
    most_features: int = 0


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """Return the ranges of one chip; they may overlap."""

    def grid(outcome: Outcome) -> tuple[str, str, bool]:
        return outcome.cell, outcome.dtype, outcome.whole_rows

    return [
        Row(*kind, *chain(*sizes))
        for kind in product(CELLS, DTYPES, (True, False))
        for sizes in _ranges([outcome for outcome in outcomes if grid(outcome) == kind])
    ]


def _ranges(outcomes: Sequence[Outcome]) -> Iterator[Range]:
    """Yield ranges of sizes of one grid, the largest first, each with sizes that the earlier ones do not cover."""
    axes = [sorted({getattr(outcome, axis) for outcome in outcomes}) for axis in AXES]
    at = {tuple(sizes.index(getattr(o, axis)) for axis, sizes in zip(AXES, axes)): o for o in outcomes}
    spans = [list(combinations_with_replacement(range(len(sizes)), 2)) for sizes in axes]
    pieces = {found: set(_pieces(found)) for found in product(*spans)}
    missing = {piece for piece in set().union(*pieces.values()) if not _is_ahead(piece, at)}
    covered = set()
    for found in sorted(pieces, key=lambda found: -len(pieces[found])):
        inside = pieces[found]
        if not inside & missing and not inside <= covered:
            covered |= inside
            yield tuple((sizes[least], sizes[most]) for sizes, (least, most) in zip(axes, found))


def _pieces(found: Range) -> Iterator[Range]:
    """Yield the pieces of a range of indices: the points of the grid, and the gaps between neighbours."""
    return product(*(_steps(least, most) for least, most in found))


def _steps(first: int, last: int) -> list[tuple[int, int]]:
    return [(i, i) for i in range(first, last + 1)] + [(i, i + 1) for i in range(first, last)]


def _is_ahead(piece: Range, at: dict[tuple[int, ...], Outcome]) -> bool:
    """Whether the clusters are ahead at all sizes of a piece, by the outcomes at its corners."""
    corners = [at.get(corner) for corner in product(*piece)]
    return all(corner and corner.ahead for corner in corners) and _is_ahead_between(piece, at)


def _is_ahead_between(piece: Range, at: dict[tuple[int, ...], Outcome]) -> bool:
    """Whether the upper bound of clusters is below the lower bound of blocks at every batch."""
    hidden, batches, features = piece
    fast, fast_most = (at[hidden[0], batch, features[0]] for batch in batches)
    slow = {o.batch: o.cluster.total for (h, _, i), o in at.items() if (h, i) == (hidden[1], features[1]) and o.ahead}
    return slow[fast_most.batch] < fast.blocks.total or all(
        _most(batch, slow) < max(fast.blocks.total, fast_most.blocks.total / -(-fast_most.batch // batch))
        for batch in range(fast.batch, fast_most.batch + 1)
    )


def _most(batch: int, times: dict[int, float]) -> float:
    """Return an upper bound for a batch: the next larger one, or smaller ones and one for the rest."""

    def whole(some: int) -> float:
        return times[min(other for other in times if other >= some)] if some else 0.0

    parts = (batch // part * time + whole(batch % part) for part, time in times.items() if part < batch)
    return min([whole(batch), *parts])
