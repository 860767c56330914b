"""The micro-measurements without a GPU: kernels on the host shim, compilation and the driver."""

import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.gpu.micro import MEASUREMENTS
from benchmarks.gpu.micro import __main__ as micro

from .conftest import find_nvcc, some_of

ROOT = Path(__file__).parent.parent
MICRO = "benchmarks/gpu/micro"
FOLDER = ROOT / MICRO
COMPILER = os.environ.get("CXX", "g++")
CHECKS = ["counter", "flags", "tagged", "flagged", "tile", "bounded"]
CHECKS += ["cluster_barrier", "cluster_push", "cluster_exchange", "cluster_chase"]
# A file, a pattern in it, its replacement, and the check that must then report a race
FAULTS = {
    "flags-not-released": (
        "tests/host_shim/host_shim.h",
        r"(store_n\(p, value, __ATOMIC_)RELEASE",
        r"\1RELAXED",
        "flags",
    ),
    "one-tile": (f"{MICRO}/exchange.h", r"q.tiles \+ round % 2 \* q.words", "q.tiles", "tile"),
    "flag-before-data": (
        f"{MICRO}/exchange.h",
        r"(store_l2\(q.boxes \+ to, message_of\(round\)\);)\s+(store_release\(.*?\);)",
        r"\2\1",
        "flagged",
    ),
    "pushed-tiles-not-waited-for": (f"{MICRO}/cluster.h", r"arrived = wait_for_phase\(.*?\);", "", "cluster_exchange"),
    "one-pushed-tile": (f"{MICRO}/cluster.h", r"first = round % 2 \* q.words", "first = 0", "cluster_exchange"),
}


def compile_exchanges(root: Path, target: Path, *flags: str) -> Path:
    """Build exchanges.cpp of a tree with few threads; the shim's runtime is not sanitized."""
    shim = root / "tests" / "host_shim"
    runtime = target.with_suffix(".o")
    common_flags = [COMPILER, "-std=c++17", "-Wall", "-Werror"]
    subprocess.run([*common_flags, "-O2", "-c", shim / "host_shim.cpp", "-o", runtime], check=True)
    small = ["-DFUSED_RNN_THREADS=64", "-DFUSED_RNN_WAIT_POLLS=2000"]
    source = [f"-I{shim}", *small, "-O1", "-g1", *flags, shim / "exchanges.cpp", runtime]
    subprocess.run([*common_flags, *source, "-o", target], check=True)
    return target


def run(program: Path, check: str, seed: int) -> subprocess.CompletedProcess:
    result = subprocess.run([program, check, str(seed)], check=False, capture_output=True, text=True, timeout=600)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("ThreadSanitizer does not run with this kernel's address space randomisation")
    return result


@pytest.fixture(scope="module", params=some_of(["plain", "thread", "address"], "thread"))
def program(request, tmp_path_factory) -> Path:
    if not shutil.which(COMPILER):
        pytest.skip(f"no C++ compiler: {COMPILER}")
    flags = [] if request.param == "plain" else [f"-fsanitize={request.param}"]
    return compile_exchanges(ROOT, tmp_path_factory.mktemp("exchanges") / request.param, *flags)


@pytest.mark.parametrize("seed", some_of([0, 1, 2], 0))
@pytest.mark.parametrize("check", CHECKS)
def test_exchanges_are_right_and_without_races(program, check, seed):
    result = run(program, check, seed)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.skipif(not shutil.which(COMPILER), reason=f"no C++ compiler: {COMPILER}")
@pytest.mark.parametrize("fault", some_of(FAULTS, "flag-before-data"))
def test_seeded_races_are_reported(tmp_path, fault):
    for folder in ("csrc/cells", "csrc/cuda", "tests/host_shim", "benchmarks/gpu/micro"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    name, pattern, replacement, check = FAULTS[fault]
    header = tmp_path / name
    text, count = re.subn(pattern, replacement, header.read_text(), flags=re.DOTALL)
    assert count == 1
    header.write_text(text)
    result = run(compile_exchanges(tmp_path, tmp_path / "faulty", "-fsanitize=thread"), check, seed=1)
    assert result.returncode != 0
    assert "data race" in result.stderr


def test_all_inline_assembly_is_in_few_headers():
    """These headers document every instruction of the project, and the shim has a counterpart of each."""
    files = [path for folder in ("csrc", "benchmarks", "tests") for path in (ROOT / folder).rglob("*")]
    sources = [path for path in files if path.suffix in (".h", ".inc", ".cpp", ".cu")]
    using = {str(path.relative_to(ROOT)) for path in sources if re.search(r"\basm\b", path.read_text())}
    assert using == {"csrc/cuda/device.h", "csrc/cuda/prefetch.h", "csrc/cuda/sm90.h", "tests/host_shim/fiber.h"}


@pytest.mark.exhaustive
def test_nvcc_compiles_the_program(tmp_path):
    """Both architectures compile without warnings; the program says if there is no GPU."""
    target = tmp_path / "micro"
    subprocess.run(micro.build_command(target, find_nvcc()), check=True)
    result = subprocess.run([target], check=False, capture_output=True, text=True)
    if result.returncode == 2:
        assert result.stderr == "there is no CUDA device\n"
    else:
        assert result.stdout.startswith('{"device"')


def test_the_program_measures_what_the_list_explains(capsys):
    table = (FOLDER / "micro.cu").read_text().split("measurements[] = {")[1].split("};")[0]
    assert re.findall(r'\{"(\w+)", ', table) == list(MEASUREMENTS)
    micro.main(["--list"])
    shown = capsys.readouterr().out
    assert all(f"{name}: " in shown for name in MEASUREMENTS)


# The driver, with a script in place of the program ----------------------------------------------------------

DEVICE = '{"device": "A GPU", "capability": "9.0"}'
GOOD = '{"name": "grid_sync", "blocks": 2, "unit": "us", "values": [3.0, 1.0, 2.0]}'
BAD = '{"name": "cluster_push", "error": "clusters need compute capability 9.0"}'


def stand_in(folder: Path, *commands: str) -> list[str]:
    """Return arguments for a driver whose program is a script of these commands."""
    script = folder / "program"
    script.write_text("\n".join(["#!/bin/sh", *commands]))
    script.chmod(0o755)
    return ["--program", str(script), "--out", str(folder / "micro.json")]


def test_the_driver_writes_medians(tmp_path):
    arguments = stand_in(tmp_path, f"echo '{DEVICE}'", f"echo '{GOOD}'", 'test "$1" = grid_sync')
    micro.main([*arguments, "--only", "grid_sync"])
    result = json.loads((tmp_path / "micro.json").read_text())
    assert result["device"] == json.loads(DEVICE)
    assert result["records"] == [{**json.loads(GOOD), "median": 2.0, "least": 1.0, "most": 3.0}]
    assert result["end"] == {"message": "", "exit": 0}


def test_a_failed_measurement_ends_the_driver_with_an_error(tmp_path):
    arguments = stand_in(tmp_path, f"echo '{DEVICE}'", f"echo '{BAD}'", f"echo '{GOOD}'", "exit 1")
    with pytest.raises(SystemExit, match="clusters need compute capability"):
        micro.main(arguments)
    assert len(json.loads((tmp_path / "micro.json").read_text())["records"]) == 2


def test_what_was_measured_before_the_time_limit_is_kept(tmp_path, monkeypatch):
    """The limit is reached when the first record is written, however long that took."""
    written = threading.Event()

    class Timer(threading.Timer):
        def run(self):
            assert written.wait(600)
            self.function()

    def write_json(path, content, write_json=common.write_json):
        write_json(path, content)
        if content["records"]:
            written.set()

    monkeypatch.setattr(micro.threading, "Timer", Timer)
    monkeypatch.setattr(micro.common, "write_json", write_json)
    arguments = stand_in(tmp_path, f"echo '{DEVICE}'", f"echo '{GOOD}'", "exec sleep 60")
    with pytest.raises(SystemExit, match=r"after 1 s"):
        micro.main([*arguments, "--seconds", "1"])
    result = json.loads((tmp_path / "micro.json").read_text())
    assert [record["name"] for record in result["records"]] == ["grid_sync"]
    assert result["end"]["stopped"] == "after 1 s"


def test_without_a_device_the_driver_says_so(tmp_path, capsys):
    arguments = stand_in(tmp_path, "echo there is no CUDA device >&2", "exit 2")
    with pytest.raises(SystemExit) as stopped:
        common.run_command(lambda: micro.main(arguments))
    assert stopped.value.code == 2
    assert "there is no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "micro.json").exists()
