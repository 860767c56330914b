"""Packaging by pip: a wheel that works elsewhere, a clear refusal without torch, a light import.

Everything runs on a copy of the files that git knows or would add, in new virtual environments, so neither the
working tree nor the environment of the tests is touched. Builds are isolated, as a user's are, when pip can
fetch setuptools; offline they use the installed setuptools.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SITE_PACKAGES = Path(torch.__file__).parents[1]

WITHOUT_LIBRARY = """
import torch
import fused_rnn

print(fused_rnn.__file__)
print(fused_rnn.backends()["cpu"])
fused_rnn.LSTM(2, 3, backend="reference")(torch.randn(4, 1, 2))
try:
    fused_rnn.LSTM(2, 3, backend="cpu")(torch.randn(4, 1, 2))
except RuntimeError as error:
    print(error)
"""

NEW_MODULES = """
import sys
import torch

before = set(sys.modules)
import fused_rnn

print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def run(command: list, cwd: Path) -> subprocess.CompletedProcess:
    """Run a command without our own settings, as a user would in ``cwd``."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {"PIP_RETRIES": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment |= {"FUSED_RNN_CUDA": "0"}  # the CUDA kernels take minutes to compile
    command = list(map(str, command))
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def output_of(command: list, cwd: Path) -> str:
    done = run(command, cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def source_files() -> list[str]:
    """Return the files that git tracks and those it would add."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the source is not known")
    names = output_of(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT).split("\0")
    return [name for name in names if (ROOT / name).is_file()]  # a tracked file may have been deleted


def copy_source(target: Path) -> Path:
    for name in source_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


def litter(tree: Path) -> set[str]:
    """List files that a build left in a copy of the source outside the folders in .gitignore."""
    files = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    return {name for name in files.difference(source_files()) if not name.startswith(("build/", "fused_rnn.egg-info/"))}


def new_environment(folder: Path) -> Path:
    """Make a virtual environment with nothing in it, not even pip, and return its Python."""
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def isolation(tmp_path_factory) -> list[str] | None:
    """Options that let pip build in isolation without asking an index, or None if setuptools cannot be fetched."""
    folder = tmp_path_factory.mktemp("setuptools")
    download = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "setuptools>=77"]
    done = run([sys.executable, *download], folder)
    return ["--no-index", "--find-links", str(folder)] if done.returncode == 0 else None


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the source to build the wheel in, with the object files compiled here from the same source."""
    target = copy_source(tmp_path_factory.mktemp("source"))
    compiled = Path("build", "objects", "csrc", "cpu")
    if (ROOT / compiled).is_dir():
        shutil.copytree(ROOT / compiled, target / compiled)
    return target


@pytest.fixture(scope="module")
def wheel(source, isolation, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-build-isolation"] if isolation is None else isolation
    output_of([sys.executable, "-m", "pip", "wheel", "--no-deps", *options, "--wheel-dir", folder, "."], source)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_is_for_every_python_3_on_this_platform(wheel):
    name, _, python, abi, platform = wheel.stem.split("-")
    assert (name, python, abi) == ("fused_rnn", "py3", "none")
    assert platform.startswith("linux_")


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    python = {name for name in source_files() if name.startswith("fused_rnn/") and name.endswith(".py")}
    assert names == python | {"fused_rnn/_C.so", "fused_rnn/py.typed"}


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(wheel, tmp_path):
    python = new_environment(tmp_path / "clean")
    output_of([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel], tmp_path)
    (packages,) = (tmp_path / "clean").glob("lib/python*/site-packages")
    # lends this environment's torch: its folder comes last, and .pth files in it, such as ours, are not read
    (packages / "torch_from_the_tests.pth").write_text(f"{SITE_PACKAGES}\n")
    said = output_of([python, ROOT / "tests" / "clean_install.py"], tmp_path)
    assert f"works with torch {torch.__version__}" in said


def test_the_source_archive_holds_what_a_wheel_is_built_from(tmp_path):
    tree = copy_source(tmp_path / "source")
    output_of([sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path], tree)
    (archive,) = tmp_path.glob("fused_rnn-*.tar.gz")
    with tarfile.open(archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    files = {name for name in names if (tree / name).is_file() and not name.startswith("fused_rnn.egg-info/")}
    package = {name for name in source_files() if name.startswith(("csrc/", "fused_rnn/"))}
    documents = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md"}
    assert files == package | documents | {"MANIFEST.in", "Makefile", "pyproject.toml", "setup.py"}


@pytest.mark.slow
@pytest.mark.usefixtures("wheel")
def test_building_leaves_nothing_behind_that_git_would_add(source):
    assert (source / "build").is_dir()
    assert litter(source) == set()


def test_installing_without_torch_stops_with_one_sentence(isolation, tmp_path):
    if isolation is None:
        pytest.skip("offline: pip cannot fetch setuptools into a bare environment")
    tree = copy_source(tmp_path / "source")
    python = new_environment(tmp_path / "bare")
    install = ["-m", "pip", "--python", python, "install", "--no-deps", *isolation, "."]
    done = run([sys.executable, *install], tree)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert len([line for line in text.splitlines() if "pip install torch" in line]) == 1, text
    assert "Traceback" not in text
    assert litter(tree) == set()


def copy_python(target: Path) -> Path:
    """Copy only the package's Python files into ``target``, and return it."""
    return Path(shutil.copytree(ROOT / "fused_rnn", target / "fused_rnn", ignore=shutil.ignore_patterns("*.so"))).parent


def test_without_the_library_the_package_imports_and_says_why(tmp_path):
    place, status, refusal = output_of([sys.executable, "-c", WITHOUT_LIBRARY], copy_python(tmp_path)).splitlines()
    assert Path(place).is_relative_to(tmp_path)
    assert "_C.so does not exist" in status
    assert "pip install ." in status
    assert status in refusal


def test_importing_the_package_imports_only_what_it_needs(tmp_path):
    new = set(output_of([sys.executable, "-c", NEW_MODULES], copy_python(tmp_path)).split())
    assert "fused_rnn" in new
    assert new.isdisjoint({"matplotlib", "numpy", "rich", "tensorboard", "tqdm", "triton"})
