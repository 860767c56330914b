"""One kernel compiled and loaded: by nvcc for a GPU, or by a C++ compiler for the host shim of the tests."""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.gpu import toolkit
from benchmarks.speed import ROOT
from fused_rnn import cuda
from fused_rnn.cells import CELLS

from . import calls, sass

SOURCE = Path(__file__).with_name("kernel.cu")
SHIM = ROOT / "tests" / "host_shim"
SIZE_NAMES = {"cluster": "4Size", "messages": "8TeamSize"}  # in symbols of warp kernels, by exchange
CPP_TYPES = {"float32": "float", "float64": "double", "bfloat16": "BFloat16", "float16": "Half"}
# hidden: a library must not share its state with libraries for other sizes in the same process; --exclude-libs: the
# CUDA runtime's functions must not be mixed with those of torch's runtime
NVCCFLAGS = [
    "-std=c++17",
    "-O3",
    "-Xcompiler=-Wall,-fPIC,-fvisibility=hidden",
    "-Xlinker=--exclude-libs,ALL",
    "--resource-usage",
]
HOSTFLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror"]
SMALL = ["-DFUSED_RNN_THREADS=64", "-DFUSED_RNN_WEIGHT_REGISTERS=64", "-DFUSED_RNN_WAIT_POLLS=20000"]


class CompilerError(Exception):
    """The kernel did not compile; the message is the compiler's."""


def cpp_cell(cell: str) -> str:
    """Return the name of the base cell in csrc/cells."""
    base = calls.base_of(cell)
    rnn = base.startswith("rnn_")
    return f"Rnn<{base.removeprefix('rnn_').title()}>" if rnn else base.title().replace("_", "")


def macros(cell: str, dtype: str, direction: str, exchange: str) -> list[str]:
    """Return the macros that choose the kernel in kernel.cu."""
    chosen = {
        "CELL": cpp_cell(cell),
        "MODULATES": CELLS[cell].modulates or "nothing",
        "TYPE": CPP_TYPES[dtype],
        "EXCHANGE": f"{exchange.title().replace('_', '')}Exchange",
        "IN_CLUSTERS": int(exchange == "cluster"),
        "FORWARD": int(direction == "forward"),
    }
    return [f"-DKERNEL_{macro}={value}" for macro, value in chosen.items()]


def macros_of_clusters(dtype: str, direction: str) -> list[str]:
    """Return the macros that choose the warp kernels of all cells there."""
    return [f"-DKERNEL_TYPE={CPP_TYPES[dtype]}", f"-DKERNEL_FORWARD={int(direction == 'forward')}"]


def compiled(command: Sequence[str | Path], target: Path) -> str:
    """Run a compiler with ``-o target``, which exists only after success; return the compiler's output."""
    with common.replacing(target) as partial_path:
        done = subprocess.run(
            [*command, "-o", partial_path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            raise CompilerError(done.stdout)
    return done.stdout


# For a GPU ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resources:
    """The kernel's resources according to the compiler: registers and bytes of a thread, bytes of a block."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    static_shared: int


def find_nvcc(arch: str) -> str:
    """Find an nvcc that knows the architecture; raise InputError without one."""
    nvcc = toolkit.nvcc()
    if not nvcc:
        raise common.InputError(
            "there is no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda to compile the kernel with"
        )
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout.split()
    if f"compute_{arch.rstrip('af')}" not in known:
        listed = ", ".join(name.removeprefix("compute_") for name in known)
        raise common.InputError(f"--arch {arch} is unknown to {nvcc}, which knows {listed or 'none'}")
    return nvcc


def architecture_of(major: int, minor: int) -> str:
    """Return nvcc's name of GPUs of this compute capability, with their architecture-specific features."""
    return f"{major}{minor}{'a' if major >= 9 else ''}"


def nvcc_command(nvcc: str, arch: str, chosen: list[str], source: Path = SOURCE) -> list[str]:
    return [nvcc, *NVCCFLAGS, f"-gencode=arch=compute_{arch},code=sm_{arch}", *chosen, "-shared", str(source)]


def version_of(nvcc: str) -> str:
    """Return a version such as 'nvcc 13.0, V13.0.88'."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\S+, \S+)", said)
    return f"nvcc {found[1]}" if found else said.strip()


def resources(report: str, direction: str) -> dict[str, Resources]:
    """Parse the resources of the kernels of this direction by symbol, as ptxas reports them with --resource-usage."""

    def number(pattern: str, about: str) -> int:
        found = re.search(pattern, about)
        return int(found[1]) if found else 0

    patterns = (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
    patterns += (r"(\d+) bytes stack frame", r"(\d+) bytes smem")
    parts = (part.lstrip(" '").split("'", 1) for part in report.split("Compiling entry function")[1:])
    return {
        symbol: Resources(*(number(pattern, about) for pattern in patterns))
        for symbol, about in parts
        if f"run_{direction}" in symbol
    }


def disassembled(binary: Path, nvcc: str, *options: str) -> dict[str, list[sass.Instruction]] | None:
    """Return the instructions of every kernel of a library or cubin; None without a disassembler.

    Options are those of cuobjdump, such as ``-arch`` for kernels that are compiled for several architectures.
    """
    text = disassembly(binary, nvcc, *options)
    return None if text is None else sass.parse(text)


def disassembly(binary: Path, nvcc: str, *options: str) -> str | None:
    """The same as text."""
    program = toolkit.cuobjdump(nvcc)
    if not program:
        return None
    path = os.pathsep.join([str(Path(program).parent), os.environ.get("PATH", "")])  # for nvdisasm
    run = subprocess.run(
        [program, "-sass", *options, binary],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": path},
    )
    return run.stdout


def symbol_of(symbols: Iterable[str], hidden: int, features: int, plan: cuda.Plan) -> str:
    """Return the symbol of the kernel that a plan launches, with this many features of a modulated input, otherwise 0.

    Each warp kernel is for one size: K, blocks, shares of K, octets, and perhaps features.
    """
    symbols = list(symbols)
    if plan.exchange not in SIZE_NAMES:
        (only,) = symbols
        return only
    found = []
    for symbol in symbols:
        size = re.search(rf"{SIZE_NAMES[plan.exchange]}I((?:Li\d+E)+)E", symbol)
        if not size:
            continue
        most_units, blocks, _, octets, most_features, *_ = *map(int, re.findall(r"\d+", size[1])), 0
        has_room = most_units >= hidden and most_features >= features
        if has_room and (blocks, 8 * octets) == (plan.parts, plan.sequences):
            found.append((most_units, most_features, symbol))
    return min(found)[2]


# For the host shim --------------------------------------------------------------------------------------------------


def host_compiler() -> str:
    return os.environ.get("CXX") or "g++"


def host_obstacle() -> str | None:
    """Return why kernels cannot run on the host shim here, or None if they can."""
    if not SHIM.is_dir():
        return f"the host shim is not in {SHIM}"
    return None if shutil.which(host_compiler()) else f"there is no C++ compiler {host_compiler()}"


def compile_on_host(source: Path, target: Path, *flags: str, shim: Path = SHIM) -> None:
    """Compile kernels for the host shim, with few threads and short chunks.

    Its runtime is compiled without ``flags``, once per folder.
    """
    command, runtime = [host_compiler(), *HOSTFLAGS], target.with_name("host_shim.o")
    if not runtime.exists():
        compiled([*command, "-O2", "-c", shim / "host_shim.cpp"], runtime)
    compiled([*command, f"-I{shim}", *SMALL, *flags, "-x", "c++", source, "-x", "none", runtime], target)


# Loaded -------------------------------------------------------------------------------------------------------------


class Library:
    """A compiled kernel, and the device that it is planned for."""

    def __init__(self, path: Path, chip: cuda.Chip, device: torch.device) -> None:
        self._library = ctypes.CDLL(str(path))
        for function in (self._library.plan_call, self._library.run_call):
            function.restype = ctypes.c_char_p
        self._chip, self.device = calls.Chip.of(chip), device

    def plan(self, structure: ctypes.Structure) -> cuda.Plan:
        """Return a call's division of work; raise InputError if it cannot run."""
        plan = calls.Plan()
        refused = self._library.plan_call(*map(ctypes.byref, (structure, self._chip, plan)))
        if refused:
            raise common.InputError(refused.decode().removeprefix("fused_rnn: "))
        return cuda.Plan(**plan.values)

    def prepared(self, call: calls.Call) -> Callable[[], None]:
        """Return a function that queues the call, in its own workspace, and raises RuntimeError if the launch fails."""
        size = self.plan(call.structure).workspace_bytes
        memory = torch.full((size + 256,), 0xFF, dtype=torch.uint8, device=self.device)  # callers need not clear it
        workspace = memory[-memory.data_ptr() % 256 :]
        stream = torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else None

        def queue() -> None:
            error = self._library.run_call(
                *map(ctypes.byref, (call.structure, self._chip)),
                ctypes.c_void_p(workspace.data_ptr()),
                ctypes.c_void_p(stream),
            )
            if error:
                raise RuntimeError(error.decode())

        return queue

    def run(self, call: calls.Call) -> tuple[Tensor, ...]:
        """Return its results; raise RuntimeError if it fails or a block times out."""
        self.prepared(call)()
        check_waits(call)
        return call.results


def check_waits(call: calls.Call) -> None:
    """Wait for the device; raise RuntimeError if a block of the call timed out."""
    if call.timed_out:
        raise RuntimeError("a block of the kernel timed out, waiting for another")
