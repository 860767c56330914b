"""Builds ``fused_rnn/_C.so``: one library on LibTorch's stable ABI, for every Python and torch >= 2.11.

It is not a Python extension module: it links no libpython, has no init function and is loaded with
torch.ops.load_library. All it needs are g++ 11 or newer and a torch that is already installed; torch's headers are
found without importing torch, because pip builds in an isolated environment where it cannot be imported.

csrc/cuda is compiled where nvcc is found, whatever the build of torch; the CUDA runtime is linked statically, so that
the same library loads on machines without CUDA.

Environment: CXX (g++), MAX_JOBS (number of cores), FUSED_RNN_CXXFLAGS (appended); FUSED_RNN_CUDA (0: leave the CUDA
kernels out, 1: stop where there is no nvcc), CUDA_HOME (where nvcc is looked for first), FUSED_RNN_CUDA_ARCHS
(compute capabilities as nvcc writes them, default "80 90a 100").
"""

import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

OLDEST_TORCH = (2, 11)
TORCH_TARGET = "0x020b000000000000"  # the stable ABI of that version
CXXFLAGS = ["-std=c++17", "-O3", "-Wall", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast"]
# The kernels are compiled once per instruction set, told by the end of the file's name, and chosen at run time.
KERNEL_FLAGS = ["-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]
# Copies of a loop for each outcome of a condition make the kernels a quarter larger and no faster, and take half of the
# compiler's time. clang does not know these flags.
GCC_KERNEL_FLAGS = ["-fno-split-loops", "-fno-unswitch-loops"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
ISA_FLAGS = {
    "_generic": [],
    "_avx2": ["-mavx2", "-mfma"],
    "_avx512": AVX512,
    "_amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}
# --resource-usage: what each kernel takes, of which the tests read that nothing is spilled
NVCCFLAGS = ["-std=c++17", "-O3", "-Xcompiler=-Wall,-fPIC,-fvisibility=hidden", "--resource-usage"]
CUDA_ARCHS = "80 90a 100"
NEEDS_TORCH = {"dist_info", "editable_wheel", "bdist_wheel", "build_ext", "develop", "install"}


def find_torch() -> Path:
    """The folder of the installed torch, or an exit with one clear sentence."""
    spec = find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    paths = sysconfig.get_paths()
    packages = [paths["purelib"], paths["platlib"], *site.getsitepackages(), site.getusersitepackages()]
    folders += [Path(folder, "torch") for folder in packages]
    for folder in folders:
        if (folder / "version.py").is_file():
            version = re.search(r"__version__ = '((\d+)\.(\d+)[^']*)'", (folder / "version.py").read_text())
            if version and (int(version[2]), int(version[3])) < OLDEST_TORCH:
                raise SystemExit(f"fused_rnn needs torch >= 2.11 to build, and found {version[1]} in {folder}")
            return folder
    raise SystemExit(
        "fused_rnn needs torch >= 2.11 to build: run 'pip install torch' first, then 'pip install .' "
        "(with --no-build-isolation where the installer hides installed packages from the build, as uv does)"
    )


def is_gcc(compiler: list[str]) -> bool:
    """Whether it is GCC; False where there is none, which the first compilation reports."""
    try:
        answer = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return False
    return "Free Software Foundation" in answer.stdout


def words(name: str) -> list[str]:
    """The words of a variable of the environment, as a shell reads them."""
    try:
        return shlex.split(os.environ.get(name, ""))
    except ValueError as error:
        raise SystemExit(f"{name} is {os.environ[name]!r}, which a shell could not read: {error}") from None


def compilers_at_once() -> int:
    wanted = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    if not wanted.isdecimal() or int(wanted) < 1:
        raise SystemExit(f"MAX_JOBS must be a number of compilers, at least 1, and is {wanted!r}")
    return int(wanted)


def find_nvcc() -> str | None:
    """The CUDA compiler, or None where it is not wanted or not there; an exit where it is demanded and not there."""
    wanted = os.environ.get("FUSED_RNN_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"FUSED_RNN_CUDA must be 0, 1 or absent, and is {wanted!r}")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin/nvcc"] if home else []
    for place in [*places, "nvcc", "/usr/local/cuda/bin/nvcc"]:
        if found := shutil.which(place):
            return found
    if wanted == "1":
        raise SystemExit(
            "FUSED_RNN_CUDA=1 demands the CUDA kernels, but no nvcc is in CUDA_HOME, on PATH or in /usr/local/cuda"
        )
    return None


def architectures(nvcc: str) -> list[str]:
    """Those asked for, or those of CUDA_ARCHS that this nvcc knows: an old one does not know the newest."""
    asked = os.environ.get("FUSED_RNN_CUDA_ARCHS", "").split()
    for arch in asked:
        if not re.fullmatch(r"\d{2,3}[af]?", arch):
            raise SystemExit(f"FUSED_RNN_CUDA_ARCHS must be like {CUDA_ARCHS!r}, and has {arch!r}")
    if asked:
        return asked
    known = answer_of(nvcc, "--list-gpu-arch").split()
    return [arch for arch in CUDA_ARCHS.split() if f"compute_{arch.rstrip('a')}" in known]


def architecture_flags(archs: list[str]) -> list[str]:
    """Machine code for every architecture, and of the newest without a letter PTX too, so that later chips run."""
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    portable = max((int(arch) for arch in archs if arch.isdigit()), default=None)
    return flags + ([f"-gencode=arch=compute_{portable},code=compute_{portable}"] if portable else [])


def code_names(flags: list[str]) -> str:
    """Name the code that these flags make, such as sm_80+compute_80, which csrc/cuda/architectures.h reads."""
    return "+".join(flag.rpartition("code=")[2] for flag in flags)


def cuda_libraries(nvcc: str) -> list[str]:
    """What links the CUDA runtime statically; nvcc itself says where it is."""
    folders = re.search(r"LIBRARIES=(.*)", answer_of(nvcc, "--dryrun", "-x", "cu", os.devnull))
    # --exclude-libs: the runtime's functions must not stand in for those of the one that torch brings
    runtime = ["-lcudart_static", "-lpthread", "-ldl", "-lrt", "-Wl,--exclude-libs,ALL"]
    return [*(shlex.split(folders[1]) if folders else []), *runtime]


def answer_of(nvcc: str, *question: str) -> str:
    answer = subprocess.run([nvcc, *question], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if answer.returncode != 0:
        raise SystemExit(f"fused_rnn: {nvcc} does not run; FUSED_RNN_CUDA=0 builds without it\n{answer.stdout}")
    return answer.stdout


class Toolchain:
    """The commands that compile a source and link the objects."""

    def __init__(self, torch: Path, threads: int = 1) -> None:
        self.torch = torch
        self.threads = threads  # of one nvcc, which compiles for an architecture in each
        self.compiler = words("CXX") or ["g++"]
        self.kernel_flags = KERNEL_FLAGS + (GCC_KERNEL_FLAGS if is_gcc(self.compiler) else [])
        self.nvcc = find_nvcc()
        self.architectures = architecture_flags(architectures(self.nvcc)) if self.nvcc else []

    def takes(self, source: Path) -> bool:
        return self.nvcc is not None or "cuda" not in source.parts

    def compiling(self, source: Path) -> list[str]:
        if source.suffix == ".cu":
            parallel = [f"--threads={self.threads}"] if self.threads > 1 else []
            built = [f"-DFUSED_RNN_CUDA_CODE={code_names(self.architectures)}"] if source.stem == "gpu" else []
            return [self.nvcc, *NVCCFLAGS, *self.architectures, *built, *parallel]
        command = [*self.compiler, *CXXFLAGS, f"-I{self.torch}/include", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
        for suffix, isa_flags in ISA_FLAGS.items():
            if source.stem.endswith(suffix):
                command += [*self.kernel_flags, *isa_flags]
        if source == Path("csrc/ops.cpp") and not self.nvcc:
            wanted = os.environ.get("FUSED_RNN_CUDA") != "0"
            reason = "no nvcc was found when it was built" if wanted else "it was built with FUSED_RNN_CUDA=0"
            command += [f'-DFUSED_RNN_WITHOUT_CUDA="{reason}"']
        return [*command, *words("FUSED_RNN_CXXFLAGS")]

    def linking(self, objects: list[Path], library: Path) -> list[str]:
        # --no-as-needed: the default drops libraries whose symbols are looked up only at run time
        libraries = [f"-L{self.torch}/lib", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-Wl,--as-needed"]
        if self.nvcc:
            libraries += cuda_libraries(self.nvcc)
        return [*self.compiler, "-shared", "-o", str(library), *map(str, objects), *libraries]


class BuildLibrary(build_ext):
    """Compile csrc/ in parallel, recompiling only what changed, and link it against torch."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        jobs = compilers_at_once()
        kernels = sum(source.endswith(".cu") for source in ext.sources)
        toolchain = Toolchain(find_torch(), threads=max(1, jobs // kernels))
        sources = [source for source in map(Path, ext.sources) if toolchain.takes(source)]
        sources.sort(key=lambda source: (source.suffix != ".cu", "kernels" not in source.stem))  # the longest first
        folder = Path("build", "objects")  # not self.build_temp, which is new each time in an editable install
        objects = [folder / f"{source}.o" for source in sources]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda *job: compile_source(toolchain.compiling(job[0]), *job), sources, objects))
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(".partial")
        run(toolchain.linking(objects, partial))
        partial.replace(library)


def compile_source(command: list[str], source: Path, target: Path) -> None:
    """Compile one file unless its object is newer than all that it depends on and was made by this command."""
    target.parent.mkdir(parents=True, exist_ok=True)
    depfile, stamp = target.with_suffix(".d"), target.with_suffix(".command")
    command = [*command, "-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(target)]
    if target.exists() and depfile.exists() and stamp.exists() and stamp.read_text() == shlex.join(command):
        depends = re.findall(r"(?:\\ |[^\s\\])+", depfile.read_text().split(":", 1)[1])
        if all(os.path.exists(d) and os.path.getmtime(d) <= target.stat().st_mtime for d in depends):
            return
    stamp.unlink(missing_ok=True)  # so that an interrupted compiler leaves nothing that looks finished
    run(command, report=target.with_suffix(".report"))
    stamp.write_text(shlex.join(command))


def run(command: list[str], report: Path = Path(os.devnull)) -> None:
    """Run a compiler; what it says goes to the report, and to the user if it fails or warns."""
    print(shlex.join(command), flush=True)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit(
            f"fused_rnn needs a C++17 compiler (g++ 11, clang 11 or newer) to build, and {command[0]!r} was not found"
        ) from None
    report.write_text(done.stdout)
    if done.returncode != 0 or "warning" in done.stdout:
        print(done.stdout, file=sys.stderr, flush=True)
    if done.returncode != 0:
        without = "; FUSED_RNN_CUDA=0 builds without it" if Path(command[0]).name == "nvcc" else ""
        raise SystemExit(f"fused_rnn did not build: {command[0]} exited with status {done.returncode}{without}")


class AnyPythonWheel(bdist_wheel):
    """Tag the wheel for every Python 3 on this platform: the library does not depend on Python's ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def sources() -> list[str]:
    files = [path for path in Path("csrc").rglob("*") if path.suffix in (".cpp", ".cu")]
    found = sorted(str(path) for path in files if not path.name.startswith("."))  # which editors leave
    if platform.machine() not in ("x86_64", "AMD64"):
        found = [path for path in found if not re.search(r"_(avx\d+|amx)\.cpp$", path)]
    return found


if NEEDS_TORCH & set(sys.argv):
    find_torch()  # before pip goes and downloads torch as a dependency, only to fail here afterwards
setup(
    ext_modules=[Extension("fused_rnn._C", sources())],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPythonWheel},
)
