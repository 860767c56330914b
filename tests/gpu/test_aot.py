"""Packages of AOTInductor for a GPU, in a process without the Python package."""

import pytest
import torch

from ..packages import called_elsewhere, packaged

pytestmark = pytest.mark.gpu


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch's own
def test_a_process_without_the_python_package(place, tmp_path):
    package = packaged(tmp_path, place.device)
    for here, there in zip(called_elsewhere(package, tmp_path), package.expected, strict=True):
        assert here.device == there.device
        assert torch.allclose(here, there, atol=1e-5)
