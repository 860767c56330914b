"""The kernels of warps on the CPU, by the host shim, against the float64 reference; time-outs, races and refusals."""

import ctypes

import pytest
import torch

from .conftest import Operands, Shape, operands
from .host_kernels import DIRECTIONS, HostKernels, Way, library_of, needs_compiler, plan_of, run_kernels
from .precision import Yardstick

pytestmark = needs_compiler
CELLS = ["lstm", "gru_reset_after", "rnn_tanh", "rnn_relu"]
DTYPES = [torch.bfloat16, torch.float16]
H200 = (132, 66, 30, 15, 7)  # clusters of 1, 2, 4, 8 and 16 blocks that run at the same time
# K, blocks of a cluster, shares of K and octets of sequences of what is compiled
SIZES = [(32, 1, 1, 1), (64, 1, 2, 2), (32, 2, 1, 1), (64, 2, 2, 2), (64, 4, 1, 1), (128, 8, 4, 1), (256, 16, 2, 1)]
# so that a wait gives up after so many turns of all threads, and a block stays for as long as stores may take
WAITS = ["-DFUSED_RNN_WAIT_CYCLES=3000", "-DFUSED_RNN_DRAIN_CYCLES=500"]


def compiled(*sizes: tuple[int, ...]) -> str:
    """The macro that chooses sizes."""
    return "-DFUSED_RNN_CLUSTER_SIZES=" + ",".join(f"Size<{','.join(map(str, size))}>" for size in sizes)


def way(blocks: int, octets: int = 1, clusters: tuple[int, ...] = H200) -> Way:
    """What makes the one size with so many blocks and octets run."""
    return Way(132, 232_448, f"exchange=cluster,parts={blocks},sequences={8 * octets}", clusters)


# One block, two and four, with a cluster for each tile and with one for all tiles
WAYS = {
    "block": way(1),
    "block-of-16-sequences": way(1, 2, (1, 1, 1, 1, 1)),
    "cluster-of-2": way(2, 1, (1, 1, 1, 1, 1)),
    "cluster-of-2-and-16-sequences": way(2, 2),
    "cluster-of-4": way(4),
}


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> ctypes.CDLL:
    return library_of("clusters", tmp_path_factory, compiled(*SIZES), *WAITS)


def assert_as_exact_as_pytorch(library, draws: list[Operands], way: Way, seed: int = 0) -> None:
    yardstick = Yardstick(draws)
    yardstick.assert_no_worse(lambda op, d_results: run_kernels(op, d_results, HostKernels(library, way, seed)))


def drawn(cell: str, shape: Shape, dtype: torch.dtype, count: int = 3, **how) -> list[Operands]:
    """Draws of a call. In one alone PyTorch's error may be small by luck."""
    return [operands(cell, shape, scale=1.0, dtype=dtype, seed=seed, **how) for seed in range(count)]


# Right --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("K", "blocks", "shares", "octets"), SIZES)
def test_every_size_is_chosen_by_what_forces_it(library, direction, K, blocks, shares, octets):
    plan = plan_of(library, direction, "lstm", Shape(3, 40, 1, K), way(blocks, octets), torch.bfloat16)
    assert (plan.exchange, plan.parts, plan.sequences, plan.segments) == ("cluster", blocks, 8 * octets, 1)
    assert (plan.teams, plan.workspace_bytes, plan.streamed) == (5 if octets == 1 else 3, 0, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("cell", CELLS)
def test_results_and_gradients(library, cell, name, dtype):
    """More than a tile of sequences; units that do not fill K, nor whole rows."""
    H = {"block": 21, "cluster-of-2": 32}.get(name, 53)
    assert_as_exact_as_pytorch(library, drawn(cell, Shape(5, 19, 5, H), dtype), WAYS[name])


@pytest.mark.parametrize(("blocks", "cell"), [(8, "lstm"), (8, "gru_reset_after"), (16, "lstm")])
def test_large_clusters(library, blocks, cell):
    H = 16 * blocks - 8
    assert_as_exact_as_pytorch(library, drawn(cell, Shape(3, 9, 2, H), torch.bfloat16, 1), way(blocks))
