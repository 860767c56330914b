"""CONTRIBUTING.md's steps to add a cell, applied to a copy of the sources: it builds, and passes the cells' tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"`(?P<new>[^`\n]+)`, a new file:\n\n```\w+\n(?P<content>.*?)```"
    r"|At the end of `(?P<end>[^`\n]+)`:\n\n```\w+\n(?P<appended>.*?)```"
    r"|In\s`(?P<path>[^`\n]+)`, after\s`(?P<line>[^`\n]+)`:\n\n```\w+\n(?P<inserted>.*?)```",
    re.DOTALL,
)
USE = """
import torch
from fused_rnn.modules import CoupledLSTM

module = CoupledLSTM(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64, backend="cpu")
oracle = CoupledLSTM(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64, backend="reference")
oracle.load_state_dict(module.state_dict())
x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
torch.testing.assert_close(module(x), oracle(x))
torch.autograd.gradcheck(lambda x: module(x)[0], (x,))
print("a new cell")
"""


def add_cell(tree: Path) -> list[str]:
    """Apply CONTRIBUTING.md's steps to the sources in ``tree``; return the files that changed."""
    changed = []
    for step in BLOCK.finditer((ROOT / "CONTRIBUTING.md").read_text()):
        path = tree / (step["new"] or step["end"] or step["path"])
        if step["new"]:
            assert not path.exists()
            path.write_text(step["content"])
        elif step["end"]:
            path.write_text(path.read_text() + step["appended"])
        else:
            before, line, after = path.read_text().partition(step["line"])
            assert line, f"{step['path']} has no {step['line']!r}"
            path.write_text(f"{before}{line}\n{step['inserted'].rstrip()}{after}")
        changed.append(str(path.relative_to(tree)))
    return changed


def run(tree: Path, *arguments: str, **environment: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree), "FUSED_RNN_CUDA": "0", **environment}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.exhaustive
def test_adding_a_cell_takes_what_is_written(tmp_path):
    unwanted = shutil.ignore_patterns("*.so", "__pycache__")
    for folder in ("csrc", "fused_rnn", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, tmp_path / name)
    assert len(set(add_cell(tmp_path))) == 7
    run(tmp_path, "setup.py", "-q", "build_ext", "--inplace", FUSED_RNN_CXXFLAGS="-O0")  # quick to compile
    assert "a new cell" in run(tmp_path, "-c", USE)
    said = run(tmp_path, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_ops.py", "-k", "coupled_lstm")
    assert re.search(r"\d\d passed", said)
