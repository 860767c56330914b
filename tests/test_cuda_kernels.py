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
RACES = ["-DRACES", "-O1", "-g1"]  # a program for sanitizers in place of the library
pytestmark = pytest.mark.skipif(not shutil.which(COMPILER), reason=f"no C++ compiler: {COMPILER}")

HEAD = [("T", ctypes.c_int), ("B", ctypes.c_int), ("I", ctypes.c_int), ("H", ctypes.c_int)]
HEAD += [("reverse", ctypes.c_bool), ("parts", ctypes.c_int), ("resident", ctypes.c_bool)]
FORWARD = "lengths weight_hh bias_hh weight_ih bias_ih weight_mhh projected x c_0 h s x_hat output h_n c_n saved"
BACKWARD = "lengths weight_hh weight_ih weight_mhh x h_0 c_0 output saved d_output dh dc d dx"


def structure(names: str) -> type[ctypes.Structure]:
    fields = [*HEAD, *((name, ctypes.c_void_p) for name in [*names.split(), "arrivals", "failed"])]
    return type("Sequence", (ctypes.Structure,), {"_fields_": fields})


STRUCTURES = {"forward": structure(FORWARD), "backward": structure(BACKWARD)}


def compile_sequences(folder: Path, *flags: str, sources: Path = HERE) -> Path:
    """Build sequences.cpp with few threads and short chunks; the runtime goes without sanitizers."""
    runtime, target = folder / "host_shim.o", folder / "sequences"
    common = [COMPILER, "-std=c++17", "-fPIC", "-Wall", "-Werror"]
    subprocess.run([*common, "-O2", "-c", sources / "host_shim.cpp", "-o", runtime], check=True)
    small = ["-DFUSED_RNN_THREADS=64", "-DFUSED_RNN_CHUNK_DEPTH=8"]
    source = [f"-I{sources}", *small, *flags, sources / "sequences.cpp", runtime]
    subprocess.run([*common, *source, "-o", target], check=True)
    return target


def run_program(program: Path, seed: int) -> subprocess.CompletedProcess:
    run = subprocess.run([program, str(seed)], check=False, capture_output=True, text=True)
    if "unexpected memory mapping" in run.stderr:
        pytest.skip("ThreadSanitizer does not run with this kernel's address space randomisation")
    return run


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("sequences")
    loaded = ctypes.CDLL(compile_sequences(folder, "-O1", "-shared"))
    loaded.run_sequence.restype = ctypes.c_char_p
    return loaded


def launch(library, direction: str, op: Operands, plan: dict, tensors: dict[str, Tensor | None]) -> None:
    """Run one kernel on named tensors; fails if it does not come to its end."""
    dtype, (T, B, I) = op.tensors["input"].dtype, op.tensors["input"].shape
    teams = -(-B // 8)
    counters = torch.zeros(teams + 1, dtype=torch.int32)
    tensors = {**tensors, "arrivals": counters[:-1], "failed": counters[-1:], "lengths": op.lengths}
    assert all(t is None or t.is_contiguous() for t in tensors.values())
    pointers = {name: None if t is None else t.data_ptr() for name, t in tensors.items()}
    sizes = {"T": T, "B": B, "I": I, "H": op.tensors["weight_hh"].shape[1], "reverse": op.reverse}
    sequence = STRUCTURES[direction](**sizes, parts=plan["parts"], resident=plan["resident"], **pointers)
    multiplicative = op.cell.startswith("multiplicative_")
    cell = BASE_CELLS.index(op.cell.removeprefix("multiplicative_"))
    type_name = str(dtype).removeprefix("torch.").encode()
    error = library.run_sequence(
        direction == "backward", cell, multiplicative, type_name, ctypes.byref(sequence), plan["seed"]
    )
    assert error is None, error.decode()
    assert counters[-1] == 0


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """Memory whose every value must be written before it is used."""
    return torch.full(shape, torch.nan, dtype=dtype)


@torch.no_grad()
def run_kernels(library, op: Operands, d_results: list[Tensor], plan: dict) -> list[Tensor]:
    """Results and gradients in the order of Operands.results_and_gradients, from the kernels and the products."""
    t = {name: tensor.detach() for name, tensor in op.tensors.items()}
    spec, (T, B, I) = ops.CELLS[op.cell], t["input"].shape
    H, dtype = t["weight_hh"].shape[1], t["input"].dtype
    computed = torch.promote_types(dtype, torch.float32)
    wide = {name: tensor.to(computed) for name, tensor in t.items()}
    m = "m" if spec.multiplicative else ""
    bias = wide.get("bias_m" if m else "bias_ih")
    columns = spec.saved * H + (I if m else 0)
    forward = {
        "weight_hh": t["weight_hh"].t().contiguous(),
        "bias_hh": t.get("bias_hh"),
        "projected": torch.nn.functional.linear(wide["input"], wide[f"weight_{m}ih"], bias),
        "c_0": t.get("c_0"),
        "h": torch.stack([wide["h_0"], empty(B, H, dtype=computed)]),
        "s": empty(B, H, dtype=computed),
        "output": empty(T, B, H, dtype=dtype),
        "h_n": empty(B, H, dtype=dtype),
        "c_n": empty(B, H, dtype=dtype),
        "saved": empty(T, B, columns, dtype=dtype),
    }
    if m:
        forward |= {"weight_ih": t["weight_ih"].t().contiguous(), "weight_mhh": t["weight_mhh"].t().contiguous()}
        forward |= {"bias_ih": t.get("bias_ih"), "x": t["input"], "x_hat": empty(B, I, dtype=computed)}
    launch(library, "forward", op, plan, forward)
    results = [forward["output"], forward["h_n"], *([forward["c_n"]] if spec.has_cell_state else [])]
    d_results = [d.to(dtype) for d in d_results]
    width = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "multiplicative_gru": 3}.get(op.cell, 4) * H
    backward = {
        "weight_hh": t["weight_hh"],
        "h_0": t["h_0"],
        "c_0": t.get("c_0"),
        "output": forward["output"],
        "saved": forward["saved"],
        "d_output": d_results[0],
        "dh": d_results[1].to(computed).clone(),
        "dc": d_results[2].to(computed).clone() if spec.has_cell_state else None,
        "d": empty(T, B, width + (I if m else 0), dtype=computed),
    }
    if m:
        backward |= {"weight_ih": t["weight_ih"], "weight_mhh": t["weight_mhh"], "x": t["input"]}
        backward |= {"dx": empty(T, B, I, dtype=computed)}
    launch(library, "backward", op, plan, backward)
    gradients = products(op, wide, forward, backward, width)
    return [*results, *(gradients[name].to(dtype) for name in op.tensors)]


def products(op: Operands, wide: dict, forward: dict, backward: dict, width: int) -> dict[str, Tensor]:
    """The gradients of all operands, from those of the pre-activations."""
    spec, d, H = ops.CELLS[op.cell], backward["d"], wide["weight_hh"].shape[1]
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
    result = {"h_0": backward["dh"], "c_0": backward["dc"], "weight_ih": outer(wx, x_hat), "bias_ih": wx.sum((0, 1))}
    if op.cell == "gru_reset_after":
        uh = torch.cat([d[..., : 2 * H], d[..., 3 * H : 4 * H]], -1)
    result |= {"weight_hh": outer(uh, operand), "bias_hh": uh.sum((0, 1))}
    if op.cell.endswith("gru"):
        result["weight_hh"][2 * H :] = outer(d[..., 2 * H : 3 * H], saved[..., :H] * h_prev)
    if not spec.multiplicative:
        return {**result, "input": wx @ wide["weight_ih"]}
    dm = d[..., width:]
    result |= {"weight_mih": outer(dm, x), "weight_mhh": outer(dm, h_prev), "bias_m": dm.sum((0, 1))}
    return {**result, "input": backward["dx"] + dm @ wide["weight_mih"]}


def compare(library, op: Operands, allowed: float, parts: int = 1, resident: bool = True, seed: int = 0) -> None:
    d_results = random_like(op.run("reference"))
    exact = op.to(torch.float64).results_and_gradients("reference", d_results)
    values = run_kernels(library, op, d_results, {"parts": parts, "resident": resident, "seed": seed})
    assert relative_error(values, exact) <= allowed


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("shape", [Shape(1, 1, 1, 1), Shape(4, 3, 2, 5), Shape(3, 11, 5, 23)], ids=str)
def test_float64_equals_reference(library, cell, shape, parts, resident, reverse):
    """Teams of one and of several blocks, weights in shared memory and streamed, odd sizes, several tiles."""
    compare(library, operands(cell, shape, reverse=reverse), 1e-11, parts, resident)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_order_of_threads_does_not_matter(library, cell, seed):
    compare(library, operands(cell, Shape(4, 9, 3, 7)), 1e-11, parts=2, seed=seed)


@pytest.mark.parametrize("parts", [1, 2])
def test_lengths(library, cell, parts, reverse):
    lengths = [3, 5, 0, 1, 5, 5, 2, 0, 0, 4, 2]  # the second tile ends early, and so rests in the last step
    op = operands(cell, Shape(5, len(lengths), 3, 6), reverse=reverse, lengths=lengths)
    compare(library, op, 1e-11, parts)


def test_more_columns_than_threads(library, cell):
    compare(library, operands(cell, Shape(2, 2, 70, 70)), 1e-11, parts=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_no_worse_than_pytorch(library, cell, dtype):
    op = operands(cell, Shape(12, 9, 7, 20), scale=1.0, dtype=dtype)
    d_results = random_like(op.run("reference"))
    exact = op.to(torch.float64).results_and_gradients("reference", d_results)
    theirs = relative_error(op.results_and_gradients("reference", d_results), exact)
    compare(library, op, 2 * theirs, parts=2)


@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_sanitizers_find_nothing(tmp_path, sanitizer):
    program = compile_sequences(tmp_path, *RACES, f"-fsanitize={sanitizer}")
    for seed in (0, 1):
        run = run_program(program, seed)
        assert run.returncode == 0, run.stderr[-4000:]


ROOT = HERE.parent.parent
# A file of the kernels, what is changed in it, and what it becomes
FAULTS = {
    "no-meeting": ("product.h", r"add_release\(counter_, 1\);\s+arrived = wait_for\(.*?\);", ""),
    "no-barrier-before-loading": ("product.h", r"__syncthreads\(\);(\s+load_chunk)", r"\1"),
    "no-barrier-after-loading": ("product.h", r"(load_chunk\(a, begin, depth, chunk\);\s+)__syncthreads\(\);", r"\1"),
    "relaxed-wait": ("device.h", r"load_acquire\(counter\) < target", "load_relaxed(counter) < target"),
    "single-buffer": ("forward.h", r"exchanged_h\(1 - turn_\)", "exchanged_h(turn_)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_seeded_races_are_reported(tmp_path, fault):
    """The kernels with a fault put in: ThreadSanitizer must see it, or the test above would prove nothing."""
    for folder in ("csrc/cells", "csrc/cuda", "tests/host_shim"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    name, pattern, replacement = FAULTS[fault]
    header = tmp_path / "csrc/cuda" / name
    text, count = re.subn(pattern, replacement, header.read_text())
    assert count == 1
    header.write_text(text)
    program = compile_sequences(tmp_path, *RACES, "-fsanitize=thread", sources=tmp_path / "tests/host_shim")
    run = run_program(program, seed=1)
    assert run.returncode != 0
    assert "data race" in run.stderr


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_compiles_without_spills(tmp_path, architecture):
    """Every kernel of float32 and the 16-bit types compiles, and keeps its values in registers."""
    command = [find_nvcc(), "-std=c++17", f"-arch={architecture}", "-Xptxas", "-v", "-cubin", HERE / "sequences.cu"]
    report = subprocess.run([*command, "-o", tmp_path / "cubin"], check=True, capture_output=True, text=True).stderr
    spills = re.findall(r"(\d+) bytes spill stores", report)
    assert len(spills) == 2 * 2 * len(BASE_CELLS) * 2  # directions, types, cells, with and without the modifier
    assert set(spills) == {"0"}
