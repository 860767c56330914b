"""Modules that AOTInductor compiles and packages run where there is no package fused_rnn, and where there is no Python.

All that such a process needs of fused_rnn is its compiled library, which registers the operators as it is loaded.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

import fused_rnn
from fused_rnn import cuda, ops
from fused_rnn.cells import CELLS
from fused_rnn.operands import Results

LIBRARY = Path(fused_rnn.__file__).with_name("_C.so")
TORCH = Path(torch.__file__).parent
T, B, I, H = 7, 2, 3, 4  # of the call, not of the example

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch's own


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
    """A package, and a call with what it returns here."""

    path: Path
    x: Tensor
    lengths: Tensor
    expected: list[Tensor]


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Package:
    folder = tmp_path_factory.mktemp("package")
    torch.manual_seed(0)
    model = Model().eval()
    batch = {0: Dim.DYNAMIC}
    with torch.no_grad():
        example = torch.randn(5, 3, I), torch.tensor([5, 0, 2])
        program = torch.export.export(model, example, dynamic_shapes=(batch | {1: Dim.DYNAMIC}, batch))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))
        x, lengths = torch.randn(T, B, I), torch.tensor([3, 7])
        return Package(Path(path), x, lengths, tree_leaves(model(x, lengths)))


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


@pytest.mark.slow
def test_a_process_without_the_python_package(package, tmp_path):
    given, found = tmp_path / "given.pt", tmp_path / "found.pt"
    torch.save((package.x, package.lengths), given)
    code = [sys.executable, "-I", "-c", WITHOUT_PACKAGE]
    subprocess.run([*code, LIBRARY, package.path, given, found], check=True, cwd=tmp_path)
    for here, there in zip(torch.load(found), package.expected, strict=True):
        assert torch.allclose(here, there, atol=1e-6)


@pytest.mark.slow
def test_a_process_without_python(package, tmp_path):
    source, program = Path(__file__).parent / "aot" / "run_package.cpp", tmp_path / "run_package"
    libraries = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl", f"-Wl,-rpath,{TORCH / 'lib'}"]
    compiler = [os.environ.get("CXX", "g++"), "-std=c++20", f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}"]
    subprocess.run([*compiler, source, "-o", program, *libraries], check=True)
    given = package.x.numpy().tobytes() + package.lengths.numpy().tobytes()
    call = [program, LIBRARY, package.path, *map(str, package.x.shape)]
    found = subprocess.run(call, input=given, stdout=subprocess.PIPE, check=True).stdout
    expected = torch.cat([t.flatten() for t in package.expected])
    assert torch.allclose(torch.frombuffer(bytearray(found), dtype=torch.float32), expected, atol=1e-6)


# On a GPU -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_programs_for_a_gpu_can_call_the_loop_itself(cell):
    """The operators around it are Python's; where the program runs matters to none of what is done here."""
    spec, op = CELLS[cell], operands(cell, Shape(5, 3, I, H), lengths=[5, 0, 2], dtype=torch.float32)
    call = Call(op.arguments(), cell)
    shapes = [None if t is None else {} for t in op.arguments()]
    with torch.no_grad():
        program = torch.export.export(call, ())
        program = program.run_decompositions(cuda.decompositions())
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "fused_rnn.cuda_forward.default" in names
    assert "fused_rnn.forward.default" not in names
