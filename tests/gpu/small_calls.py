"""Small calls, forward and backward, in both directions, for tools that check every access to memory.

``python -m tests.gpu.small_calls DEVICE BACKEND`` makes them; without BACKEND, each of ``TOOLS`` of compute-sanitizer
checks every backend, all at the same time. Each call is reported as soon as it has returned, because the tools are
slow and may not finish.
"""

import os
import shutil
import subprocess
import sys

import torch

import fused_rnn

from ..conftest import Shape, operands, random_like

TOOLS = ("memcheck", "racecheck")
# A cell state, a gate that resets before the product, and a modulated input.
CELLS = ("lstm", "gru", "multiplicative_gru")
CALLS = ((Shape(3, 3, 5, 7), [3, 0, 2], False), (Shape(2, 9, 16, 40), None, True))
# Parts of our kernels' names in machine code; torch's own kernels are not checked.
KERNELS = {"cuda": ("fused_rnn",), "triton": ("_resident", "_streamed")}
FOUND = 9  # exit status if a tool has found something
FINDINGS = ("Race reported", "Invalid __")


def sanitizer() -> str | None:
    return shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")


def command(device: str, backend: str, tool: str) -> list[str]:
    """Return the command of the calls under a tool; or without it on the CPU, where the tests themselves are tested."""
    calls = [sys.executable, "-u", "-m", __spec__.name, device, backend]
    if device == "cpu":
        return calls
    watched = [word for part in KERNELS[backend] for word in ("--kernel-name", f"kns={part}")]
    return [str(sanitizer()), "--tool", tool, "--error-exitcode", str(FOUND), *watched, *calls]


def failed_itself(output: str) -> bool:
    """Whether a tool crashed and had found nothing, as racecheck of CUDA 13.0 does with a bfloat16 LSTM on Hopper."""
    return "Internal Sanitizer Error" in output and not any(finding in output for finding in FINDINGS)


def environment() -> dict[str, str]:
    """Return an environment without torch's allocator, which would hide accesses between two tensors."""
    return {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def call(device: str, backend: str) -> None:
    for cell in CELLS:
        for dtype in (torch.float32, torch.bfloat16):
            for shape, lengths, reverse in CALLS:
                op = operands(cell, shape, lengths=lengths, reverse=reverse, dtype=dtype).on(torch.device(device))
                results = op.results_and_gradients(backend, random_like(op.run("reference")))
                assert not any(t.isnan().any() for t in results)
                print(f"{backend} {cell} {dtype} {shape} returned", flush=True)
    print("all calls returned", flush=True)


def watch_all(device: str) -> int:
    """Run every tool and backend at once; return the exit status of one that failed, or 0."""
    if device != "cpu" and sanitizer() is None:
        sys.exit("error: compute-sanitizer is not here; it is part of the CUDA toolkit")
    names = [name for name in (["cpu"] if device == "cpu" else KERNELS) if runs(device, name)]
    commands = [command(device, name, tool) for name in names for tool in TOOLS]
    started = [subprocess.Popen(words, env=environment()) for words in commands]
    statuses = [process.wait() for process in started]
    for words, status in zip(commands, statuses):
        print(f"exit status {status}: {' '.join(words)}", flush=True)
    return max(statuses, key=abs)


def runs(device: str, backend: str) -> bool:
    try:
        fused_rnn.choose_backend(device, torch.float32, backend)
    except RuntimeError as error:
        print(f"{backend} is left out: {error}", flush=True)
        return False
    return True


def main(device: str, backend: str | None = None) -> None:
    if backend is None:
        sys.exit(watch_all(device))
    call(device, backend)


if __name__ == "__main__":
    main(*sys.argv[1:])
