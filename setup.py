"""Builds ``fused_rnn/_C.so``: one library on LibTorch's stable ABI, for every Python and torch >= 2.11.

It is not a Python extension module: it links no libpython, has no init function and is loaded with
torch.ops.load_library. All it needs are g++ 11 or newer and a torch that is already installed; torch's headers are
found without importing torch, because pip builds in an isolated environment where it cannot be imported.
Environment: CXX (g++), MAX_JOBS (number of cores), FUSED_RNN_CXXFLAGS (appended).
"""

import os
import platform
import re
import shlex
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
ISA_FLAGS = {
    "_generic": [],
    "_avx2": ["-mavx2", "-mfma"],
    "_avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}
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


class BuildLibrary(build_ext):
    """Compile csrc/ in parallel, recompiling only what changed, and link it against torch."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        torch = find_torch()
        objects = Path("build", "objects")  # not self.build_temp, which is new each time in an editable install
        objects.mkdir(parents=True, exist_ok=True)
        compiler = shlex.split(os.environ.get("CXX") or "g++")
        flags = [*CXXFLAGS, f"-I{torch}/include", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
        jobs = [(Path(source), objects / (Path(source).name + ".o")) for source in ext.sources]
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            list(pool.map(lambda job: compile_source(compiler + flags, *job), jobs))
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        # --no-as-needed: the default drops libraries whose symbols are looked up only at run time
        libraries = [f"-L{torch}/lib", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-Wl,--as-needed"]
        partial = library.with_suffix(".partial")
        run([*compiler, "-shared", "-o", str(partial), *(str(target) for _, target in jobs), *libraries])
        partial.replace(library)


def compile_source(command: list[str], source: Path, target: Path) -> None:
    """Compile one file unless its object is newer than all that it depends on and was made by this command."""
    for suffix, isa_flags in ISA_FLAGS.items():
        if source.stem.endswith(suffix):
            command = [*command, *KERNEL_FLAGS, *isa_flags]
    command = [*command, *shlex.split(os.environ.get("FUSED_RNN_CXXFLAGS", ""))]
    depfile, stamp = target.with_suffix(".d"), target.with_suffix(".command")
    command = [*command, "-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(target)]
    if target.exists() and depfile.exists() and stamp.exists() and stamp.read_text() == shlex.join(command):
        depends = re.findall(r"(?:\\ |[^\s\\])+", depfile.read_text().split(":", 1)[1])
        if all(os.path.exists(d) and os.path.getmtime(d) <= target.stat().st_mtime for d in depends):
            return
    stamp.unlink(missing_ok=True)  # so that an interrupted compiler leaves nothing that looks finished
    run(command)
    stamp.write_text(shlex.join(command))


def run(command: list[str]) -> None:
    print(shlex.join(command), flush=True)
    try:
        subprocess.check_call(command)
    except FileNotFoundError:
        raise SystemExit(
            f"fused_rnn needs a C++17 compiler (g++ 11 or clang 9, or newer) to build, and {command[0]!r} was not found"
        ) from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"fused_rnn did not build: {command[0]} exited with status {error.returncode}") from None


class AnyPythonWheel(bdist_wheel):
    """Tag the wheel for every Python 3 on this platform: the library does not depend on Python's ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def sources() -> list[str]:
    found = sorted(str(path) for path in Path("csrc").rglob("*.cpp"))
    if platform.machine() not in ("x86_64", "AMD64"):
        found = [path for path in found if not re.search(r"_avx\d+\.cpp$", path)]
    return found


if NEEDS_TORCH & set(sys.argv):
    find_torch()  # before pip goes and downloads torch as a dependency, only to fail here afterwards
setup(
    ext_modules=[Extension("fused_rnn._C", sources())],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPythonWheel},
)
