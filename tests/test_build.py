"""The build: what setup.py makes of its environment, and which of the library's code a GPU runs."""

import ctypes
import importlib.util
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu.kernel import build

from .host_kernels import needs_compiler


@pytest.fixture
def setup(monkeypatch):
    """Import setup.py as a module, without settings and without a build."""
    pytest.importorskip("setuptools.command.bdist_wheel", reason="setuptools is older than the build needs")
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    for name in ("FUSED_RNN_CUDA", "FUSED_RNN_CUDA_ARCHS", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("setup", Path(__file__).parents[1] / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_build_looks_for_nvcc(setup, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", "/somewhere")
    for there in ("/somewhere/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc"):
        monkeypatch.setattr(setup.shutil, "which", lambda place, there=there: place if place == there else None)
        assert setup.find_nvcc() == there
    monkeypatch.setenv("FUSED_RNN_CUDA", "0")
    assert setup.find_nvcc() is None


def test_build_without_nvcc(setup, monkeypatch):
    monkeypatch.setattr(setup.shutil, "which", lambda _: None)
    toolchain = setup.Toolchain(Path("torch"))
    assert not toolchain.takes(Path("csrc/cuda/ops.cpp"))
    assert toolchain.takes(Path("csrc/ops.cpp"))
    assert '-DFUSED_RNN_WITHOUT_CUDA="no nvcc was found when it was built"' in toolchain.compiling(Path("csrc/ops.cpp"))
    monkeypatch.setenv("FUSED_RNN_CUDA", "1")
    with pytest.raises(SystemExit, match="FUSED_RNN_CUDA=1 demands the CUDA kernels, but no nvcc is in CUDA_HOME"):
        setup.find_nvcc()


def test_build_refuses_settings_that_it_does_not_know(setup, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_CUDA", "yes")
    with pytest.raises(SystemExit, match="FUSED_RNN_CUDA must be 0, 1 or absent, and is 'yes'"):
        setup.find_nvcc()
    monkeypatch.setenv("FUSED_RNN_CUDA_ARCHS", "90 sm_80")
    with pytest.raises(SystemExit, match="FUSED_RNN_CUDA_ARCHS must be like .* and has 'sm_80'"):
        setup.architectures("nvcc")


def test_build_makes_code_for_every_architecture_and_ptx_for_later_ones(setup, monkeypatch):
    *machine_code, ptx = setup.architecture_flags(["80", "90a", "100"])
    assert machine_code == [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ("80", "90a", "100")]
    assert ptx == "-gencode=arch=compute_100,code=compute_100"
    monkeypatch.setenv("FUSED_RNN_CUDA_ARCHS", "90a")
    assert setup.architecture_flags(setup.architectures("nvcc")) == ["-gencode=arch=compute_90a,code=sm_90a"]


def test_build_tells_the_library_what_code_it_has(setup):
    flags = setup.architecture_flags(["80", "90a"])
    assert setup.code_names(flags) == "sm_80+sm_90a+compute_80"


@needs_compiler
def test_a_library_runs_the_code_that_fits_the_device(tmp_path):
    """Without code for compute capability 9.0 a newer GPU runs PTX for 8.0, in which kernels of clusters are empty."""
    source = '#include "csrc/cuda/architectures.h"\n' + (
        'extern "C" int compiled_for(const char* built, int capability) {\n'
        "  return fused_rnn::cuda::compiled_for(built, capability);\n}\n"
    )
    (tmp_path / "source.cpp").write_text(source)
    library = tmp_path / "library.so"
    command = ["g++", "-std=c++17", "-shared", "-fPIC", f"-I{build.ROOT}", tmp_path / "source.cpp", "-o", library]
    subprocess.run(command, check=True)
    found = ctypes.CDLL(str(library)).compiled_for
    default = b"sm_80+sm_90a+sm_100+compute_100"
    expected = {
        default: {75: 0, 80: 80, 86: 80, 89: 80, 90: 90, 100: 100, 103: 100, 120: 100},
        b"sm_80+compute_80": {80: 80, 89: 80, 90: 80, 100: 80, 120: 80},
        b"sm_90a": {80: 0, 89: 0, 90: 90, 100: 0},
        b"sm_86+sm_90+compute_90": {80: 0, 86: 86, 89: 86, 90: 90, 100: 90},
        b"sm_80+sm_100f+compute_80": {90: 80, 100: 100, 103: 100, 120: 80},
        b"": {90: 0},
    }
    answers = {built: {gpu: found(built, gpu) for gpu in gpus} for built, gpus in expected.items()}
    assert answers == expected


def test_build_leaves_out_what_nvcc_does_not_know(setup, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho compute_80\necho compute_90\n")
    nvcc.chmod(0o755)
    assert setup.architectures(str(nvcc)) == ["80", "90a"]
    nvcc.write_text("#!/bin/sh\necho no licence\nexit 1\n")
    with pytest.raises(SystemExit, match="nvcc does not run; FUSED_RNN_CUDA=0 builds without it\nno licence"):
        setup.architectures(str(nvcc))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MAX_JOBS", "many", "MAX_JOBS must be a number of compilers, at least 1, and is 'many'"),
        ("MAX_JOBS", "0", "at least 1, and is '0'"),
        ("MAX_JOBS", "-2", "at least 1, and is '-2'"),
        ("FUSED_RNN_CXXFLAGS", "-O1 'x", 'FUSED_RNN_CXXFLAGS is "-O1 \'x", which a shell could not read'),
    ],
)
def test_build_refuses_values_that_mean_nothing(setup, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=message):
        setup.compilers_at_once() if name == "MAX_JOBS" else setup.words(name)


def test_build_compiles_no_files_of_editors(setup, tmp_path, monkeypatch):
    for name in ("ops.cpp", "ops.cpp~", ".ops.cpp.swp", "ops.cpp.orig", ".#ops.cpp", "cuda/gpu.cu", "cuda/gpu.cu.rej"):
        (tmp_path / "csrc" / "cuda").mkdir(parents=True, exist_ok=True)
        (tmp_path / "csrc" / name).touch()
    monkeypatch.chdir(tmp_path)
    assert setup.sources() == ["csrc/cuda/gpu.cu", "csrc/ops.cpp"]


def test_build_gives_flags_of_gcc_to_gcc_alone(setup, tmp_path, monkeypatch):
    gcc, clang = tmp_path / "c++", tmp_path / "clang++"
    gcc.write_text("#!/bin/sh\necho c++ 14.2.0 Copyright 2024 Free Software Foundation, Inc.\n")
    clang.write_text("#!/bin/sh\necho clang version 20.1.0\n")
    for compiler, known in ((gcc, True), (clang, False), (tmp_path / "missing", False)):
        if compiler.exists():
            compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        flags = setup.Toolchain(Path("torch")).compiling(Path("csrc/cpu/kernels_avx2.cpp"))
        assert ("-fno-unswitch-loops" in flags) == known
        assert "-fopenmp-simd" in flags
