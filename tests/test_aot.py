"""Modules that AOTInductor compiles run without the Python package fused_rnn, and without Python."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fused_rnn import cuda
from fused_rnn.cells import CELLS
from fused_rnn.operands import SAVES

from .conftest import Shape, operands
from .packages import LIBRARY, Package, called_elsewhere, packaged

TORCH = Path(torch.__file__).parent

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch's own


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Package:
    return packaged(tmp_path_factory.mktemp("package"), torch.device("cpu"))


@pytest.mark.slow
def test_a_process_without_the_python_package(package, tmp_path):
    for here, there in zip(called_elsewhere(package, tmp_path), package.expected, strict=True):
        assert torch.allclose(here, there, atol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_process_without_python(package, tmp_path):
    """A C++ program runs the package, and loads the library like any other."""
    source, program = Path(__file__).parent / "programs" / "run_package.cpp", tmp_path / "run_package"
    libraries = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl", f"-Wl,-rpath,{TORCH / 'lib'}"]
    compiler = [os.environ.get("CXX", "g++"), "-std=c++20", f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}"]
    subprocess.run([*compiler, source, "-o", program, *libraries], check=True)
    given = b"".join(tensor.numpy().tobytes() for tensor in package.call)
    call = [program, LIBRARY, package.path, *map(str, package.call[0].shape)]
    found = subprocess.run(call, input=given, stdout=subprocess.PIPE, check=True).stdout
    expected = torch.cat([t.flatten() for t in package.expected])
    assert torch.allclose(torch.frombuffer(bytearray(found), dtype=torch.float32), expected, atol=1e-6)


# On a GPU -----------------------------------------------------------------------------------------------------------


class Call(nn.Module):
    """The operator itself."""

    def __init__(self, *how) -> None:
        super().__init__()
        self.how = how

    def forward(self, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return torch.ops.fused_rnn.forward(*tensors, *self.how)


def calls(program: torch.export.ExportedProgram) -> dict[str, tuple[Tensor, ...]]:
    """Return the fake results of each operator that a program calls, by name."""
    return {str(node.target): node.meta["val"] for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.skipif(not hasattr(torch.ops.fused_rnn, "cuda_forward"), reason="a build without CUDA")
@pytest.mark.parametrize(
    ("cell", "save"), [*((cell, "everything") for cell in CELLS), *(("lstm", save) for save in SAVES[:-1])]
)
def test_programs_for_a_gpu_may_call_the_loop_itself(cell, save):
    """The CPU suffices, because the decompositions do not depend on the device."""
    given = operands(cell, Shape(7, 2, 3, 4), lengths=[3, 7], dtype=torch.float32).arguments()
    with torch.no_grad():
        program = torch.export.export(Call(cell, False, 0.0, save), given)
        found = calls(program.run_decompositions(cuda.decompositions()))
    whole, loop = calls(program)["fused_rnn.forward.default"], found["fused_rnn.cuda_forward.default"]
    assert [(t.shape, t.dtype) for t in loop] == [(t.shape, t.dtype) for t in whole]
    assert "aten.mm.default" in found
    assert "fused_rnn.forward.default" not in found
