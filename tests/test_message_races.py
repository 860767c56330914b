"""The exchange by messages under sanitizers on the host shim, and with faults put in, each of which must be seen.

The programs compare what comes by messages with what comes in clusters, bit by bit.
"""

import re
from itertools import product
from pathlib import Path

import pytest

from .host_kernels import Way, changed_tree, needs_compiler, run_program
from .test_cluster_races import RACE, SPLIT, Fault, compile_program

pytestmark = needs_compiler
# Two shares of K in two blocks; and 16 sequences in four. One team has all tiles.
SIZES = {8: "Size<64,2,2,1>,TeamSize<64,2,2,1>", 16: "Size<64,4,1,2>,TeamSize<64,4,1,2>"}
STEPS = "-DFUSED_RNN_MESSAGE_STEPS=4"
MESSAGES, FORWARD, BACKWARD = (
    f"csrc/cuda/{name}.h" for name in ("exchange/messages", "cluster/forward", "cluster/backward")
)
WRONG = "NaN among the results|other results than in clusters|a block did not come in time"


def way(sequences: int) -> Way:
    return Way({8: 2, 16: 4}[sequences], 232_448, f"exchange=messages,sequences={sequences}")


@pytest.mark.parametrize(("sanitizer", "tiles"), [("thread", (8, 16)), ("address,undefined", (8,))])
def test_sanitizers_find_nothing(tmp_path, sanitizer, tiles):
    cells = ("Lstm", "GruResetAfter", "Rnn<Relu>")
    sizes = [SIZES[sequences] for sequences in tiles]
    program = compile_program(tmp_path / "races", sanitizer, *sizes, cells=cells, flags=[STEPS])
    for sequences, seed in product(tiles, (1, 2)):
        run = run_program(program, way(sequences), seed)
        assert run.returncode == 0, run.stderr[-4000:]


FAULTS = {
    # The places of messages
    "states-not-filled-again": Fault(MESSAGES, r"Base::fill\(to, slot_rows\)", "void()", WRONG),
    "sums-not-filled-again": Fault(MESSAGES, r"Base::fill\(to, slot_sums\)", "void()", WRONG),
    "half-of-the-places-filled": Fault(MESSAGES, r"i < third; \+\+i", "i < third / 2; ++i", WRONG),
    "filled-too-early": Fault(MESSAGES, r"(count_ / third \+ )1", r"\g<1>2", RACE, "thread"),
    "filled-before-others-have-said-so": Fault(MESSAGES, "count_ % third == 1", "count_ % third == 0", RACE, "thread"),
    "two-thirds": Fault(MESSAGES, "thirds = 3", "thirds = 2", RACE, "thread"),
    "no-wait-for-places": Fault(MESSAGES, r"if \(message % third != 0 \|\| message == 0\)", "", RACE, "thread"),
    "wait-for-one-phase-less": Fault(
        MESSAGES, r"message / third \* arrivals", "(message / third - 1) * arrivals", RACE, "thread"
    ),
    "wait-for-one-less": Fault(MESSAGES, r"(message / third \* arrivals);", r"\1 - 1;", RACE, "thread"),
    "relaxed-wait-for-places": Fault(MESSAGES, "load_acquire", "load_relaxed", RACE, "thread"),
    "said-without-release": Fault(MESSAGES, r"add_release\(counter_, 1\)", "atomicAdd(counter_, 1u)", RACE, "thread"),
    "said-before-lanes-have-filled": Fault(MESSAGES, r"__syncwarp\(\);(\s+if \(lane == 0\))", r"\1", RACE, "thread"),
    "said-before-warps-have-filled": Fault(
        MESSAGES,
        r"(bool come = Base::take_turn\(\);)(.+?)\n    if \(fills && alive\(\) && threadIdx.x == 0\)[^;]*;",
        r"\1\n    if (fills && threadIdx.x == 0) Base::say_filled();\2",
        RACE,
        "thread",
    ),
    # Messages
    "not-looked-at": Fault(MESSAGES, r"whole &= (words\.values\[i\] != no_message;)", r"whole |= \1", WRONG),
    "first-word-looked-at": Fault(MESSAGES, r"(i < )count(; \+\+i\) whole &= words)", r"\g<1>1\2", WRONG),
    "read-from-the-first-slot": Fault(MESSAGES, r"(slot = places_ \+ )Base::slot\(\)", r"\1 0", WRONG, times=2),
    "half-of-the-sequences-stored": Fault(
        FORWARD, r"state_\.push\(n, ", "if (n == 0) state_.push(0, ", "a block did not come in time"
    ),
    "pushed-in-the-last-step": Fault(FORWARD, r"if \(!last\)( state_\.push)", r"if (!last || !Team::ordered)\1", WRONG),
    # Shared memory
    "one-copy-of-16-sequences": Fault(MESSAGES, r"count\(\) % 2 \* copy_bytes", "count() * 0", RACE, "thread", 2),
    "no-barrier-of-a-share": Fault(MESSAGES, r"barrier_sync\([^;]*;", "", RACE, "thread"),
    "rows-of-another-share": Fault(FORWARD, r"state_\.wait\(share_", "state_.wait(0", "threads|" + RACE, "thread"),
    "no-barrier-before-sums-are-added": Fault(
        MESSAGES, r"__syncthreads_and\(come\)", "come", RACE, "thread"
    ),
    "no-barrier-between-tiles-of-16-sequences": Fault(
        MESSAGES, r"(start\(const F& fill\) const \{\s+)__syncthreads\(\);", r"\1", RACE, "thread"
    ),
    "no-barrier-after-the-initial-state": Fault(
        MESSAGES, r"(fill\(\);\s+)__syncthreads\(\);", r"\1", RACE, "thread"
    ),
    "no-barrier-before-the-product": Fault(
        BACKWARD, r"__syncthreads\(\);(\s+if constexpr \(Shape::phases == 1\))", r"\1", RACE, "thread"
    ),
    "no-wait-for-sums-that-are-taken": Fault(
        FORWARD, r"recurrent \* octets, Team::ordered", "recurrent * octets", RACE, "thread", cell="Rnn<Relu>"
    ),
    "one-buffer-of-shares": Fault(SPLIT, r"turn_ \* buffer", "0 * buffer", RACE, "thread", 2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where all programs go, because the shim's runtime is made once in a folder."""
    return tmp_path_factory.mktemp("faulty")


@pytest.mark.parametrize("name", FAULTS)
def test_seeded_faults_are_reported(folder, tmp_path, name):
    fault = FAULTS[name]
    tree = changed_tree(tmp_path, fault.file, fault.pattern, fault.replacement, fault.times)
    sequences = 16 if "sequences" in name else 8
    program = compile_program(
        folder / name, fault.sanitizer, SIZES[sequences], cells=[fault.cell], flags=[STEPS], tree=tree
    )
    run = run_program(program, way(sequences), seed=2)
    assert run.returncode != 0
    assert re.search(fault.report, run.stderr), run.stderr[-4000:]
