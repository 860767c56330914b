"""Ranges of sizes in which the kernels of clusters are ahead, from the points at which they were measured.

The points of a cell and a dtype lie on a grid of H x B. Those with H a multiple of 8, whose rows travel as a piece, and
the others, whose values travel one by one, are two grids. What lies between measured points is concluded from one
assumption alone: that neither family becomes faster when H or B grow. So between neighbours of the grid the clusters
take no more time than at the largest sizes there, and blocks no less than at the smallest; where the first is below
the second, and all corners are ahead, the clusters are ahead at every size between them, whatever sizes they pad to
and however many tiles take turns. Where it is not, only the corners themselves, or the sizes between two of them, are
ahead. Sizes outside the grid are not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

from .results import CELLS, DTYPES, Outcome

Range = tuple[int, int, int, int]  # the least and the most of H, the least and the most of B, all included


@dataclass(frozen=True)
class Row:
    """Sizes from the least to the most, both included; of H either all multiples of 8 or all others."""

    cell: str
    dtype: str
    whole_rows: bool
    least_hidden: int
    most_hidden: int
    least_batch: int
    most_batch: int


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """The ranges of one chip; they may overlap."""

    def grid(outcome: Outcome) -> tuple[str, str, bool]:
        return outcome.cell, outcome.dtype, outcome.hidden % 8 == 0

    return [
        Row(*kind, *sizes)
        for kind in product(CELLS, DTYPES, (True, False))
        for sizes in _ranges([outcome for outcome in outcomes if grid(outcome) == kind])
    ]


def _ranges(outcomes: Sequence[Outcome]) -> Iterator[Range]:
    """Sizes of one grid, the largest range first, each of which covers something that those before it do not."""
    hidden, batches = sorted({o.hidden for o in outcomes}), sorted({o.batch for o in outcomes})
    at = {(hidden.index(o.hidden), batches.index(o.batch)): o for o in outcomes}
    spans = [list(combinations_with_replacement(range(len(sizes)), 2)) for sizes in (hidden, batches)]
    pieces = {(*of_h, *of_b): set(_pieces(*of_h, *of_b)) for of_h, of_b in product(*spans)}
    missing = {piece for piece in set().union(*pieces.values()) if not _is_ahead(piece, at)}
    covered = set()
    for least_h, most_h, least_b, most_b in sorted(pieces, key=lambda found: -len(pieces[found])):
        inside = pieces[least_h, most_h, least_b, most_b]
        if not inside & missing and not inside <= covered:
            covered |= inside
            yield hidden[least_h], hidden[most_h], batches[least_b], batches[most_b]


def _pieces(least_h: int, most_h: int, least_b: int, most_b: int) -> Iterator[Range]:
    """What a range of indices consists of: the points of the grid, and what lies between two or four neighbours."""
    for of_h, of_b in product(_steps(least_h, most_h), _steps(least_b, most_b)):
        yield *of_h, *of_b


def _steps(first: int, last: int) -> list[tuple[int, int]]:
    return [(i, i) for i in range(first, last + 1)] + [(i, i + 1) for i in range(first, last)]


def _is_ahead(piece: Range, at: dict[tuple[int, int], Outcome]) -> bool:
    """Whether the clusters are ahead at all sizes of a piece, by the outcomes at its corners."""
    least_h, most_h, least_b, most_b = piece
    corners = [at.get(corner) for corner in product((least_h, most_h), (least_b, most_b))]
    return all(corner and corner.ahead for corner in corners) and corners[-1].cluster.below(corners[0].blocks)
