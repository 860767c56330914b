"""Ranges of sizes in which the kernels of clusters are ahead, from the points at which they were measured.

The points of a cell and a dtype lie on a grid of H x B, and where the input is modulated of H x B x I. Those with
multiples of 8 for H and I, whose rows travel as a piece, and the others, whose values travel one by one, are two grids.
What lies between measured points is concluded from one assumption alone: that neither family becomes faster when a size
grows. So between neighbours of the grid the clusters take no more time than at the largest sizes there, and blocks no
less than at the smallest; where the first is below the second, and all corners are ahead, the clusters are ahead at
every size between them, whatever sizes they pad to and however many tiles take turns. Where it is not, only the corners
themselves, or the sizes between some of them, are ahead. Sizes outside the grid are not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations_with_replacement, product

from .results import CELLS, DTYPES, Outcome

AXES = ("hidden", "batch", "features")
Range = tuple[tuple[int, int], ...]  # of each axis the least and the most, both included


@dataclass(frozen=True)
class Row:
    """Sizes from the least to the most, both included, of which either all travel in whole rows or none does.

    Features are zero where they are not the kernels' business.
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
    """The ranges of one chip; they may overlap."""

    def grid(outcome: Outcome) -> tuple[str, str, bool]:
        return outcome.cell, outcome.dtype, outcome.whole_rows

    return [
        Row(*kind, *chain(*sizes))
        for kind in product(CELLS, DTYPES, (True, False))
        for sizes in _ranges([outcome for outcome in outcomes if grid(outcome) == kind])
    ]


def _ranges(outcomes: Sequence[Outcome]) -> Iterator[Range]:
    """Sizes of one grid, the largest range first, each of which covers something that those before it do not."""
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
    """What a range of indices consists of: the points of the grid, and what lies between neighbours."""
    return product(*(_steps(least, most) for least, most in found))


def _steps(first: int, last: int) -> list[tuple[int, int]]:
    return [(i, i) for i in range(first, last + 1)] + [(i, i + 1) for i in range(first, last)]


def _is_ahead(piece: Range, at: dict[tuple[int, ...], Outcome]) -> bool:
    """Whether the clusters are ahead at all sizes of a piece, by the outcomes at its corners."""
    corners = [at.get(corner) for corner in product(*piece)]  # from the least sizes to the most
    return all(corner and corner.ahead for corner in corners) and corners[-1].cluster.below(corners[0].blocks)
