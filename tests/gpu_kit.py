"""The means to run ``benchmarks/gpu/run_all.sh`` in tests."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.kit import __main__ as kit
from benchmarks.speed import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu" / "run_all.sh"


def run_all(out: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run the script from a folder other than the project's, and not as part of a run of pytest-xdist."""
    ours = {*kit.VARIABLES, *(name for name in os.environ if name.startswith("PYTEST_XDIST"))}
    given = {name: value for name, value in os.environ.items() if name not in ours}
    given |= {"PYTHON": sys.executable, "DEVICE": "cpu", "PROCESSES": "2", **environment}
    return subprocess.run(
        [SCRIPT, out.name], check=False, capture_output=True, text=True, env=given, cwd=out.parent, timeout=1200
    )
