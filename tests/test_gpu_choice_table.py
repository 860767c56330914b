"""The choice of warp kernels: the ranges of sizes that follow from measurements, and their table in C++."""

import random
import subprocess
from itertools import product
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.gpu.choice import __main__ as choice
from benchmarks.gpu.choice import family, header, results
from benchmarks.gpu.choice.results import Outcome, Results, Times
from benchmarks.gpu.choice.rows import Row, rows
from benchmarks.gpu.kernel.build import SHIM, host_compiler, host_obstacle
from benchmarks.speed import ROOT

HIDDEN, BATCHES = (64, 128, 256, 512), (1, 16, 64)
needs_compiler = pytest.mark.skipif(host_obstacle() is not None, reason=str(host_obstacle()))


# Ranges of sizes --------------------------------------------------------------------------------------------


def outcome(
    hidden: int, batch: int, cluster: float | str, blocks: float | str, features: int = 0, **which: str
) -> Outcome:
    """Make an outcome with these µs of both directions together, or with these obstacles."""
    sides = [Times(obstacle=t) if isinstance(t, str) else Times(t / 4, 3 * t / 4) for t in (cluster, blocks)]
    return Outcome(which.get("cell", "lstm"), which.get("dtype", "bfloat16"), hidden, batch, *sides, features)


def grid(changes: dict | None = None, cluster: float | str = 1.0, blocks: float | str = 8.0) -> list[Outcome]:
    """Make a grid of equal times except for ``changes``, by H and B; None removes a point."""
    changes = changes or {}
    times = {point: changes.get(point, (cluster, blocks)) for point in product(HIDDEN, BATCHES)}
    return [outcome(*point, *both) for point, both in times.items() if both]


def ranges(outcomes: list[Outcome]) -> set[tuple[int, int, int, int]]:
    return {(row.least_hidden, row.most_hidden, row.least_batch, row.most_batch) for row in rows(outcomes)}


def test_a_grid_that_is_ahead_everywhere_is_one_row():
    assert rows(grid()) == [Row("lstm", "bfloat16", True, 64, 512, 1, 64)]
    assert rows([]) == rows(grid(cluster=9.0)) == rows(grid(cluster=8.0)) == []


@pytest.mark.parametrize("how", [(9.0, 8.0), ("refused", 8.0), ("failed", 8.0), (1.0, "failed"), None])
def test_a_point_that_is_not_ahead_wrong_refused_or_not_measured_is_in_no_range(how):
    assert ranges(grid({(512, 64): how})) == {(64, 256, 1, 64), (64, 512, 1, 16)}
    assert ranges(grid({(128, 16): how})) == {(256, 512, 1, 64), (64, 64, 1, 64), (64, 512, 1, 1), (64, 512, 64, 64)}


def test_between_points_the_slowest_cluster_must_be_ahead_of_the_fastest_blocks():
    """Clusters are ahead at every point, but may be slower than blocks between H = 128 and 256."""
    changes = {(h, b): (5.0, 8.0) if h > 128 else (1.0, 4.0) for h, b in product(HIDDEN, BATCHES)}
    assert ranges(grid(changes)) == {(64, 128, 1, 64), (256, 512, 1, 64)}
    changes = {(h, b): (5.0, 8.0) if b > 16 else (1.0, 4.0) for h, b in product(HIDDEN, BATCHES)}
    assert ranges(grid(changes)) == {(64, 512, 1, 16), (64, 512, 64, 64)}
    growing = {(h, b): (3.0**i, 1 + 3.0**i) for i, (h, b) in enumerate(product(HIDDEN, BATCHES))}
    assert ranges(grid(growing)) == {(h, h, b, b) for h, b in growing}  # nothing but the points


@pytest.mark.parametrize(("clusters", "blocks", "covered"), [(8.0, 54.0, True), (8.0, 43.0, False), (9.5, 54.0, False)])
def test_between_batches_parts_take_turns(clusters, blocks, covered):
    """Clusters take longer for 4096 than blocks for 1024, but up to 2048 are two of 1024, and 4096 are two of 2048."""
    times = {64: (1.0, 8.0), 512: (5.0, 10.0), 1024: (clusters, 15.0), 4096: (25.0, blocks)}
    found = rows([outcome(256, batch, *both) for batch, both in times.items()])
    kind = ("lstm", "bfloat16", True, 256, 256)
    apart = [Row(*kind, 64, 1024), Row(*kind, 4096, 4096)]
    assert found == ([Row(*kind, 64, 4096)] if covered else apart)


def test_cells_dtypes_and_rows_in_pieces_are_apart():
    found = [
        outcome(h, b, 1.0 if h % 8 == 0 else 2.0, 8.0, cell=cell, dtype=dtype)
        for cell, dtype, h, b in product(("lstm", "rnn_relu"), ("float16",), (100, 128, 250, 256), (16, 64))
        if cell == "lstm" or h != 250
    ]
    assert rows(found) == [
        Row("lstm", "float16", True, 128, 256, 16, 64),
        Row("lstm", "float16", False, 100, 250, 16, 64),
        Row("rnn_relu", "float16", True, 128, 256, 16, 64),
        Row("rnn_relu", "float16", False, 100, 100, 16, 64),
    ]


def modulated(times: dict, **which: str) -> list[Outcome]:
    """Make outcomes with these µs of cluster and blocks, by H, B and I, for a cell whose input is modulated."""
    kind = {"cell": "multiplicative_lstm", **which}
    return [outcome(h, b, *both, features=i, **kind) for (h, b, i), both in times.items()]


def test_where_the_input_is_modulated_its_features_are_a_size_as_well():
    """Values also travel one by one if either H or I is not a multiple of 8."""
    whole, single = product((128, 256), (16, 64), (8, 128)), product((100, 250), (16,), (8, 128))
    kind = ("multiplicative_lstm", "bfloat16")
    assert rows(modulated(dict.fromkeys([*whole, *single], (1, 8)))) == [
        Row(*kind, True, 128, 256, 16, 64, 8, 128),
        Row(*kind, False, 100, 250, 16, 16, 8, 128),
    ]
    assert rows(modulated({(128, 16, 100): (1, 8)})) == [Row(*kind, False, 128, 128, 16, 16, 100, 100)]


def test_between_features_the_slowest_cluster_must_be_ahead_of_the_fastest_blocks():
    """Clusters are ahead both with few and with many features."""

    def features(with_few: tuple[float, float]) -> set[tuple[int, int]]:
        times = {(h, 16, i): (3, 8) if i > 8 else with_few for h, i in product((128, 256), (8, 128))}
        return {(row.least_features, row.most_features) for row in rows(modulated(times))}

    assert features((1, 2)) == {(8, 8), (128, 128)}
    assert features((1, 4)) == {(8, 128)}


@pytest.mark.parametrize("seed", range(20))
def test_every_point_that_is_ahead_is_in_a_range_and_no_other(seed):
    dice = random.Random(seed)
    found = grid({at: (dice.choice((1.0, 3.0, 9.0)), dice.choice((2.0, 4.0))) for at in product(HIDDEN, BATCHES)})
    covered = {
        (o.hidden, o.batch)
        for row, o in product(rows(found), found)
        if row.least_hidden <= o.hidden <= row.most_hidden and row.least_batch <= o.batch <= row.most_batch
    }
    assert covered == {(o.hidden, o.batch) for o in found if o.ahead}


# The table in C++ -------------------------------------------------------------------------------------------


def of_chip(outcomes: list[Outcome], chip: str = "A chip", digest: str | None = None) -> Results:
    name = common.file_name("choice", chip)
    return Results(name, chip, "2020-02-02", "2.0", digest or family.digest(), tuple(outcomes))


def test_the_table_is_what_the_committed_results_give():
    expected = header.text(results.load())
    assert header.PATH.read_text() == expected, "python -m benchmarks.gpu.choice --write makes it anew"


def test_rows_are_those_of_the_sources_here(tmp_path, monkeypatch, capsys):
    fresh, stale = of_chip(grid(), "One"), of_chip(grid(), "Other", "0" * 64)
    text = header.text([fresh, stale])
    assert '    {CellId::lstm, Modulates::nothing, Type::bfloat16, true, 64, 512, 1, 64, 0, 0, "One"},\n' in text
    assert f"// choice-one.json: One, 2020-02-02, torch 2.0, sources\n    // {family.digest()}\n" in text
    assert "Other" not in text
    more = header.text([fresh, of_chip([outcome(64, 16, 1, 8, cell="gru")], "One")])  # of the same chip
    assert "std::array<Measured, 2> measured{{" in more
    assert '    {CellId::gru, Modulates::nothing, Type::bfloat16, true, 64, 64, 16, 16, 0, 0, "One"},\n' in more
    assert header.text([stale]) == header.text([of_chip([])]) == header.text([])
    monkeypatch.setattr(header, "PATH", tmp_path / "measured.h")
    monkeypatch.setattr(results, "load", lambda: [fresh, stale])
    choice.main(["--write"])
    assert (tmp_path / "measured.h").read_text() == text
    assert capsys.readouterr().out.startswith("choice-other.json was measured with other sources than those here")


QUESTIONS = """
#include "csrc/cuda/cluster/measured.h"
using namespace fused_rnn;
using namespace fused_rnn::cuda;
constexpr bool ahead(CellId cell, Modulates modulates, Type type, int64_t H, int64_t B, int64_t I,
                     std::string_view chip) {
  const Layer layer{cell, modulates, type, false, 1, B, I, H, nullptr, nullptr, {}};
  return cluster::measured_ahead(cluster::measured, layer, chip);
}
"""
ASKED = {
    **{"cell": "gru_reset_after", "modulates": "nothing", "type": "float16"},
    **{"H": 64, "B": 8, "I": 7, "chip": R'"A \"chip\""'},
}
INPUT, HIDDEN_VARIANT = {**ASKED, "cell": "lstm", "modulates": "input", "I": 16}, {**ASKED, "modulates": "hidden"}
HIDDEN_VARIANT |= {"cell": "lstm", "I": 64}
INSIDE = [
    *({**ASKED, **sizes} for sizes in ({}, {"H": 128, "B": 32}, {"H": 104, "B": 9}, {"I": 9999})),
    *({**INPUT, **sizes} for sizes in ({}, {"H": 128, "I": 128}, {"H": 104, "I": 24})),
    *({**HIDDEN_VARIANT, **sizes} for sizes in ({}, {"H": 128, "I": 128})),
]
OUTSIDE = [
    *({**ASKED, **other} for other in ({"cell": "lstm"}, {"cell": "gru"}, {"type": "bfloat16"}, {"chip": '"A"'})),
    *({**ASKED, **sizes} for sizes in ({"H": 100}, {"H": 136}, {"H": 56}, {"B": 7}, {"B": 33})),
    *({**INPUT, **sizes} for sizes in ({"I": 8}, {"I": 17}, {"I": 136}, {"H": 72, "I": 20}, {"H": 136}, {"B": 9})),
    *({**each, "modulates": "nothing"} for each in (INPUT, HIDDEN_VARIANT)),
    *({**HIDDEN_VARIANT, **sizes} for sizes in ({"H": 136, "I": 136}, {"B": 9}, {"H": 100, "I": 100})),
]


def question(asked: dict) -> str:
    named = [f"CellId::{asked['cell']}", f"Modulates::{asked['modulates']}", f"Type::{asked['type']}"]
    return f"ahead({', '.join(map(str, [*named, *(asked[name] for name in ('H', 'B', 'I', 'chip'))]))})"


def sources_with(table: str, folder: Path) -> None:
    """Link the C++ sources here into ``folder``, with another table."""
    own = folder / header.PATH.relative_to(ROOT)
    own.parent.mkdir(parents=True)
    own.write_text(table)
    for here, there in ((header.PATH.parent, own.parent), (header.PATH.parents[1], own.parents[1])):
        for other in here.iterdir():
            if not (there / other.name).exists():
                (there / other.name).symlink_to(other)
    (own.parents[2] / "cells").symlink_to(ROOT / "csrc" / "cells")


@needs_compiler
@pytest.mark.parametrize("empty", [True, False])
def test_the_table_is_asked_for_cell_sizes_and_chip(empty, tmp_path):
    found = [
        *(outcome(h, b, 1.0, 8.0, cell="gru_reset_after", dtype="float16") for h, b in product((64, 128), (8, 32))),
        *(outcome(h, 8, 1.0, 8.0, cell="multiplicative_lstm_hidden", dtype="float16") for h in (64, 128)),
        *modulated({(h, 8, i): (1.0, 8.0) for h, i in product((64, 128), (16, 128))}, dtype="float16"),
    ]
    sources_with(header.text([] if empty else [of_chip(found, 'A "chip"')]), tmp_path)
    lines = [f"static_assert({'!' if empty else ''}{question(asked)});" for asked in INSIDE]
    lines += [f"static_assert(!{question(asked)});" for asked in OUTSIDE]
    source = tmp_path / "asked.cpp"
    source.write_text(QUESTIONS + "\n".join(lines))
    subprocess.run(
        [host_compiler(), "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{tmp_path}", "-fsyntax-only", source],
        check=True,
    )


PROGRAM = """
#include "csrc/cuda/dispatch.h"
using namespace fused_rnn;
using namespace fused_rnn::cuda;
int main() {
  const Layer layer{CellId::lstm, Modulates::input, Type::bfloat16, false, 1, 16, 8, 64, nullptr, nullptr, {}};
  Layer other = layer;
  other.modulates = Modulates::nothing;
  const Chip chip{132, 0, {}, "One"};
  return clusters_are_ahead(layer, chip) && !clusters_are_ahead(other, chip) ? 0 : 1;
}
"""


@needs_compiler
def test_calls_of_every_cell_are_looked_up_in_the_table(tmp_path):
    sources_with(header.text([of_chip(modulated({(64, 16, 8): (1.0, 8.0)}), "One")]), tmp_path)
    source, program = tmp_path / "asks.cpp", tmp_path / "asks"
    source.write_text(PROGRAM)
    command = [host_compiler(), "-std=c++17", f"-I{tmp_path}", f"-I{SHIM}", source, SHIM / "host_shim.cpp"]
    subprocess.run([*command, "-o", program], check=True)
    subprocess.run([program], check=True)
