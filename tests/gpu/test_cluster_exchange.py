"""The exchange within a cluster on a GPU that has clusters: the checks of the host shim, run there."""

import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.kernel.__main__ import own_architecture

from ..conftest import find_nvcc
from ..test_cluster_exchange import CHECKS, ROOT, SHIM

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> dict[str, Path]:
    """What was compiled, by architecture."""
    return {}


@pytest.mark.parametrize("check", CHECKS)
def test_kernels_of_warps_are_right(place, programs, tmp_path_factory, check):
    if not place.is_gpu or torch.cuda.get_device_capability(place.device) < (9, 0):
        pytest.skip("there is no GPU with clusters")
    architecture = own_architecture(place.device)
    if architecture not in programs:
        target = tmp_path_factory.mktemp("warps") / "warps"
        command = [find_nvcc(), "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-x", "cu", ROOT / SHIM / "warps.cpp"]
        subprocess.run([*command, "-o", target], check=True)
        programs[architecture] = target
    for _ in range(3):
        run = subprocess.run([programs[architecture], check, "0"], check=False, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
