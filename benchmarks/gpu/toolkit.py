"""The search for programs of the CUDA toolkit."""

import importlib.util
import os
import shutil
from pathlib import Path


def nvcc() -> str | None:
    """The CUDA compiler, looked for where a build of the package looks for it."""
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin/nvcc"] if home else []
    return next(filter(None, map(shutil.which, [*places, "nvcc", "/usr/local/cuda/bin/nvcc"])), None)


def cuobjdump(beside: str) -> str | None:
    """The disassembler beside the compiler, on PATH or in an installed Triton, with nvdisasm, which does its work."""
    folders = [Path(beside).resolve().parent, *map(Path, os.environ.get("PATH", "").split(os.pathsep))]
    triton = importlib.util.find_spec("triton")  # located without importing it
    if triton and triton.origin:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    for folder in folders:
        if all(shutil.which(folder / name) for name in ("cuobjdump", "nvdisasm")):
            return str(folder / "cuobjdump")
    return None
