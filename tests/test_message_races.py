"""The exchange by messages under sanitizers on the host shim, and with seeded faults, each of which must be reported.

Programs without a sanitizer compare the results by messages with those in clusters, bit by bit.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from .conftest import some_of
from .host_kernels import Way, changed, changed_tree, needs_compiler, run_program
from .test_cluster_races import RACE, Fault, compile_program

pytestmark = needs_compiler
# Two shares of K in two blocks, or 16 sequences in four blocks. One team has all tiles.
SIZES = {8: "64,2,2,1", 16: "64,4,1,2"}
MESSAGES, FORWARD = "csrc/cuda/exchange/messages.h", "csrc/cuda/cluster/forward.h"
WRONG = "NaN among the results|other results than in clusters|a block did not come in time"


def way(sequences: int) -> Way:
    return Way({8: 2, 16: 4}[sequences], 232_448, f"exchange=messages,sequences={sequences}")


def compile_messages(target: Path, sanitizer: str | None, *sequences: int, cells: Sequence[str], **tree: Path) -> Path:
    """Compile a program that runs some cells for numbers of sequences; without a sanitizer it compares results."""
    sizes = [f"TeamSize<{SIZES[each]}>" for each in sequences]
    sizes += [] if sanitizer else [f"Size<{SIZES[each]}>" for each in sequences]
    flags = ["-DFUSED_RNN_MESSAGE_STEPS=4", *([] if sanitizer else ["-DCOMPARED"])]
    return compile_program(target, sanitizer, *sizes, cells=cells, flags=flags, **tree)


def test_results_are_those_of_clusters(tmp_path):
    program = compile_messages(tmp_path / "compared", None, 8, 16, cells=["Lstm"])
    for sequences in (8, 16):
        run = run_program(program, way(sequences), seed=2)
        assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("sanitizer", "cell", "sequences"),
    some_of(
        [("thread", "Lstm", 8), ("thread", "Lstm", 16), ("thread", "Rnn<Relu>", 8), ("address,undefined", "Lstm", 16)],
        ("thread", "Lstm", 8),
    ),
    ids=["thread-lstm-8", "thread-lstm-16", "thread-rnn_relu-8", "address-lstm-16"],
)
def test_sanitizers_find_nothing(tmp_path, sanitizer, cell, sequences):
    program = compile_messages(tmp_path / "watched", sanitizer, sequences, cells=[cell])
    for seed in (1, 2):
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
    "read-from-the-first-slot": Fault(MESSAGES, r"(first = places_ \+ )slot", r"\1 0 * slot", WRONG),
    "pushed-in-the-last-step": Fault(FORWARD, r"(h_\[n\]\[1\], )!last", r"\1!last || !Team::ordered", WRONG),
    # Shared memory
    "one-copy-of-16-sequences": Fault(MESSAGES, r"count\(\) % 2 \* copy_bytes", "count() * 0", RACE, "thread", 3),
    "no-barrier-of-a-share": Fault(MESSAGES, r"barrier_sync\([^;]*;", "", RACE, "thread"),
    "no-barrier-before-sums-are-added": Fault(MESSAGES, r"__syncthreads_and\(come\)", "come", RACE, "thread"),
    "no-barrier-between-tiles-of-16-sequences": Fault(
        MESSAGES, r"(start\(const F& fill\) const \{\s+)__syncthreads\(\);", r"\1", RACE, "thread"
    ),
    "no-wait-for-sums-that-are-taken": Fault(
        FORWARD, r"recurrent \* octets, Team::ordered", "recurrent * octets", RACE, "thread", cell="Rnn<Relu>"
    ),
}


def test_faults_have_their_places_in_the_sources():
    for fault in FAULTS.values():
        changed(fault.file, fault.pattern, fault.replacement, fault.times)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Put all programs into one folder, because the shim's runtime is compiled once per folder."""
    return tmp_path_factory.mktemp("faulty")


@pytest.mark.parametrize("name", some_of(FAULTS, "relaxed-wait-for-places"))
def test_seeded_faults_are_reported(folder, tmp_path, monkeypatch, name):
    monkeypatch.setenv("TSAN_OPTIONS", "halt_on_error=1:atexit_sleep_ms=0")
    fault = FAULTS[name]
    tree = changed_tree(tmp_path, fault.file, fault.pattern, fault.replacement, fault.times)
    sequences = 16 if "sequences" in name else 8
    program = compile_messages(folder / name, fault.sanitizer, sequences, cells=[fault.cell], tree=tree)
    run = run_program(program, way(sequences), seed=2)
    assert run.returncode != 0
    assert re.search(fault.report, run.stderr), run.stderr[-4000:]
