"""The table of ranges in which warp kernels are chosen, in the form of csrc/cuda/cluster/measured.h."""

import json
from collections.abc import Sequence

from benchmarks.gpu.kernel import calls
from benchmarks.speed import ROOT
from fused_rnn.cells import CELLS

from . import family
from .results import Results
from .rows import Row, rows

PATH = ROOT / "csrc" / "cuda" / "cluster" / "measured.h"
TEXT = """\
// The sizes for which warp kernels were measured to be faster than block kernels, and right. Made by
// `python -m benchmarks.gpu.choice --write` from benchmarks/results/choice-*.json: rows are dropped when the sources
// that they were measured with change, unless --carry-over finds that their machine code is the same.
#pragma once

#include "choice.h"

namespace fused_rnn::cuda::cluster {{

{table}

}}  // namespace fused_rnn::cuda::cluster
"""


def stale(results: Results) -> bool:
    """Whether results were measured with other sources of the family, and not carried over to the present ones."""
    return not results.valid_for(family.digest())


def carried(results: Results) -> bool:
    """Whether results were measured with other sources, from which the compiler makes the same machine code."""
    return results.digest != family.digest() and not stale(results)


def text(found: Sequence[Results]) -> str:
    """Return the header for all results that are valid for the present sources."""
    valid = [(results, rows(results.outcomes)) for results in found if not stale(results)]
    number = sum(len(ranges) for _, ranges in valid)
    name = f"inline constexpr std::array<Measured, {number}> measured"
    if not number:
        return TEXT.format(table=f"{name}{{}};")
    blocks = ["\n".join([_origin(results), *(_row(row, results.chip) for row in ranges)]) for results, ranges in valid]
    return TEXT.format(table="\n".join([f"{name}{{{{", *blocks, "}};"]))


def _origin(results: Results) -> str:
    ignored = " and ".join(results.but_for)
    what = f"instructions but for {ignored} are those" if ignored else "machine code is that"
    same = f",\n    // whose {what} of the sources here" if carried(results) else ""
    return (
        f"    // {results.name}: {results.chip}, {results.date}, torch {results.torch}, sources\n"
        f"    // {results.digest}{same}"
    )


def _row(row: Row, chip: str) -> str:
    cell = f"CellId::{calls.base_of(row.cell)}, Modulates::{CELLS[row.cell].modulates or 'nothing'}"
    sizes = f"{row.least_hidden}, {row.most_hidden}, {row.least_batch}, {row.most_batch}"
    values = (cell, f"Type::{row.dtype}", str(row.whole_rows).lower(), sizes, row.least_features, row.most_features)
    return f"    {{{', '.join(map(str, values))}, {json.dumps(chip)}}},"
