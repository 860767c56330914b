"""Results of cluster kernels carried over to other sources: same machine code and same plans, or a refusal."""

import json
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.gpu.choice import __main__ as choice
from benchmarks.gpu.choice import carry, family, header, report, results
from benchmarks.gpu.choice.carry import Kernel
from benchmarks.gpu.kernel import build
from benchmarks.gpu.plans import DIRECTIONS, H200
from benchmarks.speed import ROOT
from fused_rnn import cells, cuda

# Names as nvcc makes them --------------------------------------------------------------------------------------

FEATURES = {"multiplicative_lstm": 128, "multiplicative_gru": 128, "multiplicative_lstm_hidden": 256}
CELLS = {
    "lstm": "NS_4LstmE",
    "gru": "NS_3GruE",
    "gru_reset_after": "NS_13GruResetAfterE",
    "rnn_tanh": "NS_3RnnINS_4TanhEEE",
    "rnn_relu": "NS_3RnnINS_4ReluEEE",
    "multiplicative_lstm": "NS1_9ModulatedINS_4LstmELNS_9ModulatesE1EEE",
    "multiplicative_lstm_hidden": "NS1_9ModulatedINS_4LstmELNS_9ModulatesE2EEE",
    "multiplicative_gru": "NS1_9ModulatedINS_3GruELNS_9ModulatesE1EEE",
}


DTYPES = {"bfloat16": "NS_8BFloat16E", "float16": "NS_4HalfE", "float32": "f"}


def symbol(cell: str = "lstm", direction: str = "forward", dtype: str = "bfloat16", size: str = "") -> str:
    """Return a kernel's mangled name; ``size`` holds the template's arguments, by default with features."""
    size = size or f"Li256ELi8ELi2ELi1ELi{FEATURES.get(cell, 0)}E"
    return (
        f"_ZN9fused_rnn4cuda7cluster{4 + len(direction)}run_{direction}I{CELLS[cell]}{DTYPES[dtype]}NS1_4SizeI{size}E"
        f"EEvNS1_8OperandsIT0_NS0_{6 + len(direction)}{direction.title()}ArraysEEE"
    )


@pytest.mark.parametrize("dtype", results.DTYPES)
@pytest.mark.parametrize("cell", results.CELLS)
def test_a_kernel_is_known_by_its_name(cell, dtype):
    expected = Kernel("backward", cell, dtype, (256, 8, 2, 1, FEATURES.get(cell, 0)))
    assert carry.kernel_of(symbol(cell, "backward", dtype)) == expected


def test_features_may_be_left_out_of_a_name():
    assert carry.kernel_of(symbol(size="Li256ELi8ELi2ELi1E")) == carry.kernel_of(symbol())
    assert str(carry.kernel_of(symbol())) == "lstm bfloat16 forward 256x8x2x1x0"


def test_other_kernels_have_no_such_name():
    assert carry.kernel_of("_ZN9fused_rnn4cuda17prepare_workspaceINS_8BFloat16EEEvNS0_11PreparationIT_EE") is None
    assert carry.kernel_of(symbol().replace("4Lstm", "4Lstn")) is None


@pytest.mark.skipif(build.host_obstacle() is not None, reason=str(build.host_obstacle()))
def test_names_are_those_of_the_types(tmp_path):
    """The host compiler mangles names as nvcc does."""
    types = [(build.cpp_cell(cell), cells.CELLS[cell].modulates) for cell in CELLS]
    names = [f"Modulated<{base}, Modulates::{modulates}>" if modulates else base for base, modulates in types]
    lines = "\n".join(
        f"template void run_forward<{name}, {build.CPP_TYPES[dtype]}, Size<128, 4, 1, 1>>();"
        for name, dtype in product(names, results.DTYPES)
    )
    source, binary = tmp_path / "names.cpp", tmp_path / "names.o"
    source.write_text(
        '#include "csrc/cuda/cluster/size.h"\nnamespace fused_rnn::cuda::cluster {\n'
        f"template <typename, typename, typename> void run_forward() {{}}\n{lines}\n}}\n"
    )
    command = [build.host_compiler(), "-std=c++17", f"-I{ROOT}", f"-I{build.SHIM}", "-c", source, "-o", binary]
    subprocess.run(command, check=True)
    found = {carry.kernel_of(name.decode("ascii", "ignore")) for name in binary.read_bytes().split(b"\0")}
    expected = {Kernel("forward", *kind, (128, 4, 1, 1, 0)) for kind in product(CELLS, results.DTYPES)}
    assert found - {None} == expected


# Machine code --------------------------------------------------------------------------------------------------

CODE = """
		Function : {symbol}
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/              @!P0 IADD3 R1, R2, 0x10, RZ ;        /* 0x0000001002017810 */
                                                                   /* 0x000fe40007ffe0ff */
        /*0010*/               @P1 BRA 0x20 ;                      /* 0x0000000000009947 */
                                                                   /* 0x000fea0003800000 */
        /*0020*/                   EXIT ;                          /* 0x000000000000794d */
                                                                   /* 0x000fea0003800000 */
		..........
"""
TAKEN = build.Resources(168, 0, 0, 0, 16)


def codes_of(*symbols: str, change: tuple[str, str] = ("", ""), taken: build.Resources = TAKEN, but_for=()) -> dict:
    """Return the codes of a library of these kernels, with a change to their machine code."""
    text = "Fatbin elf code:\n" + "".join(CODE.format(symbol=each) for each in symbols)
    return carry.codes(text.replace(*change), dict.fromkeys(symbols, taken), but_for)


OLD = [symbol(direction=direction, size="Li256ELi8ELi2ELi1E") for direction in DIRECTIONS]
NEW = [symbol(direction=direction) for direction in DIRECTIONS]
LSTM = {("lstm", "bfloat16")}


def test_kernels_with_the_same_machine_code_do_not_differ():
    assert len(codes_of(*OLD)) == 2
    others = symbol("gru"), symbol("multiplicative_lstm", "backward")
    assert not list(carry.differences(codes_of(*OLD), codes_of(*others, *NEW), LSTM))
    wider = ("EXIT ;", "EXIT ;  ")  # as if another kernel had a longer instruction
    assert not list(carry.differences(codes_of(*OLD), codes_of(*NEW, change=wider), LSTM))


@pytest.mark.parametrize(
    "change",
    [
        {"change": ("@!P0", "@P0")},
        {"change": ("0x10, RZ", "0x20, RZ")},
        {"change": ("0x000fe40007ffe0ff", "0x000fe20007ffe0ff")},  # the stall count
        {"change": ("        /*0010*/", "        /*0010*/  NOP ;\n        /*0020*/")},
        {"taken": build.Resources(170, 0, 0, 0, 16)},
    ],
)
def test_any_change_of_a_kernel_is_named(change):
    before, now = codes_of(*OLD), codes_of(NEW[0]) | codes_of(NEW[1], **change)
    assert list(carry.differences(before, now, LSTM)) == ["lstm bfloat16 backward 256x8x2x1x0 differs"]


IGNORED = ("CCTL.IVALL", "NOP")
NOTHING = ("        /*0010*/", "        /*0008*/  NOP ;\n        /*0010*/")
INVALIDATION = ("        /*0000*/", "        /*0000*/  @P3 CCTL.IVALL ;\n        /*0008*/")


OTHER_TARGET = ("BRA 0x20", "BRA 0x30")
OTHER_REGISTERS, OTHER_BITS = ("R1, R2", "R10, R11.reuse"), ("0x000fe40007ffe0ff", "0x000fe20007ffe0ff")


@pytest.mark.parametrize("change", [NOTHING, INVALIDATION, OTHER_BITS, OTHER_REGISTERS, OTHER_TARGET])
def test_instructions_that_are_named_do_not_count(change):
    before = codes_of(*OLD, but_for=IGNORED)
    assert not list(carry.differences(before, codes_of(*NEW, change=change, but_for=IGNORED), LSTM))
    some = codes_of(*OLD, but_for=["MOV"]), codes_of(*NEW, change=change, but_for=["MOV"])
    assert len(list(carry.differences(*some, LSTM))) == (2 if change in (NOTHING, INVALIDATION) else 0)


@pytest.mark.parametrize("change", [("@!P0", "@P0"), ("0x10, RZ", "0x20, RZ"), ("EXIT ;", "BRA 0x20 ;")])
def test_all_others_count_with_their_operands(change):
    before, now = codes_of(*OLD, but_for=IGNORED), codes_of(*NEW, change=change, but_for=IGNORED)
    assert len(list(carry.differences(before, now, LSTM))) == 2


def test_kernels_of_measured_cells_must_be_the_same_ones():
    more = symbol(size="Li512ELi16ELi2ELi1ELi0E")
    of_both = codes_of(*OLD), codes_of(more, NEW[0])
    assert list(carry.differences(*of_both, LSTM)) == [
        "lstm bfloat16 forward 512x16x2x1x0 is new",
        "lstm bfloat16 backward 256x8x2x1x0 is gone",
    ]
    nothing = carry.differences(codes_of(*OLD), codes_of(*NEW), {("gru", "float16")})
    assert list(nothing) == [f"gru float16 {direction} has no machine code to compare" for direction in DIRECTIONS]


# Plans ---------------------------------------------------------------------------------------------------------

PLAN = "exchange=cluster,sequences=8,parts=1,segments=1"
SIZES = {"cell": "lstm", "dtype": "bfloat16", "hidden": 64, "batch": 16, "steps": 256}
TIMES = {
    "error": {"relative": 0.001, "allowed": 0.002},
    **{direction: {"us_per_step": 1.5} for direction in DIRECTIONS},
}
BLOCKS = {**TIMES, **{direction: {"us_per_step": 9} for direction in DIRECTIONS}}
POINT = {**SIZES, "cluster": {"plans": dict.fromkeys(DIRECTIONS, PLAN), **TIMES}, "blocks": BLOCKS}


def test_points_must_be_planned_as_they_were():
    refused = {**SIZES, "hidden": 9000, "cluster": {"refused": "no room"}, "blocks": {"not_timed": "nothing beside it"}}
    skipped = {**SIZES, "hidden": 128, "skipped": "no time"}
    points = [POINT, refused, skipped]

    def plan(direction: str, point: dict) -> str | None:
        return PLAN if point["hidden"] < 1000 else None

    assert not list(carry.planned_otherwise(points, plan))
    otherwise = PLAN.replace("parts=1", "parts=4")
    found = carry.planned_otherwise(points, lambda direction, point: otherwise if direction == "forward" else PLAN)
    assert list(found) == [
        f"lstm bfloat16 H=64 B=16 forward with {otherwise}, measured with {PLAN}",
        f"lstm bfloat16 H=9000 B=16 forward with {otherwise}, measured with None",
        f"lstm bfloat16 H=9000 B=16 backward with {PLAN}, measured with None",
    ]


def test_the_chip_is_that_of_the_results():
    assert carry.chip_of({"hardware": {"gpu": H200.name}}) == H200
    other = {**vars(H200), "clusters": [1, 2, 3, 4, 5], "name": "Other"}
    assert carry.chip_of(json.loads(json.dumps({"chip": other}))).clusters == (1, 2, 3, 4, 5)
    with pytest.raises(common.InputError, match="results of Other lack 'chip'"):
        carry.chip_of({"hardware": {"gpu": "Other"}})


@pytest.mark.skipif(build.host_obstacle() is not None, reason=str(build.host_obstacle()))
def test_a_library_of_all_cells_is_asked_for_plans(tmp_path, monkeypatch):
    library, sizes = tmp_path / "all.so", "-DFUSED_RNN_CLUSTER_SIZES=Size<32,1,1,1>,Size<64,2,1,1>"
    build.compile_on_host(build.SOURCE, library, "-shared", sizes, *build.macros_of_clusters("bfloat16", "forward"))
    plan = carry.planner({("forward", "bfloat16"): library}, H200)
    monkeypatch.setenv(cuda.FORCED, "exchange=blocks")  # must not affect the planner
    for cell, (hidden, parts) in product(("lstm", "rnn_relu", "gru_reset_after"), ((32, 1), (40, 2))):
        planned = f"exchange=cluster,sequences=8,parts={parts},segments=1"
        assert plan("forward", {**SIZES, "cell": cell, "hidden": hidden}) == planned
    assert plan("forward", {**SIZES, "hidden": 65}) is None


# Carrying over -------------------------------------------------------------------------------------------------

FILE = {
    "date": "2020-02-02",
    "hardware": {"gpu": H200.name, "torch": "2.0", "capability": "9.0"},
    "digests": {"family": "measured"},
    "points": [POINT],
}


@pytest.fixture
def carried(tmp_path, monkeypatch) -> Path:
    """Return a file of results whose sources have changed since, but compile to the same machine code."""
    path = tmp_path / "choice-nvidia-h200.json"
    common.write_json(path, FILE)
    monkeypatch.setattr(results, "files", lambda: [path])
    monkeypatch.setattr(family, "digest", lambda root=None: "measured" if root else "present")
    monkeypatch.setattr(carry, "sources_of", lambda revision, folder: folder)
    monkeypatch.setattr(carry, "git", lambda *arguments: b"a5982f8ee\n")
    monkeypatch.setattr(build, "find_nvcc", lambda arch: f"nvcc for {arch}")
    monkeypatch.setattr(build, "version_of", lambda nvcc: nvcc)
    monkeypatch.setattr(carry, "planner", lambda libraries, chip: lambda direction, point: PLAN)
    monkeypatch.setattr(carry, "builds", lambda *_: (carry.Build(codes_of(*OLD), {}), carry.Build(codes_of(*NEW), {})))
    return path


def test_results_are_valid_for_sources_that_they_are_carried_over_to(carried, capsys):
    stale = results.read(carried)
    assert header.stale(stale)
    assert not header.carried(stale)
    choice.main(["--carry-over", "a5982f8"])
    said = capsys.readouterr().out
    assert said.startswith(f"{carried.name}: 2 kernels have the same machine code, and all points the same plans\n")
    content = json.loads(carried.read_text())
    (record,) = content.pop("carried")
    assert content == FILE
    del record["date"]
    assert record == {
        **{"family": "present", "from": "measured", "revision": "a5982f8ee"},
        **{"compiler": "nvcc for 90a", "arch": "90a", "kernels": 2},
    }
    valid = results.read(carried)
    assert not header.stale(valid)
    assert header.carried(valid)
    text = header.text([valid])
    assert "sources\n    // measured,\n    // whose machine code is that of the sources here\n    {CellId::lstm" in text
    shown = report.block([{**json.loads(carried.read_text()), "file": carried.stem}])
    assert f"T=256. {report.CARRIED.format('machine code')}\n" in shown
    with pytest.raises(common.InputError, match="no results in .* are valid for the sources of a5982f8 and not yet"):
        choice.main(["--carry-over", "a5982f8"])


def test_whoever_shows_results_says_what_was_not_compared(carried, capsys):
    choice.main(["--carry-over", "a5982f8", "--but-for", *IGNORED])
    assert "2 kernels have the same machine code but for CCTL.IVALL, NOP, and" in capsys.readouterr().out
    assert json.loads(carried.read_text())["carried"][0]["but_for"] == list(IGNORED)
    valid = results.read(carried)
    assert "whose instructions but for CCTL.IVALL and NOP are those of the sources here\n" in header.text([valid])
    shown = report.block([{**json.loads(carried.read_text()), "file": carried.stem}])
    assert "makes the same instructions but for `CCTL.IVALL` and `NOP` of them.\n" in shown


def test_what_is_not_compared_is_named_for_nothing_else():
    with pytest.raises(common.InputError, match="--but-for names what --carry-over does not compare: give both"):
        choice.main(["--write", "--but-for", "NOP"])


def test_no_other_dtypes_are_compiled_than_were_measured(carried, monkeypatch):
    """Old sources lack kernels in some dtypes."""
    asked = []

    def builds(before, dtypes, *_):
        asked.append(dtypes)
        return carry.Build(codes_of(*OLD), {}), carry.Build(codes_of(*NEW), {})

    monkeypatch.setattr(carry, "builds", builds)
    choice.main(["--carry-over", "a5982f8"])
    assert asked == [["bfloat16"]]


def test_results_are_carried_over_from_sources_that_they_were_carried_over_to(carried, monkeypatch):
    choice.main(["--carry-over", "first"])
    monkeypatch.setattr(family, "digest", lambda root=None: "present" if root else "later")
    choice.main(["--carry-over", "second"])
    records = json.loads(carried.read_text())["carried"]
    assert [(each["from"], each["family"]) for each in records] == [("measured", "present"), ("present", "later")]


def test_results_of_other_sources_are_not_carried_over(carried, monkeypatch):
    monkeypatch.setattr(family, "digest", lambda root=None: "other" if root else "present")
    with pytest.raises(common.InputError, match="no results in .* are valid for the sources of main and not yet for"):
        choice.main(["--carry-over", "main"])


def test_other_machine_code_is_refused_with_the_names_of_the_kernels(carried, monkeypatch):
    other = codes_of(*NEW, change=("0x10, RZ", "0x20, RZ"))
    monkeypatch.setattr(carry, "builds", lambda *_: (carry.Build(codes_of(*OLD), {}), carry.Build(other, {})))
    named = "lstm bfloat16 forward 256x8x2x1x0 differs, lstm bfloat16 backward 256x8x2x1x0 differs"
    with pytest.raises(common.InputError, match=f"{carried.name} is not valid for the sources here: {named}$"):
        choice.main(["--carry-over", "a5982f8"])
    assert json.loads(carried.read_text()) == FILE


def test_other_plans_are_refused(carried, monkeypatch):
    monkeypatch.setattr(carry, "planner", lambda libraries, chip: lambda direction, point: None)
    with pytest.raises(common.InputError, match=f"H=64 B=16 forward with None, measured with {PLAN}, lstm"):
        choice.main(["--carry-over", "a5982f8"])
    assert json.loads(carried.read_text()) == FILE


def test_a_compiler_that_fails_is_quoted(carried, monkeypatch):
    def builds(*_):
        raise build.CompilerError("forward.h(3): error\n")

    monkeypatch.setattr(carry, "builds", builds)
    with pytest.raises(SystemExit, match=r"forward.h\(3\): error\nerror: the kernels did not compile"):
        choice.main(["--carry-over", "a5982f8"])


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_sources_are_those_of_the_revision(tmp_path, monkeypatch):
    repository, source = tmp_path / "here", tmp_path / "here" / "csrc" / "cells" / "cell.h"
    source.parent.mkdir(parents=True)
    monkeypatch.setattr(carry, "ROOT", repository)
    who = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    carry.git("init", "-q")
    for text in ("first", "second"):
        source.write_text(text)
        carry.git("add", ".")
        carry.git(*who, "commit", "-qm", text)
    source.write_text("third")
    assert (carry.sources_of("HEAD~1", tmp_path / "old") / "csrc/cells/cell.h").read_text() == "first"
    with pytest.raises(common.InputError, match="git archive --format=zip none csrc in .* failed: fatal: "):
        carry.sources_of("none", tmp_path / "none")
