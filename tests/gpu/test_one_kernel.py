"""The kernel benchmark on a GPU: both directions are correct there, and timed."""

import json

import pytest

from benchmarks.gpu import plans
from benchmarks.gpu.kernel import __main__ as kernel

from ..conftest import find_nvcc

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("direction", plans.DIRECTIONS)
def test_a_kernel_is_checked_and_timed(place, direction, tmp_path):
    if not place.is_gpu:
        pytest.skip("there is no GPU")
    find_nvcc()
    out = tmp_path / "kernels.json"
    sizes = ["--hidden", "200", "--batch", "20", "--input", "30", "--steps", "200", "--parts", "4"]
    kernel.main([*sizes, "--direction", direction, "--folder", str(tmp_path), "--out", str(out)])
    (record,) = json.loads(out.read_text())["kernels"]
    assert record["check"]["where"] == f"on {place.device}"
    assert record["us_per_step"] > 0
    assert record["plan"]["parts"] == 4
