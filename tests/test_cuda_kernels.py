"""The CUDA kernels, run on the CPU by the host shim, against the float64 reference; races, hangs and compilation."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fused_rnn import ops

from .conftest import Operands, Shape, find_nvcc, operands, random_like, relative_error

HERE = Path(__file__).parent / "host_shim"
COMPILER = os.environ.get("CXX", "g++")
BASE_CELLS = ["rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_after"]  # in the order of CellId
RACES = ["-O1", "-g1"]  # a program for sanitizers in place of the library
pytestmark = pytest.mark.skipif(not shutil.which(COMPILER), reason=f"no C++ compiler: {COMPILER}")


class Chip(ctypes.Structure):
    """What a plan must know of a device, and how it is forced to be."""

    _fields_ = (
        ("multiprocessors", ctypes.c_int),
        ("shared_bytes", ctypes.c_int64),
        ("sequences", ctypes.c_int),
        ("parts", ctypes.c_int),
    )


class Plan(ctypes.Structure):
    """How a call is launched."""

    _fields_ = tuple(
        (name, ctypes.c_int) for name in ("sequences", "teams", "parts", "segments", "streams", "possible")
    )

    def __repr__(self) -> str:
        return str({name: getattr(self, name) for name, _ in self._fields_})


LAYER = [("cell", ctypes.c_int), ("multiplicative", ctypes.c_bool), ("type", ctypes.c_int), ("reverse", ctypes.c_bool)]
LAYER += [(size, ctypes.c_int64) for size in "TBIH"]
FORWARD = "projected input h_0 c_0 weight_ih weight_hh weight_mhh bias_m bias_ih bias_hh output h_n c_n saved"
BACKWARD = "d_output d_h_n d_c_n output saved input h_0 c_0 weight_ih weight_hh weight_mhh d_h_0 d_c_0 d d_input"
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # in the order of Type


def structure(names: str, *more: tuple) -> type[ctypes.Structure]:
    fields = [(name, ctypes.c_void_p) for name in ["lengths", "timed_out", *names.split()]]
    return type("Call", (ctypes.Structure,), {"_fields_": [*LAYER, *fields, *more]})


CALLS = {"forward": structure(FORWARD, ("states_only", ctypes.c_bool)), "backward": structure(BACKWARD)}


def compile_sequences(folder: Path, *flags: str, sources: Path = HERE) -> Path:
    """Build sequences.cpp with few threads and short chunks; the runtime goes without sanitizers."""
    runtime, target = folder / "host_shim.o", folder / "sequences"
    common = [COMPILER, "-std=c++17", "-fPIC", "-Wall", "-Werror"]
    subprocess.run([*common, "-O2", "-c", sources / "host_shim.cpp", "-o", runtime], check=True)
    small = ["-DFUSED_RNN_THREADS=64", "-DFUSED_RNN_WEIGHT_REGISTERS=64", "-DFUSED_RNN_WAIT_POLLS=20000"]
    source = [f"-I{sources}", *small, *flags, sources / "sequences.cpp", runtime]
    subprocess.run([*common, *source, "-o", target], check=True)
    return target


def run_program(program: Path, chip: Chip, seed: int) -> subprocess.CompletedProcess:
    arguments = [program, *(str(getattr(chip, name)) for name, _ in chip._fields_), str(seed)]
    run = subprocess.run(arguments, check=False, capture_output=True, text=True)
    if "unexpected memory mapping" in run.stderr:
        pytest.skip("ThreadSanitizer does not run with this kernel's address space randomisation")
    return run


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("sequences")
    loaded = ctypes.CDLL(compile_sequences(folder, "-O1", "-shared"))
    loaded.run_forward_call.restype = loaded.run_backward_call.restype = ctypes.c_char_p
    return loaded


def base_cell(cell: str) -> int:
    return BASE_CELLS.index(cell.removeprefix("multiplicative_"))


def is_multiplicative(cell: str) -> bool:
    return cell.startswith("multiplicative_")


def launch(library, direction: str, op: Operands, chip: Chip, seed: int, tensors: dict, missing: int = 0) -> None:
    """Run one kernel on named tensors; fails if it does not come to its end, or if it should not and says nothing."""
    T, B, I = op.tensors["input"].shape
    timed_out = torch.zeros(1, dtype=torch.int32)
    tensors = {**tensors, "timed_out": timed_out, "lengths": op.lengths}
    assert all(t is None or t.is_contiguous() for t in tensors.values())
    call = CALLS[direction](
        cell=base_cell(op.cell),
        multiplicative=is_multiplicative(op.cell),
        type=TYPES.index(op.tensors["input"].dtype),
        reverse=op.reverse,
        **{"T": T, "B": B, "I": I, "H": op.tensors["weight_hh"].shape[1]},
        **{name: None if t is None else t.data_ptr() for name, t in tensors.items()},
    )
    error = getattr(library, f"run_{direction}_call")(ctypes.byref(call), ctypes.byref(chip), seed, missing)
    assert error == b"", error.decode()
    assert timed_out.item() == (missing > 0)


@torch.no_grad()
def run_kernels(
    library, op: Operands, d_results: list[Tensor], chip: Chip, seed: int, missing: int = 0
) -> list[Tensor]:
    """Results and gradients in the order of Operands.results_and_gradients, from the kernels and the products."""
    t = {name: tensor.detach() for name, tensor in op.tensors.items()}
    spec, (T, B, I) = ops.CELLS[op.cell], t["input"].shape
    H, dtype = t["weight_hh"].shape[1], t["input"].dtype

    def empty(*shape: int) -> Tensor:
        """Memory whose every value must be written: with a number, if it is NaN here, and the other way round."""
        return torch.full(shape, 1.0 if missing else torch.nan, dtype=dtype)

    wide = {name: tensor.to(torch.promote_types(dtype, torch.float32)) for name, tensor in t.items()}
    m = "m" if spec.multiplicative else ""
    state = {"h_0": t["h_0"], "c_0": t.get("c_0")}
    weights = {"weight_hh": t["weight_hh"]}
    if m:
        weights |= {"weight_ih": t["weight_ih"], "weight_mhh": t["weight_mhh"], "input": t["input"]}
    results = {name: empty(B, H) for name in ("h_n", "c_n")[: 1 + spec.has_cell_state]}
    results = {"output": empty(T, B, H), **results}
    saved = empty(T, B, spec.saved * H + (I if m else 0))
    projected = torch.nn.functional.linear(t["input"], t[f"weight_{m}ih"])
    biases = {name: t.get(name) for name in ("bias_ih", "bias_hh", "bias_m")}
    forward = {"projected": projected, **state, **weights, **biases, **results, "saved": saved}
    launch(library, "forward", op, chip, seed, forward, missing)
    width = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "multiplicative_gru": 3}.get(op.cell, 4) * H
    backward = {
        **{f"d_{name}": d.to(dtype) for name, d in zip(results, d_results)},
        **state,
        **weights,
        "output": results["output"],
        "saved": saved,
        "d_h_0": empty(B, H),
        "d_c_0": empty(B, H),
        "d": empty(T, B, width + (I if m else 0)),
        "d_input": empty(T, B, I),
    }
    launch(library, "backward", op, chip, seed, backward, missing)
    gradients = products(op, wide, forward, backward, width)
    return [*results.values(), *(gradients[name].to(dtype) for name in op.tensors)]


def products(op: Operands, wide: dict, forward: dict, backward: dict, width: int) -> dict[str, Tensor]:
    """The gradients of all operands, from those of the pre-activations."""
    spec, H = ops.CELLS[op.cell], wide["weight_hh"].shape[1]
    d = backward["d"].to(wide["h_0"].dtype)
    before = torch.cat([wide["h_0"][None], forward["output"].to(d.dtype)])
    h_prev = before[:-1]
    if op.reverse:
        h_prev = torch.cat([before[2:], before[:1]])
    if op.lengths is not None:  # the first step of a sequence comes after its initial state
        first = op.lengths - 1 if op.reverse else torch.zeros_like(op.lengths)
        begins = (torch.arange(len(h_prev)).unsqueeze(1) == first).unsqueeze(2)
        h_prev = torch.where(begins, wide["h_0"], h_prev)
    idle = torch.zeros(len(h_prev), h_prev.shape[1], 1, dtype=torch.bool)
    if op.lengths is not None:
        idle = (torch.arange(len(h_prev)).unsqueeze(1) >= op.lengths).unsqueeze(2)
    saved = forward["saved"].to(d.dtype).masked_fill(idle, 0)
    x = wide["input"]
    x_hat = saved[..., spec.saved * H :] * x if spec.multiplicative else x
    outer = lambda a, b: torch.einsum("tbi,tbj->ij", a, b)  # noqa: E731
    wx, uh, operand = d[..., : spec.gates * H], d[..., : spec.gates * H], h_prev
    result = {
        "h_0": backward["d_h_0"],
        "c_0": backward["d_c_0"],
        "weight_ih": outer(wx, x_hat),
        "bias_ih": wx.sum((0, 1)),
    }
    if op.cell == "gru_reset_after":
        uh = torch.cat([d[..., : 2 * H], d[..., 3 * H : 4 * H]], -1)
    result |= {"weight_hh": outer(uh, operand), "bias_hh": uh.sum((0, 1))}
    if op.cell.endswith("gru"):
        result["weight_hh"][2 * H :] = outer(d[..., 2 * H : 3 * H], saved[..., :H] * h_prev)
    if not spec.multiplicative:
        return {**result, "input": wx @ wide["weight_ih"]}
    dm = d[..., width:]
    result |= {"weight_mih": outer(dm, x), "weight_mhh": outer(dm, h_prev), "bias_m": dm.sum((0, 1))}
    return {**result, "input": backward["d_input"] + dm @ wide["weight_mih"]}


# Ways to divide the work: one block for each tile of 8 sequences; a team for several tiles in turn, with all weights on
# the chip; a team for tiles of 16 sequences, with a part of the weights streamed
CHIPS = {"block": Chip(16, 200_000, 8, 1), "team": Chip(3, 200_000, 8, 3), "streamed": Chip(6, 52_000, 16, 2)}


def plan_of(library, direction: str, cell: str, shape: Shape, chip: Chip) -> Plan:
    """How a call in float64 would be launched."""
    call = CALLS[direction](cell=base_cell(cell), multiplicative=is_multiplicative(cell), **vars(shape))
    function = getattr(library, f"plan_{direction}_call")
    function.restype = Plan
    return function(ctypes.byref(call), ctypes.byref(chip))


def compare(library, op: Operands, allowed: float, chip: Chip, seed: int = 0) -> None:
    d_results = random_like(op.run("reference"))
    exact = op.to(torch.float64).results_and_gradients("reference", d_results)
    values = run_kernels(library, op, d_results, chip, seed)
    assert relative_error(values, exact) <= allowed


@pytest.mark.parametrize("direction", CALLS)
def test_plans(library, cell, direction):
    """The ways of CHIPS are what they are meant to be, and a plan that is not forced takes the cheapest."""
    block, team, streamed = (plan_of(library, direction, cell, Shape(3, 11, 5, 23), chip) for chip in CHIPS.values())
    assert (block.sequences, block.teams, block.parts) == (8, 2, 1)
    assert (team.sequences, team.teams, team.parts, team.streams) == (8, 1, 3, 0)
    assert (streamed.sequences, streamed.teams, streamed.parts) == (16, 1, 2)
    assert streamed.streams or cell.startswith("rnn")
    free = Chip(132, 232_448)
    assert plan_of(library, direction, cell, Shape(8, 8, 8, 32), free).parts == 1
    assert plan_of(library, direction, cell, Shape(8, 16, 512, 512), free).parts > 8
    assert plan_of(library, direction, cell, Shape(8, 16, 512, 8192), free).streams


def test_too_large_for_the_chip(library):
    op = operands("lstm", Shape(1, 1, 2, 200))
    with pytest.raises(AssertionError, match=r"6000 bytes .* H = 200 .* 2 multiprocessors"):
        run_kernels(library, op, random_like(op.run("reference")), Chip(2, 6_000), seed=0)


def test_a_block_that_does_not_come(library, cell):
    """The others give up in time and say so, and every result is NaN rather than something that looks like one."""
    op = operands(cell, Shape(3, 11, 5, 23))
    d_results = random_like(op.run("reference"))
    values = run_kernels(library, op, d_results, CHIPS["team"], seed=0, missing=1)
    results, d_h_0 = values[: len(d_results)], values[len(d_results) + list(op.tensors).index("h_0")]
    assert all(t[..., :16].isnan().all() for t in [*results, d_h_0])  # of the two blocks that did come


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("shape", [Shape(1, 1, 1, 1), Shape(4, 3, 2, 5), Shape(3, 11, 5, 23)], ids=str)
def test_float64_equals_reference(library, cell, shape, chip, reverse):
    compare(library, operands(cell, shape, reverse=reverse), 1e-11, CHIPS[chip])


def test_states_larger_than_shared_memory(library, cell):
    """States that come to shared memory in segments, two of which take turns."""
    shape, chip = Shape(2, 3, 5, 150), Chip(20, 36_000, 8, 10)
    assert plan_of(library, "backward", cell, shape, chip).segments > 1 or cell.startswith("rnn")
    compare(library, operands(cell, shape), 1e-11, chip)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_order_of_threads_does_not_matter(library, cell, seed):
    compare(library, operands(cell, Shape(4, 9, 3, 19)), 1e-11, CHIPS["team"], seed)


@pytest.mark.parametrize("chip", ["block", "team"])
def test_lengths(library, cell, chip, reverse):
    lengths = [3, 5, 0, 1, 5, 5, 2, 0, 0, 4, 2]  # the second tile ends early, and so rests in the last step
    op = operands(cell, Shape(5, len(lengths), 3, 18), reverse=reverse, lengths=lengths)
    compare(library, op, 1e-11, CHIPS[chip])


@pytest.mark.parametrize(
    "chip", [Chip(2, 200_000, 8, 1), Chip(10, 200_000, 8, 5), Chip(5, 48_000, 16, 5)], ids=list(CHIPS)
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_no_worse_than_pytorch(library, cell, dtype, chip):
    op = operands(cell, Shape(7, 9, 7, 70), scale=1.0, dtype=dtype)
    d_results = random_like(op.run("reference"))
    exact = op.to(torch.float64).results_and_gradients("reference", d_results)
    theirs = relative_error(op.results_and_gradients("reference", d_results), exact)
    compare(library, op, 2 * theirs, chip)


# for the program of RACES: multiprocessors, shared memory, and how the plan is forced
RACED = {"block": Chip(4, 200_000, 8, 1), "team": Chip(4, 200_000, 8, 2), "streamed": Chip(2, 48_000, 16, 2)}


@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_sanitizers_find_nothing(tmp_path, sanitizer):
    program = compile_sequences(tmp_path, "-DRACES=2", *RACES, f"-fsanitize={sanitizer}")
    for seed, chip in enumerate(RACED.values()):
        run = run_program(program, chip, seed)
        assert run.returncode == 0, run.stderr[-4000:]


ROOT = HERE.parent.parent
# A file of the kernels, what is changed in it, and what it becomes
FAULTS = {
    "no-meeting": ("block.h", r"arrived = wait_for\(.*?\);", ""),
    "no-barrier-before-adding-up": (
        "block.h",
        r"(first_part\);\s+if .*?copy_async_wait<0>\(\);\s+\}\s+)__syncthreads\(\);",
        r"\1",
    ),
    "no-barrier-after-fetching": ("block.h", r"if \(!q_.local\) __syncthreads\(\);", ""),
    "no-wait-for-copies": ("block.h", r"copy_async_wait<1>\(\);", ""),
    "relaxed-wait": ("device.h", r"load_acquire\(counter\) < target", "load_relaxed(counter) < target"),
    "single-buffer": ("forward.h", r"publish\(q_.h, 1 - turn_", "publish(q_.h, turn_"),
    "single-buffer-backward": ("backward.h", r"turn_ = 1 - turn_;", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_seeded_races_are_reported(tmp_path, fault):
    """The kernels with a fault put in: ThreadSanitizer must see it, or the test above would prove nothing."""
    for folder in ("csrc/cells", "csrc/cuda", "tests/host_shim"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    name, pattern, replacement = FAULTS[fault]
    header = tmp_path / "csrc/cuda" / name
    text, count = re.subn(pattern, replacement, header.read_text(), flags=re.DOTALL)
    assert count == 1
    header.write_text(text)
    program = compile_sequences(
        tmp_path, "-DRACES=1", *RACES, "-fsanitize=thread", sources=tmp_path / "tests/host_shim"
    )
    run = run_program(program, RACED["team"], seed=1)
    assert run.returncode != 0
    assert ("NaN" if fault == "no-wait-for-copies" else "data race") in run.stderr


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_compiles_without_spills(tmp_path, architecture):
    """Every kernel of float32 and the 16-bit types compiles, and keeps its values in registers."""
    command = [find_nvcc(), "-std=c++17", f"-arch={architecture}", "-Xptxas", "-v", "-cubin", HERE / "sequences.cu"]
    report = subprocess.run([*command, "-o", tmp_path / "cubin"], check=True, capture_output=True, text=True).stderr
    spills = re.findall(r"(\d+) bytes spill stores", report)
    assert len(spills) == 2 * 2 * len(BASE_CELLS) * 2  # directions, types, cells, with and without the modifier
    assert set(spills) == {"0"}
