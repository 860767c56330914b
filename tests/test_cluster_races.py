"""The warp kernels under sanitizers on the host shim, and with faults put in, each of which must be detected."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import some_of
from .host_kernels import Way, changed, changed_tree, compile_calls, needs_compiler, run_program
from .test_cluster_kernels import WAITS

pytestmark = needs_compiler
# Two shares of K, which also divide 16 sequences; or, with 16 and features, some blocks that have none. A program runs
# the size with the forced number of sequences, with features if the cell modulates its input.
SIZES = {8: "Size<64,2,2,1>,Size<64,2,2,1,64>", 16: "Size<64,2,2,2>,Size<64,4,1,2,32>"}
CELLS = {
    "one-phase": ("Lstm", "GruResetAfter", "Rnn<Relu>"),
    "two-phases": ("Gru", "MultiplicativeLstm"),
    "more-phases": ("MultiplicativeLstmHidden", "MultiplicativeGru"),
}
FORWARD, RESULTS, RESET, MODULATION, BACKWARD, JOB, TILE, VALUES = (
    f"csrc/cuda/cluster/{name}.h"
    for name in (
        "forward",
        "forward_results",
        "forward_reset",
        "modulation",
        "backward",
        "backward_job",
        "tile",
        "values",
    )
)
CLUSTER, SPLIT = "csrc/cuda/exchange/cluster.h", "csrc/cuda/exchange/split.h"
ENDS = "the other block has ended|the block ends (with [0-9]+ pushes|while an mbarrier)"
RACE = "data race"
FLOATS = ("-DFLOATS",)  # selects the kernels for float32 instead of 16 bits


def way(sequences: int) -> Way:
    return Way(4, 232_448, f"exchange=cluster,sequences={sequences}")


def compile_program(
    target: Path, sanitizer: str | None, *sizes: str, cells: Sequence[str], flags: Sequence[str] = (), **tree: Path
) -> Path:
    """Compile a program that runs some cells in some sizes, with a sanitizer if one is named."""
    flags = [*flags, "-O0", "-g1", f"-DRACES={','.join(cells)}", f"-DFUSED_RNN_CLUSTER_SIZES={','.join(sizes)}"]
    # In RowRing, lanes without a row advance a pointer that is neither set nor used.
    checked = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-fno-sanitize=pointer-overflow"]
    flags += checked if sanitizer else WAITS  # sanitized kernels are too slow for short waits
    return compile_calls("clusters", target, *flags, **tree)


@pytest.mark.parametrize(
    ("sanitizer", "sequences"),
    some_of([("thread", 8), ("thread", 16), ("address,undefined", 8)], ("thread", 8)),
    ids=["thread-8", "thread-16", "address-8"],
)
@pytest.mark.parametrize("cells", some_of(CELLS, "more-phases"))
def test_sanitizers_find_nothing(tmp_path, cells, sanitizer, sequences):
    program = compile_program(tmp_path / "races", sanitizer, SIZES[sequences], cells=CELLS[cells])
    for seed in (1, 2):
        run = run_program(program, way(sequences), seed)
        assert run.returncode == 0, run.stderr[-4000:]


@pytest.mark.exhaustive
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_sanitizers_find_nothing_in_float32(tmp_path, sanitizer):
    program = compile_program(
        tmp_path / "races", sanitizer, SIZES[8], cells=("Lstm", "MultiplicativeGru"), flags=FLOATS
    )
    run = run_program(program, way(8), seed=1)
    assert run.returncode == 0, run.stderr[-4000:]


@dataclass(frozen=True)
class Fault:
    """A change of a file, the program that must detect it (plain or with ThreadSanitizer), and the expected report."""

    file: str
    pattern: str
    replacement: str
    report: str
    sanitizer: str | None = None
    times: int = 1
    cell: str = "Lstm"
    flags: tuple[str, ...] = ()


LEAVES = r"if (index > 0 && cluster_rank() == 1) return;\n      \1"  # before the second tile
FAULTS = {
    # Between blocks
    "no-wait-for-the-state": Fault(FORWARD, r"if \(step > 0\) state_\.wait\([^;]*;[^;]*;", "", "mbarrier"),
    "wait-for-another-share": Fault(FORWARD, r"state_\.wait\(share_", "state_.wait(0", RACE, "thread"),
    "push-in-the-last-step": Fault(FORWARD, r"(h_\[n\]\[1\], )!last", r"\1true", ENDS),
    "expected-in-the-last-step": Fault(FORWARD, r"!last && (group_ == 0)", r"\1", "one arrival too many"),
    "expected-twice": Fault(FORWARD, r"!last && group_ == 0", "!last", "one arrival too many"),
    "half-of-the-sequences-pushed": Fault(
        RESULTS, r"if \(sent\)( state\.push)", r"if (sent && first_octet() + n == 0)\1", "misses 512 bytes"
    ),
    "sums-of-sequences-traded-without-barrier": Fault(SPLIT, r"barrier_sync\(barrier_, 64\);", "", RACE, "thread"),
    "one-buffer-for-traded-sums-of-sequences": Fault(
        SPLIT, r"(own\[i\]\[j\] \+= other[^}]*\}\s+)turn_ \^= 1;", r"\1", RACE, "thread"
    ),
    "forward-leaves-early": Fault(FORWARD, r"(team_\.start)", LEAVES, ENDS),
    "forward-without-barrier-between-tiles": Fault(
        FORWARD,
        r"(team_\.start\(\[&\] \{ (put_initial_state\(whole\.first\(\)\);) \}\);)",
        r"if (index < clusters) { \1 } else { \2 __syncthreads(); }",
        RACE,
        "thread",
    ),
    "no-wait-for-sums": Fault(
        BACKWARD, r"(step \+ 1 < tile\.longest\(\)\)) wait\(\);", r"\1 sums_.follow();", RACE, "thread"
    ),
    "no-wait-for-the-last-sums": Fault(
        BACKWARD, r"(longest\(\) > 0\) \{\s+)wait\(\);", r"\1sums_.follow();", RACE, "thread"
    ),
    "sums-not-expected": Fault(BACKWARD, r"if \(warp_ == 0\) sums_\.expect\(\);", "", "mbarrier"),
    "backward-leaves-early": Fault(BACKWARD, r"(team_\.start)", LEAVES, ENDS),
    "wait-in-block-scope": Fault(CLUSTER, "wait_for_phase", "wait_for_phase<false>", RACE, "thread"),
    "too-few-bytes": Fault(CLUSTER, r"expect\(share, ", "expect(share, -16 + ", "mbarrier"),
    "too-many-bytes": Fault(CLUSTER, r"expect\(share, ", "expect(share, 16 + ", "an mbarrier misses|flag of"),
    "one-copy-of-a-state": Fault(
        CLUSTER, r"\w+\(\) \* copy_bytes( \+ term|;|\))", r"0 * copy_bytes\1", RACE, "thread", 3
    ),
    "one-copy-of-sums": Fault(
        CLUSTER, r"\w+\(\) \* copy_bytes( \+ own|.\+ contributor)", r"0 * copy_bytes\1", RACE, "thread", 2
    ),
    # Between blocks, in several phases
    "no-wait-for-s": Fault(RESET, r"s_\.wait\([^;]*;[^;]*;", "", "NaN among the results", cell="Gru"),
    "wait-for-another-share-of-s": Fault(RESET, r"s_\.wait\(share_", "s_.wait(0", RACE, "thread", cell="Gru"),
    "s-not-expected": Fault(RESET, r"if \(group_ == 0\) s_\.expect\(share_\);", "", "mbarrier", cell="Gru"),
    "no-wait-for-the-input": Fault(
        FORWARD, r"modulator_\.wait\([^;]*;[^;]*;", "", "NaN among the results", cell="MultiplicativeLstm"
    ),
    "half-of-the-sequences-of-the-input-pushed": Fault(
        MODULATION,
        r"x_hat_\.push\(n, ",
        "if (n == 0) x_hat_.push(0, ",
        "an mbarrier misses",
        cell="MultiplicativeLstm",
    ),
    "one-copy-of-a-state-that-is-read-late": Fault(
        CLUSTER,
        r"\w+\(\) \* copy_bytes( \+ term|;|\))",
        r"0 * copy_bytes\1",
        RACE,
        "thread",
        3,
        "MultiplicativeLstm",
    ),
    "no-wait-for-sums-of-s": Fault(
        BACKWARD, r"reset_sums_\.wait\(\)", "(reset_sums_.follow(), true)", RACE, "thread", cell="Gru"
    ),
    "no-wait-for-sums-of-the-input": Fault(
        BACKWARD,
        r"feature_sums_\.wait\(\)",
        "(feature_sums_.follow(), true)",
        RACE,
        "thread",
        cell="MultiplicativeLstmHidden",
    ),
    "sums-of-the-input-not-expected": Fault(
        BACKWARD, r"if \([^;]*feature_sums_\.expect\(\);", "", "mbarrier", cell="MultiplicativeLstm"
    ),
    "no-turn-without-features-of-16-sequences": Fault(
        BACKWARD,
        r"return feature_sums_\.follow\(\)",
        "return",
        "an mbarrier misses",
        cell="MultiplicativeLstm",
    ),
    # Between warps of a block
    "one-buffer-of-shares": Fault(SPLIT, r"turn_ \* buffer", "0 * buffer", RACE, "thread", 3),
    "product-of-another-share": Fault(
        MODULATION,
        r"(K \+ 8\) \+ )split_",
        r"\1(splits - 1 - split_)",
        RACE,
        "thread",
        cell="MultiplicativeLstmHidden",
    ),
    "sums-of-m-at-the-barrier-of-others": Fault(
        MODULATION, "sums_at, 5,", "sums_at, 1,", "arrives again|barrier|" + RACE, "thread", cell="MultiplicativeLstm"
    ),
    "no-barrier-after-the-reset": Fault(
        BACKWARD, r"(reset\(step\);\s+)__syncthreads\(\);", r"\1", RACE, "thread", cell="Gru"
    ),
    "no-barrier-after-the-modulation": Fault(
        BACKWARD, r"(modulate\(step\);\s+)__syncthreads\(\);", r"\1", RACE, "thread", cell="MultiplicativeLstm"
    ),
    "one-operand": Fault(BACKWARD, r"\(step & 1\) \*", "0 *", RACE, "thread"),
    "no-barrier-before-the-product": Fault(
        BACKWARD, r"__syncthreads\(\);(\s+if constexpr \(Shape::phases == 1\))", r"\1", RACE, "thread"
    ),
    "one-named-barrier": Fault(SPLIT, r"barrier_ \+ turn_", "barrier_", "arrives again|" + RACE, "thread", 3),
    # Between lanes of a warp
    "no-wait-for-inputs": Fault(FORWARD, r"ring_\.wait\(\);", "", "NaN among the results"),
    "no-wait-for-saved-values": Fault(JOB, r"ring_\.wait\(\);", "", "NaN among the results"),
    "wait-for-too-few-inputs": Fault(
        TILE, r"upwards \? stages - 1 : stages - 2", "upwards ? stages : stages - 1", "NaN among the results"
    ),
    "inputs-without-syncwarp": Fault(TILE, r"(copy_async_wait<[^;]*;\s+)__syncwarp\(\);", r"\1", RACE, "thread"),
    "rows-without-syncwarp": Fault(
        RESULTS, r"(transposed<1>\(turned\(n, 0\)[^;]*;\s+)__syncwarp\(\);", r"\1", RACE, "thread"
    ),
    # Differences of float32
    "a-term-that-is-not-sent": Fault(
        VALUES, r"i < 3; \+\+i\)( state\.push)", r"i < 2; ++i)\1", "an mbarrier misses|flag of", flags=FLOATS
    ),
    "no-wait-for-values": Fault(
        VALUES, r"void wait\(\) \{ copy_async_wait<[^}]*\}", "void wait() {}", "NaN among the results", flags=FLOATS
    ),
    "terms-without-syncwarp": Fault(
        VALUES, r"(pairs\.terms\[2\]\}\);\s+)__syncwarp\(\);", r"\1", RACE, "thread", flags=FLOATS
    ),
}


def test_faults_have_their_places_in_the_sources():
    for fault in FAULTS.values():
        changed(fault.file, fault.pattern, fault.replacement, fault.times)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Put all programs into one folder, because the shim's runtime is compiled once per folder."""
    return tmp_path_factory.mktemp("faulty")


# A fault that a program detects without a sanitizer, and a race
EXAMPLES = ("half-of-the-sequences-pushed", "wait-in-block-scope")


@pytest.mark.parametrize("name", some_of(FAULTS, *EXAMPLES))
def test_seeded_faults_are_reported(folder, tmp_path, name):
    fault = FAULTS[name]
    tree = changed_tree(tmp_path, fault.file, fault.pattern, fault.replacement, fault.times)
    sequences = 16 if "sequences" in name else 8
    program = compile_program(
        folder / name, fault.sanitizer, SIZES[sequences], cells=[fault.cell], flags=fault.flags, tree=tree
    )
    run = run_program(program, way(sequences), seed=2)
    assert run.returncode != 0
    assert re.search(fault.report, run.stderr), run.stderr[-4000:]
