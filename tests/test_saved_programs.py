"""Programs that torch.export saved with an earlier version of fused_rnn still load, and compute the same.

A saved program refers to operators and their arguments by name, so these names must not change. The file
``programs/0.1.0.pt2`` was made with version 0.1.0 and torch 2.13.0 on the CPU, by

    python -m tests.test_saved_programs tests/programs/0.1.0.pt2

A later version must not overwrite it.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import fused_rnn
from fused_rnn.cells import CELLS, WEIGHTS

from .conftest import Shape, operands, random_like, regularised, relative_error
from .test_modules import flat

PROGRAMS = sorted((Path(__file__).parent / "programs").glob("*.pt2"))
CELL = "multiplicative_lstm"
SHAPE, OTHER_SHAPE = Shape(5, 3, 2, 4), Shape(7, 2, 2, 4)


class Program(nn.Module):
    """A module, and calls of all three operators with every operand that their cell has."""

    def __init__(self) -> None:
        super().__init__()
        self.module = fused_rnn.GRU(SHAPE.I, SHAPE.H, bidirectional=True, dtype=torch.float64)

    def forward(self, operands: tuple, d_results: tuple) -> tuple[tuple[Tensor, ...], ...]:
        how = CELL, True, 0.05
        of_module = flat(self.module(operands[0], lengths=operands[len(WEIGHTS) + 3]))
        *results, cells, saved = torch.ops.fused_rnn.forward(*operands, *how, "everything")
        given = *d_results, results[0], cells
        gradients = torch.ops.fused_rnn.backward(*given, saved, *operands, *how, True, True)
        nothing = saved.new_empty(0)
        recomputed = torch.ops.fused_rnn.backward_from_states(*given, nothing, *operands, *how, True, True)
        return tuple(of_module), (*results, cells), gradients, recomputed


def given_to_program(shape: Shape) -> tuple:
    """Return a call as ``Operands``, gradients of its results, and the operators' operands."""
    op = regularised(operands(CELL, shape, reverse=True, lengths=[shape.T - row for row in range(shape.B)]))
    d_results = random_like(op.run("reference"))
    return op, d_results, tuple(None if t is None else t.detach() for t in op.arguments())


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_saved_program_computes_what_it_did(path):
    """The program agrees with the reference, at other sizes than those it was saved with."""
    program = torch.export.load(path).module()
    op, d_results, tensors = given_to_program(OTHER_SHAPE)
    of_module, results, gradients, recomputed = program(tensors, tuple(d_results))
    names = ("input", "h_0", "c_0", *WEIGHTS)
    expected = op.results_and_gradients("reference", d_results)
    for those in (gradients, recomputed):
        found = [*results, *(gradient for name, gradient in zip(names, those) if name in op.tensors)]
        assert relative_error(found, expected) < 1e-11
    module = fused_rnn.GRU(SHAPE.I, SHAPE.H, bidirectional=True, dtype=torch.float64, backend="reference")
    module.load_state_dict({name.removeprefix("module."): weight for name, weight in program.state_dict().items()})
    assert relative_error(of_module, flat(module(tensors[0], lengths=op.lengths))) < 1e-11


def test_there_are_programs():
    assert [path.stem for path in PROGRAMS] == ["0.1.0"]
    assert CELLS[CELL].modulates == "input"  # so that it has every operand but bias_hh, which the module has


def save(path: str) -> None:
    """Export the program for any number of steps and sequences."""
    torch.manual_seed(0)
    _, d_results, tensors = given_to_program(SHAPE)
    batch, steps = {0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    of_operands = (steps, batch, batch, *(None if t is None else {} for t in tensors[3:10]), batch, steps, steps)
    example = tensors, tuple(d_results)
    program = torch.export.export(
        Program().eval(), example, dynamic_shapes={"operands": of_operands, "d_results": (steps, batch, batch, steps)}
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # has paths of the sources
    torch.export.save(program, path)


if __name__ == "__main__":
    save(sys.argv[1])
