"""The bench of one kernel without a GPU: compiling, checking, timing, recording. test_gpu_sass.py tests the loops."""

import contextlib
import ctypes
import io
import json
import os
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import common
from benchmarks.gpu import machine, plans, toolkit
from benchmarks.gpu.kernel import __main__ as kernel
from benchmarks.gpu.kernel import build, calls
from benchmarks.gpu.kernel.check import worst_error
from benchmarks.gpu.plans import H200, Layer
from benchmarks.speed.clock import HostClock, clock_for
from fused_rnn import cuda
from fused_rnn.cells import CELLS

from .conftest import find_nvcc, some_of

SIZES = ["--hidden", "40", "--batch", "9", "--input", "5", "--steps", "6"]
LSTM = "lstm-bfloat16-forward-chosen-sm_90a.so"
needs_compiler = pytest.mark.skipif(build.host_obstacle() is not None, reason=str(build.host_obstacle()))


@pytest.fixture(autouse=True)
def _no_gpu_and_nothing_forced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv(cuda.FORCED, raising=False)


@pytest.mark.parametrize(("name", "expected"), [("cuda", 1), ("cuda:2", 2)])
def test_a_gpu_without_a_number_is_the_current_one(monkeypatch, name, expected):
    """torch.cuda.set_device would refuse such a device."""
    set_to = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", set_to.append, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=64))
    monkeypatch.setattr(torch, "empty", lambda *sizes, **where: where)
    assert clock_for(torch.device(name)).device == torch.device("cuda", expected)
    assert set_to == [expected]


# End to end ---------------------------------------------------------------------------------------------------


def run(*arguments: str) -> list[str]:
    """Return the lines that the command prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        kernel.main([*SIZES, *arguments])
    return said.getvalue().splitlines()


@pytest.fixture(scope="module")
def forward(tmp_path_factory) -> tuple[Path, list[str]]:
    """Run an LSTM's forward kernel; return the folder with its results and compiled files, and the printed lines."""
    find_nvcc()
    folder = tmp_path_factory.mktemp("forward")

    def compiled(command, target, compiled=build.compiled):
        said = compiled(command, target)
        if target.parent != folder:  # the host shim's kernel, which is not kept
            shutil.copy(target, folder)
        return said

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(build, "compiled", compiled)
        patch.setenv(cuda.FORCED, "parts=2")  # applies unless an option overrides it
        return folder, run("--out", str(folder / "kernels.json"), "--folder", str(folder))


def kernels_in(path: Path) -> list[dict]:
    return json.loads(path.read_text())["kernels"]


@needs_compiler
def test_a_kernel_without_a_gpu(forward):
    folder, lines = forward
    (record,) = kernels_in(folder / "kernels.json")
    assert record["digests"] == machine.digests()
    assert (record["cell"], record["direction"], record["input"], record["arch"]) == ("lstm", "forward", 5, "90a")
    assert (record["exchange"], record["hardware"]["gpu"]) == ("chosen", "none")
    assert record["chip"] == {**asdict(H200), "clusters": [132, 66, 30, 15, 7]}  # the chip that it is planned for
    assert record["compiler"].startswith("nvcc ")
    assert 16 < record["registers"] <= 255
    assert record["spill_stores"] == record["spill_loads"] == record["static_shared"] == 0
    assert record["plan"]["parts"] == 2
    assert (record["plan"]["shared_bytes"] > 0, record["plan"]["nanoseconds"] > 0) == (True, True)
    assert {name: record["check"][name] for name in ("where", *"TBIH")} == {
        "where": "on the host shim",
        **{"T": 3, "B": 9, "I": 5, "H": 40},
    }
    assert 0 < record["check"]["relative"] <= record["check"]["allowed"] < 0.02
    assert record["not_timed"] == "there is no GPU"
    assert not {"us_per_step", "failed"} & record.keys()
    assert lines[0].startswith("lstm bfloat16 H=40 I=5 B=9 T=6 forward, sm_90a, exchange chosen: nvcc ")
    assert f"registers: {record['registers']} of a thread" in lines[1]
    plan = cuda.Plan(**record["plan"])
    assert f"plan: {plan}" in lines
    assert f"time: not timed: there is no GPU; estimated {plan.nanoseconds / 1000:.2f} µs per step" in lines


@pytest.mark.skipif(not hasattr(torch.ops.fused_rnn, "cuda_plan"), reason="this build has no CUDA kernels")
def test_the_plan_is_that_of_the_operator(forward):
    library = build.Library(forward[0] / LSTM, H200, torch.device("cpu"))
    call = calls.sized("forward", "lstm", torch.bfloat16, T=512, B=64, I=512, H=512)
    for forced in ("", "sequences=16,parts=8"):
        with plans.enforced(forced):
            assert library.plan(call) == Layer("lstm", "bfloat16", 512, 64).plan(H200, forced or "exchange=blocks")


def test_the_time_step_of_the_real_kernel(forward):
    """One phase makes one loop that polls for the other blocks, and it contains every product of the kernel."""
    folder, lines = forward
    (record,) = kernels_in(folder / "kernels.json")
    if record["step"] is None:
        pytest.skip(kernel.NO_DISASSEMBLER)
    kernels = build.disassembled(folder / LSTM, find_nvcc())
    (code,) = (code for symbol, code in kernels.items() if "run_forward" in symbol)
    step, kinds = record["step"], record["step"]["kinds"]
    assert step["polls"] == 1
    assert kinds["mma"] == sum(each.kind == "mma" for each in code)
    assert kinds["mma"] >= 2 * kinds["ldmatrix"]
    assert {"LDS", "STS", "LDG", "STG", "BAR", "MUFU", "cp.async"} <= set(kinds)
    assert "local memory" not in kinds
    assert sum(kinds.values()) < step["instructions"] < len(code)
    assert f"time-step loop, at {step['address']:#x}: {step['instructions']} instructions, " in "\n".join(lines)


@needs_compiler
@pytest.mark.exhaustive
def test_runs_are_appended_and_a_missing_disassembler_is_told(forward, tmp_path, monkeypatch):
    """The second run is a multiplicative cell's backward kernel in float32, with a plan forced by options."""
    find_nvcc()
    out = tmp_path / "kernels.json"
    shutil.copy(forward[0] / "kernels.json", out)
    monkeypatch.setattr(toolkit, "cuobjdump", lambda beside: None)
    monkeypatch.setenv(cuda.FORCED, "parts=2")  # options take precedence
    arguments = ["--cell", "multiplicative_lstm", "--dtype", "float32", "--direction", "backward", "--arch", "80"]
    forced = ["--sequences", "16", "--parts", "3"]
    lines = run(*arguments, *forced, "--out", str(out), "--folder", str(tmp_path / "compiled"))
    before, record = kernels_in(out)
    assert [before] == kernels_in(forward[0] / "kernels.json")
    assert (record["plan"]["sequences"], record["plan"]["parts"], record["arch"]) == (16, 3, "80")
    assert record["check"]["result"].startswith("gradient of ")
    assert record["check"]["relative"] <= record["check"]["allowed"] < 1e-5
    assert record["step"] is None
    assert kernel.NO_DISASSEMBLER in lines
    assert os.environ[cuda.FORCED] == "parts=2"
    name = "multiplicative_lstm-float32-backward-chosen-sm_80"
    assert {path.name for path in tmp_path.rglob("*.*")} == {"kernels.json", f"{name}.so", f"{name}.json"}


@needs_compiler
@pytest.mark.exhaustive
def test_a_kernel_in_clusters(tmp_path):
    """Of all compiled sizes, the planned one is shown and checked."""
    find_nvcc()
    options = ["--exchange", "cluster", "--cell", "rnn_tanh", "--dtype", "float16"]
    options += ["--hidden", "200", "--sequences", "16"]
    lines = run(*options, "--out", str(tmp_path / "kernels.json"), "--folder", str(tmp_path))
    (record,) = kernels_in(tmp_path / "kernels.json")
    plan = record["plan"]
    assert (plan["exchange"], plan["sequences"], plan["parts"]) == ("cluster", 16, 8)
    assert record["check"]["relative"] <= record["check"]["allowed"] < 0.01
    kernels = json.loads(next(tmp_path.glob("*-cluster-*.json")).read_text())["kernels"]
    (kernel,) = (kernel for symbol, kernel in kernels.items() if re.search(r"SizeILi256ELi8ELi\d+ELi2E", symbol))
    assert len(kernels) > 5
    assert {name: record[name] for name in kernel} == kernel
    assert f"registers: {record['registers']} of a thread" in lines[1]


@needs_compiler
@pytest.mark.parametrize(
    ("cell", "features"),
    some_of([("multiplicative_gru", 20), ("multiplicative_lstm_hidden", 40)], ("multiplicative_gru", 20)),
)
def test_a_kernel_in_clusters_of_a_multiplicative_cell(cell, features, tmp_path):
    """The compiled kernel is the cell's own, not the base cell's."""
    library, sizes = tmp_path / "host.so", "-DFUSED_RNN_CLUSTER_SIZES=Size<64,2,1,1>,Size<64,2,1,1,32>"
    chosen = build.macros(cell, "bfloat16", "forward", "cluster")
    build.compile_on_host(build.SOURCE, library, "-O0", "-shared", sizes, *chosen)
    host = build.Library(library, H200, torch.device("cpu"))
    sizes = {"T": 3, "B": 9, "I": features, "H": 40}
    assert host.plan(calls.sized("forward", cell, torch.bfloat16, **sizes)).parts == 2
    assert not worst_error(host, "here", cell, torch.bfloat16, "forward", **sizes).wrong


def test_the_kernel_of_a_plan_is_the_smallest_that_holds_the_units():
    sizes = ((128, 1, 1, 1), (256, 8, 2, 1), (384, 8, 2, 1), (256, 8, 2, 2))
    symbols = {size: f"run_forwardINS_4SizeI{''.join(f'Li{n}E' for n in size)}EEv" for size in sizes}
    plan = cuda.plan("lstm", torch.bfloat16, 9, 200, None, "forward", H200, "exchange=cluster,parts=8,sequences=8")
    found = {hidden: build.symbol_of(symbols.values(), hidden, 0, plan) for hidden in (1, 256, 257)}
    assert found == {1: symbols[sizes[1]], 256: symbols[sizes[1]], 257: symbols[sizes[2]]}


def test_the_kernel_of_a_plan_is_of_its_exchange():
    clusters, teams = "run_forwardINS_4SizeILi256ELi8ELi2ELi1EEEv", "run_forwardINS_8TeamSizeILi256ELi8ELi2ELi1EEEv"
    plan = cuda.plan("lstm", torch.bfloat16, 9, 200, None, "forward", H200, "exchange=cluster,parts=8,sequences=8")
    for exchange, symbol in (("cluster", clusters), ("messages", teams)):
        assert build.symbol_of([teams, clusters], 200, 0, replace(plan, exchange=exchange)) == symbol


def test_the_kernel_of_a_plan_is_the_smallest_that_holds_the_features():
    sizes = ((256, 8, 2, 1, 256), (256, 8, 2, 1, 128), (384, 8, 2, 1, 128))
    symbols = [f"run_forwardINS_4SizeI{''.join(f'Li{n}E' for n in size)}EEv" for size in sizes]
    plan = cuda.plan("lstm", torch.bfloat16, 9, 200, None, "forward", H200, "exchange=cluster,parts=8,sequences=8")
    chosen = ((200, 128), (200, 129), (257, 128), (200, 0))
    assert [build.symbol_of(symbols, *each, plan) for each in chosen] == [symbols[i] for i in (1, 0, 2, 1)]


def test_a_kernel_that_does_not_compile_is_an_error(tmp_path, monkeypatch):
    find_nvcc()
    monkeypatch.setitem(build.CPP_TYPES, "bfloat16", "Quarter")
    with pytest.raises(SystemExit, match=r"(?s)Quarter.*error: the kernel did not compile"):
        run("--out", str(tmp_path / "kernels.json"), "--folder", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_that_was_carried_here(forward, tmp_path, monkeypatch):
    """This requires the same sources, but no nvcc."""
    monkeypatch.setattr(toolkit, "nvcc", lambda: None)
    monkeypatch.setattr(build, "host_obstacle", lambda: "no compiler either")
    built = ["--built", "--folder", str(forward[0]), "--out", str(tmp_path / "kernels.json")]
    lines = run(*built)
    assert lines[:3] == forward[1][:3]
    (record,), (before,) = kernels_in(tmp_path / "kernels.json"), kernels_in(forward[0] / "kernels.json")
    assert [record[name] for name in ("registers", "step", "compiler")] == [
        before[name] for name in ("registers", "step", "compiler")
    ]
    with pytest.raises(
        common.InputError, match=r"no compiled kernel .*lstm-bfloat16-backward-chosen-sm_90a.so: it is made"
    ):
        run(*built, "--direction", "backward")
    monkeypatch.setattr(machine, "digests", lambda: {"kernels": "others", "library": None})
    with pytest.raises(common.InputError, match=f"{LSTM} was compiled from other sources than those here"):
        run(*built)
    assert len(kernels_in(tmp_path / "kernels.json")) == 1


# Checked and timed, by the host shim in place of a GPU -----------------------------------------------------------


@pytest.fixture
def on_gpu(forward, tmp_path, monkeypatch) -> list[str]:
    """Return options for a kernel that is already compiled and runs on the host shim as if on a GPU."""
    monkeypatch.setattr(kernel, "obstacle", lambda device, arch: None)
    monkeypatch.setattr(kernel, "ROUNDS", 2)
    shutil.copy(forward[0] / "host.so", tmp_path / LSTM)
    shutil.copy((forward[0] / LSTM).with_suffix(".json"), tmp_path)
    return ["--built", "--folder", str(tmp_path), "--out", str(tmp_path / "kernels.json")]


@needs_compiler
def test_what_can_run_is_checked_at_its_sizes_and_timed(on_gpu, tmp_path):
    lines = run(*on_gpu)
    (record,) = kernels_in(tmp_path / "kernels.json")
    checked = record["check"]
    assert (checked["where"], checked["T"], checked["B"], checked["H"]) == ("on cpu", kernel.CHECKED_STEPS, 9, 40)
    assert {"us_per_step", "spread_us"} <= record.keys()
    assert not {"failed", "not_timed"} & record.keys()
    assert lines[-2].startswith(f"time: measured {record['us_per_step']:.2f} ± ")


@needs_compiler
def test_a_kernel_with_wrong_results_is_not_timed(on_gpu, tmp_path, monkeypatch, capsys):
    def spoiled(library, call, run=build.Library.run):
        results = run(library, call)
        results[1][0, 0] = torch.nan
        return results

    monkeypatch.setattr(build.Library, "run", spoiled)
    wrong = "error: the kernel failed: its results are wrong: on cpu .*: h_n is off by nan"
    with pytest.raises(SystemExit, match=wrong):
        kernel.main([*SIZES, *on_gpu])
    (record,) = kernels_in(tmp_path / "kernels.json")
    assert "us_per_step" not in record
    assert "time: not timed: it failed; " in capsys.readouterr().out


@needs_compiler
def test_a_launch_that_fails_is_recorded(on_gpu, tmp_path, monkeypatch):
    def failing() -> None:
        raise RuntimeError("cudaErrorNoKernelImageForDevice: no kernel image\nsecond line")

    monkeypatch.setattr(build.Library, "prepared", lambda library, call: failing)
    with pytest.raises(SystemExit, match="error: the kernel failed: cudaErrorNoKernelImageForDevice: no kernel image$"):
        run(*on_gpu)
    assert kernels_in(tmp_path / "kernels.json")[0]["failed"].endswith("no kernel image")


@needs_compiler
@pytest.mark.parametrize(("steps", "checked"), [(kernel.CHECKED_STEPS, False), (6, True)])
def test_a_block_that_timed_out_is_an_error(on_gpu, tmp_path, monkeypatch, steps, checked):
    """A timeout is an error even in a timed call, after a check that passed."""

    def prepared(library, call, prepared=build.Library.prepared):
        call.arrays["timed_out"].fill_(int(steps == call.structure.T))
        return prepared(library, call)

    monkeypatch.setattr(build.Library, "prepared", prepared)
    with pytest.raises(SystemExit, match="error: the kernel failed: a block of the kernel timed out"):
        run(*on_gpu)
    (record,) = kernels_in(tmp_path / "kernels.json")
    assert ("check" in record, "us_per_step" in record) == (checked, False)


@needs_compiler
def test_without_gpu_and_compiler_it_says_what_it_cannot_do(on_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(kernel, "obstacle", lambda device, arch: "there is no GPU")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "check: not checked: there is no C++ compiler no-such-compiler" in run(*on_gpu)
    (record,) = kernels_in(tmp_path / "kernels.json")
    assert record["not_checked"] == "there is no C++ compiler no-such-compiler"
    assert not {"check", "failed", "us_per_step"} & record.keys()


@pytest.mark.parametrize("direction", plans.DIRECTIONS)
@pytest.mark.parametrize("cell", plans.WITH_KERNELS)
def test_time_is_the_difference_of_two_lengths(cell, direction):
    """Costs independent of the length cancel; operands are those of a real call."""

    class Library:
        device = torch.device("cpu")

        def prepared(self, call):
            spec, steps = CELLS[cell], call.structure.T
            modulated = spec.modulated_size(4, 3)
            assert (call.direction, call.structure.I, call.structure.H) == (direction, modulated or 1, 3)
            if direction == "backward":
                assert call.arrays["saved"].shape == (steps, 2, spec.saved * 3 + modulated)
                assert call.arrays["d"].shape == (steps, 2, spec.gradients * 3 + modulated)
            return lambda: call.structure.T

    class Clock(HostClock):
        def time(self, call):
            return 5 + 0.003 * call()

    layer = Layer(cell, "float32", 3, 2, 9, direction, 4)
    assert kernel.measure(layer, Library(), Clock()) == {"us_per_step": pytest.approx(3), "spread_us": 0}


@needs_compiler
def test_the_check_sees_one_wrong_number(forward):
    class Wrong(build.Library):
        def run(self, call):
            results = super().run(call)
            results[0][1, 2, 3] += 0.5
            return results

    sizes = {"T": 3, "B": 5, "I": 4, "H": 20}
    library = build.Library(forward[0] / "host.so", H200, torch.device("cpu"))
    assert not worst_error(library, "here", "lstm", torch.bfloat16, "forward", **sizes).wrong
    error = worst_error(
        Wrong(forward[0] / "host.so", H200, torch.device("cpu")), "here", "lstm", torch.bfloat16, "forward", **sizes
    )
    assert (error.wrong, error.result) == (True, "output")


# Wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cell", "lstn"], "argument --cell: invalid choice: 'lstn'"),
        (["--cell", "multiplicative_rnn_tanh"], "argument --cell: invalid choice: 'multiplicative_rnn_tanh'"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--exchange", "pigeon"], "argument --exchange: invalid choice: 'pigeon'"),
        (["--exchange", "cluster", "--dtype", "float64"], "--exchange cluster is for bfloat16, float16, float32, not "),
        (["--hidden", "0"], "argument --hidden: must be at least 1, got 0"),
        (["--steps", "1"], "argument --steps: must be at least 2, because half of them are timed as well, got 1"),
        (["--arch", "sm_90"], "argument --arch: must be like 80, 90a or 100, got sm_90"),
    ],
)
def test_wrong_options(arguments, message):
    with pytest.raises(common.InputError, match=message):
        kernel.main(arguments)


def test_an_architecture_that_nvcc_does_not_know(tmp_path):
    find_nvcc()
    with pytest.raises(common.InputError, match=r"--arch 35 is unknown to .*nvcc, which knows .*80, .*90"):
        run("--arch", "35", "--out", str(tmp_path / "kernels.json"))
    assert list(tmp_path.iterdir()) == []


def test_without_nvcc_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(common.InputError, match="there is no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda"):
        run()


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ("sequences=64,parts=1", "sequences=64,parts=1, which FUSED_RNN_CUDA_PLAN forces, does not fit: with H = 8000"),
        ("sequences=12", "^FUSED_RNN_CUDA_PLAN must be like .* and is 'sequences=12'"),
    ],
)
def test_a_plan_that_does_not_fit(forward, forced, message):
    library = build.Library(forward[0] / LSTM, H200, torch.device("cpu"))
    call = calls.sized("forward", "lstm", torch.bfloat16, T=2, B=64, I=8, H=8000)
    with plans.enforced(forced), pytest.raises(common.InputError, match=message):
        library.plan(call)


def test_only_its_own_files_are_appended_to(tmp_path):
    out = tmp_path / "results.json"
    for content in ("[1, 2]", "{}", "half a fi"):
        out.write_text(content)
        with pytest.raises(common.InputError, match=f"--out {out} is no file of this command's results"):
            kernel.main([*SIZES, "--out", str(out)])
        assert out.read_text() == content


def test_why_a_gpu_does_not_time_the_kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu = torch.device("cuda", 0)
    assert kernel.own_architecture(gpu) == "90a"
    assert [kernel.obstacle(gpu, arch) for arch in ("90a", "90")] == [None, None]
    assert kernel.obstacle(gpu, "80") == "the GPU is sm_90a, the kernel for sm_80"


def test_the_disassembler_is_looked_for_beside_nvcc_then_on_path(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("cuda", "path", "half")]
    for folder in folders:
        folder.mkdir()
        for name in ("cuobjdump", "nvdisasm")[: 1 if folder.name == "half" else 2]:
            (folder / name).write_text("#!/bin/sh\n")
            (folder / name).chmod(0o755)
    cuda_folder, path, half = folders
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, (half, path))))
    assert toolkit.cuobjdump(f"{cuda_folder}/nvcc") == f"{cuda_folder}/cuobjdump"
    assert toolkit.cuobjdump(f"{tmp_path}/nvcc") == f"{path}/cuobjdump"
    monkeypatch.setenv("PATH", str(half))
    monkeypatch.setattr(toolkit.importlib.util, "find_spec", lambda name: None)
    assert toolkit.cuobjdump(f"{tmp_path}/nvcc") is None


def test_structures_have_the_layout_of_the_plan():
    assert list(calls.Plan().values) == list(cuda.Plan.__dataclass_fields__)
    assert [name for name, _ in calls.Chip._fields_] == list(cuda.Chip.__dataclass_fields__)
    assert ctypes.sizeof(calls.Chip) == 48  # an int, 8 bytes, five ints, a pointer
