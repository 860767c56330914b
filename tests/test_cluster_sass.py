"""The composition of a time step of the warp kernels, by their machine code."""

import re
import subprocess
from dataclasses import dataclass

import pytest
import torch

from benchmarks.gpu.choice import carry
from benchmarks.gpu.kernel import build, sass

from .conftest import find_nvcc, some_of
from .host_kernels import ROOT, SHIM

NVCC = "nvcc 13.0"  # the bounds on instructions are for this compiler
CLOCK = {"SR_CLOCKLO"}  # read while waiting
THREAD = {"SR_TID.X", "SR_CgaCtaId"}  # thread and block index


@dataclass(frozen=True)
class Kernel:
    """A kernel of clusters.cu, with a warp's exact products and most instructions in a step without options."""

    direction: str
    cell: str
    size: tuple[int, int, int, int, int]
    products: int
    instructions: int
    modulates: int = 0  # a Modulates of csrc/cells: 1 is the input, 2 the hidden state
    short: bool = False  # short of registers: a step rereads its thread's index or reads spilled values; not good

    def __str__(self) -> str:
        modulated = ["", "modulated-input-", "modulated-hidden-"][self.modulates]
        return "-".join([self.direction, modulated + self.cell, *map(str, self.size)])

    @property
    def phases(self) -> int:
        """The exchanges of a step."""
        return 1 + (self.cell == "Gru") + (self.modulates > 0)

    @property
    def barriers(self) -> int:
        """The barriers of a block's warps in a step; forward has none if no warps share the products of the others."""
        shares = self.size[2]
        return 0 if self.direction == "forward" and shares == 1 else self.phases

    @property
    def symbol(self) -> str:
        cell = rf"\d+{self.cell}E"
        if self.modulates:
            cell = rf"\d+ModulatedINS_{cell}LNS_9ModulatesE{self.modulates}E"
        return rf"run_{self.direction}INS\d*_{cell}.*SizeI{''.join(f'Li{n}E' for n in self.size)}E"


# The goals are 190 forward for 128 units in a block, and 260 for 512 units in a cluster of 16.
KERNELS = [
    Kernel("forward", "Lstm", (128, 1, 1, 1, 0), 16, 190),
    Kernel("forward", "Lstm", (512, 16, 2, 1, 0), 32, 260),
    Kernel("forward", "Lstm", (512, 16, 2, 2, 0), 64, 325),
    Kernel("forward", "GruResetAfter", (256, 8, 2, 2, 0), 32, 285),
    Kernel("forward", "Gru", (512, 16, 2, 1, 0), 32, 330),
    Kernel("forward", "Lstm", (512, 16, 2, 1, 128), 48, 400, modulates=1),
    Kernel("forward", "Lstm", (512, 16, 2, 1, 512), 48, 440, modulates=2),
    Kernel("forward", "Gru", (512, 16, 2, 1, 128), 48, 560, modulates=1),
    Kernel("backward", "Lstm", (128, 1, 1, 1, 0), 32, 420),
    Kernel("backward", "Lstm", (512, 16, 2, 1, 0), 32, 340),
    Kernel("backward", "GruResetAfter", (256, 8, 2, 2, 0), 24, 240),
    Kernel("backward", "Gru", (512, 16, 2, 1, 0), 24, 480),
    Kernel("backward", "Lstm", (512, 16, 2, 1, 128), 44, 590, modulates=1),
    Kernel("backward", "Lstm", (512, 16, 2, 1, 512), 40, 580, modulates=2),
    Kernel("backward", "Gru", (512, 16, 2, 1, 128), 34, 710, modulates=1),
]
# In float32, a product of two numbers takes six instructions
KERNELS += [
    Kernel("forward", "Lstm", (128, 4, 2, 1, 0), 6 * 8, 450),
    Kernel("forward", "Lstm", (256, 8, 2, 2, 0), 6 * 32, 780, short=True),
    Kernel("forward", "Lstm", (256, 16, 4, 1, 0), 6 * 8, 510),
    Kernel("forward", "GruResetAfter", (128, 4, 2, 2, 0), 6 * 16, 620),
    Kernel("forward", "Gru", (256, 16, 4, 1, 0), 6 * 8, 570),
    Kernel("forward", "Lstm", (256, 16, 4, 1, 128), 6 * 16, 820, modulates=1, short=True),
    Kernel("forward", "Lstm", (256, 16, 4, 1, 256), 6 * 12, 790, modulates=2),
    Kernel("forward", "Gru", (256, 16, 4, 1, 128), 6 * 16, 980, modulates=1, short=True),
    Kernel("backward", "Lstm", (128, 4, 2, 1, 0), 6 * 8, 460),
    Kernel("backward", "Lstm", (256, 8, 2, 2, 0), 6 * 32, 710, short=True),
    Kernel("backward", "Lstm", (256, 16, 4, 1, 0), 6 * 8, 520),
    Kernel("backward", "GruResetAfter", (128, 4, 2, 2, 0), 6 * 12, 400),
    Kernel("backward", "Gru", (256, 16, 4, 1, 0), 6 * 6, 550),
    Kernel("backward", "Lstm", (256, 16, 4, 1, 128), 6 * 14, 880, modulates=1),
    Kernel("backward", "Lstm", (256, 16, 4, 1, 256), 6 * 10, 850, modulates=2),
    Kernel("backward", "Gru", (256, 16, 4, 1, 128), 6 * 11, 880, modulates=1),
]
# The kernels that clusters.cu has in every run of the tests
OF_LSTM = ((128, 1, 1, 1, 0), (512, 16, 2, 1, 0), (256, 16, 4, 1, 0))
FEW = {*(("Lstm", size) for size in OF_LSTM), ("Gru", (512, 16, 2, 1, 128))}
EXAMPLES = [kernel for kernel in KERNELS if (kernel.cell, kernel.size) in FEW]
# Kinds of instructions that every step executes, with options or without
WORK = ("mma", "MUFU", "STG", "cp.async", "STS")


@pytest.fixture(scope="module")
def compiled(request, tmp_path_factory) -> tuple[dict[str, list[sass.Instruction]], str]:
    """The machine code of all kernels by symbol, and the compiler's name."""
    nvcc, cubin = find_nvcc(), tmp_path_factory.mktemp("sass") / "clusters.cubin"
    source = ROOT / SHIM / "clusters.cu"
    flags = ["-std=c++17", "-O3", "-Werror=all-warnings", "-arch=sm_90a", "-cubin"]
    flags += ["-DEXHAUSTIVE"] if request.config.getoption("--exhaustive") else []
    subprocess.run([nvcc, *flags, source, "-o", cubin], check=True)
    return build.disassembled(cubin, nvcc) or pytest.skip("no disassembler"), build.version_of(nvcc)


@pytest.fixture(params=some_of(KERNELS, *EXAMPLES), ids=str)
def kernel(request) -> Kernel:
    return request.param


@pytest.fixture
def code(kernel, compiled) -> list[sass.Instruction]:
    (found,) = (code for symbol, code in compiled[0].items() if re.search(kernel.symbol, symbol))
    return found


def test_steps_stay_in_registers(kernel, code):
    """No step reads spilled values, divides, calls or asks which thread it is; it loads single values, if any."""
    loops = sass.step_loops(code)
    assert loops
    for loop in loops:
        step = sass.inside(code, loop)
        kinds = sass.kinds(step)
        assert kinds["mma"] == kernel.products
        assert not {"integer division", "call", "atomic"} & kinds.keys()
        assert kinds.get("local memory", 0) <= (5 if kernel.short else 0)
        loads = [each for each in step if each.kind == "LDG"]
        assert all(sass.rare(each) for each in loads), loads
        assert sass.special_registers(step) <= CLOCK | (THREAD if kernel.short else set())


def test_a_warp_executes_few_instructions_in_a_step(kernel, code, compiled):
    """Polling does not count. One loop of a kernel, for calls without options, copies inputs in whole rows."""
    if not compiled[1].startswith(NVCC):
        pytest.skip(f"the bounds are for {NVCC}, and this is {compiled[1]}")
    steps = [sass.role(code, loop, work=lambda each: each.kind in WORK) for loop in sass.step_loops(code)]
    fewest = min((step for step in steps if step.kinds.get("cp.async")), key=lambda step: step.instructions)
    assert fewest.kinds["mma"] == kernel.products
    assert fewest.kinds["mbarrier"] == kernel.phases  # waits
    assert fewest.kinds.get("BAR", 0) == kernel.barriers
    assert fewest.kinds["STG"] >= 2  # a value that others wait for, and a result
    assert fewest.instructions <= kernel.instructions, fewest


# Sizes whose step still reads spilled values; there should be none
SPILLING = {
    ("backward", "lstm", 1024, 64, 8, 1, 0),
    ("forward", "gru_reset_after", 1024, 64, 8, 1, 0),
    ("forward", "gru", 768, 16, 2, 1, 0),
    ("forward", "gru_reset_after", 768, 16, 2, 1, 0),
    ("forward", "multiplicative_lstm_hidden", 512, 16, 2, 2, 512),
}
SPILLING_IN_FLOAT32 = {
    ("forward", "gru_reset_after", 512, 32, 4, 1, 0),
    ("forward", "gru_reset_after", 256, 8, 2, 1, 0),
    ("forward", "gru_reset_after", 256, 8, 2, 2, 0),
    ("forward", "lstm", 256, 8, 2, 2, 0),
    ("forward", "multiplicative_gru", 256, 16, 4, 1, 128),
}


def kernel_of(symbol: str) -> carry.Kernel | None:
    """Identify a kernel as the table of choice does; kernels of messages count as clusters."""
    return carry.kernel_of(symbol.replace(*map(build.SIZE_NAMES.get, ("messages", "cluster"))))


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_no_step_of_any_size_reads_spilled_values(dtype, direction):
    """The test covers all kernels in the library. Spills outside of steps hardly take time."""
    if without := torch.ops.fused_rnn.without_cuda():
        pytest.skip(f"the library has no CUDA kernels: {without}")
    compiled = ROOT / "build/objects/csrc/cuda/cluster" / f"{direction}_{dtype}.cu.o"
    report = compiled.with_suffix(".report").read_text()
    if "'sm_90a'" not in report:
        pytest.skip("the library is not for 90a, which FUSED_RNN_CUDA_ARCHS left out")
    found = re.findall(r"entry function '(\S+)' for 'sm_90a'.*?(\d+) bytes spill loads", report, re.DOTALL)
    assert len(found) >= 4  # cells
    spilled = [symbol for symbol, loads in found if loads != "0"]
    if not spilled:
        return
    kernels = build.disassembled(compiled, find_nvcc(), "-arch", "sm_90a") or pytest.skip("no disassembler")
    in_steps = {
        (direction, kernel.cell, *kernel.size) if (kernel := kernel_of(symbol)) else symbol
        for symbol, code in ((symbol, kernels[symbol]) for symbol in spilled)
        if any("local memory" in sass.kinds(sass.inside(code, loop)) for loop in sass.step_loops(code))
    }
    assert in_steps <= (SPILLING_IN_FLOAT32 if dtype == "float32" else SPILLING)


@pytest.mark.exhaustive
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_compiles_for_architectures_without_clusters(tmp_path, direction):
    """The kernels are empty there. CI builds for such an architecture, but developers of kernels often do not."""
    source = ROOT / "csrc" / "cuda" / "cluster" / f"{direction}_bfloat16.cu"
    flags = ["-std=c++17", "-O1", "-Werror=all-warnings", "-arch=sm_80"]
    subprocess.run([find_nvcc(), *flags, "-c", source, "-o", tmp_path / "kernels.o"], check=True)
