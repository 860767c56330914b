"""Packages that AOTInductor makes of modules, and processes that run them without the Python package.

All that such a process needs of fused_rnn is its compiled library, which registers the operators as it is loaded. The
code around the time loop on a GPU is in Python, so programs for a GPU call the loop itself.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

import fused_rnn
from fused_rnn import cuda

LIBRARY = Path(fused_rnn.__file__).with_name("_C.so")
I, H = 3, 4

# Without what Inductor compiles for later uses: torch's headers, and a program for each instruction set of the CPU
COMPILED_ONCE = {
    "cpp_cache_precompile_headers": False,
    "aot_inductor.precompile_headers": False,
    "cpp.vec_isa_ok": True,
}


class Model(nn.Module):
    """Layers of several cells, over sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fused_rnn.LSTM(I, H, bidirectional=True)
        self.gru = fused_rnn.GRU(2 * H, H, reset_after=False, zoneout=0.1)
        self.multiplicative = fused_rnn.MultiplicativeLSTM(H, H, variant="hidden")

    def forward(self, x: Tensor, lengths: Tensor) -> tuple:
        x, of_lstm = self.lstm(x, lengths=lengths)
        x, of_gru = self.gru(x, lengths=lengths)
        x, last = self.multiplicative(x, lengths=lengths)
        return x, of_lstm, of_gru, last


@dataclass
class Package:
    """A package, and a call with its results here."""

    path: Path
    call: tuple[Tensor, Tensor]
    expected: list[Tensor]


def packaged(folder: Path, device: torch.device) -> Package:
    """Return the model for a device, compiled for any number of steps and sequences, and a call in other sizes."""
    torch.manual_seed(0)
    model = Model().eval().to(device)
    batch = {0: Dim.DYNAMIC}
    with torch.no_grad():
        example = torch.randn(5, 3, I, device=device), torch.tensor([5, 0, 2], device=device)
        program = torch.export.export(model, example, dynamic_shapes=(batch | {1: Dim.DYNAMIC}, batch))
        if device.type == "cuda":
            program = program.run_decompositions(cuda.decompositions())
        with torch._inductor.config.patch(COMPILED_ONCE):
            path = torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))
        call = torch.randn(7, 2, I, device=device), torch.tensor([3, 7], device=device)
        return Package(Path(path), call, tree_leaves(model(*call)))


WITHOUT_PACKAGE = """
import sys
import torch

sys.modules["fused_rnn"] = None  # importing it fails
library, package, given, found = sys.argv[1:]
torch.ops.load_library(library)
model = torch._inductor.aoti_load_package(package)
torch.save(torch.utils._pytree.tree_leaves(model(*torch.load(given))), found)
assert not any(name.startswith("fused_rnn.") for name in sys.modules)
"""


def called_elsewhere(package: Package, folder: Path) -> list[Tensor]:
    """Return the results of the call in a process without the package fused_rnn."""
    given, found = folder / "given.pt", folder / "found.pt"
    torch.save(package.call, given)
    code = [sys.executable, "-I", "-c", WITHOUT_PACKAGE]
    subprocess.run([*code, LIBRARY, package.path, given, found], check=True, cwd=folder)
    return torch.load(found)
