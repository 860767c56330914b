"""The benchmark of the host's part of a GPU call: stand-ins for kernels, measurements, and their report."""

import json

import pytest
import torch

from benchmarks import common
from benchmarks.host import __main__ as host
from benchmarks.host import measuring, report
from fused_rnn import ops, products

from .conftest import Shape, operands, random_like

if not ops.LIBRARY_LOADED:
    pytest.skip("the operators are the compiled library's", allow_module_level=True)


@pytest.mark.parametrize("save", ["nothing", "everything"])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_after"])
def test_results_have_the_shapes_of_the_operators(cell, save):
    op = operands(cell, Shape(4, 2, 3, 5))
    how = (op.cell, False, 0.0)
    kernels = products.Kernels(measuring.allocate_results, measuring.allocate_gradients)
    with torch.no_grad():
        expected = torch.ops.fused_rnn.forward(*op.arguments(), *how, save)
        found = products.forward(*op.arguments(), *how, save, kernels=kernels)
        assert [t.shape for t in found] == [t.shape for t in expected]
        if save == "nothing":
            return
        d_results = [*random_like(op.run("reference")), None, None][:4]
        call = (*d_results, expected[0], expected[3], expected[4], *op.arguments(), *how, True, True)
        expected = torch.ops.fused_rnn.backward(*call)
        found = products.backward(*call, kernels=kernels)
        assert [t.shape for t in found] == [t.shape for t in expected]


def test_a_run_from_the_command_line(tmp_path, capsys):
    """Every part of a call is measured."""
    path = tmp_path / "host-cpu.json"
    host.main(["--quick", "--out", str(path)])
    result = json.loads(path.read_text())
    found = {(r["cell"], r["layers"], r["mode"], r["part"]): r["us"] for r in result["times"]}
    parts = {(mode, part) for mode in ("forward", "training") for part in ("call", "operator", "products", "results")}
    parts.add(("recorded", "call"))
    assert set(found) == {(cell, layers, *part) for cell in ("lstm", "gru") for layers in (1, 2) for part in parts}
    assert all(us > 0 for us in found.values())
    assert report.section(result) in capsys.readouterr().out


def test_folders_without_the_package_are_refused(tmp_path):
    with pytest.raises(common.InputError, match="must be a folder with fused_rnn and its library"):
        host.main(["--against", str(tmp_path)])


def example() -> dict:
    us = {("forward", "call"): 40, ("recorded", "call"): 60, ("training", "call"): 200}
    us |= {("forward", "products"): 15, ("training", "products"): 70}
    times = [
        {"source": source, "cell": "gru", "layers": 2, "mode": mode, "part": part, "us": value * factor}
        for source, factor in (("here", 1), ("d91c748", 2))
        for (mode, part), value in us.items()
    ]
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "hardware": {**common.hardware(), "threads": 1},
        "plan": {"sources": ["here", "d91c748"], "rounds": 3, "repeats": 1},
        "times": times,
    }


def test_report():
    text = report.block([example()])
    assert "| GRU, 2 layers | 40.0 of 80.0: 50% | 60.0 of 120: 50% | 200 of 400: 50% |" in text
    assert "| GRU, 2 layers | here | 25.0 | 20.0 | 15.0 | 70.0 | 70.0 |" in text
    assert "| GRU, 2 layers | d91c748 | 50.0 | 40.0 | 30.0 | 140 | 140 |" in text
    assert report.block([]) == common.NOT_MEASURED
