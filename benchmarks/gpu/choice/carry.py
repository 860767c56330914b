"""Results that stay valid: changed sources of the family, from which the compiler makes the same machine code.

``carry_over`` compiles the warp kernels of a revision, whose sources results are valid for, and those of the working
tree, in the dtypes that were measured, by the same nvcc for the architecture that was measured. It compares all kernels
of the measured cells and dtypes bit by bit, and their resources. Kernels are matched by their properties, because their
names change with the templates. Then it queries the library that it compiled for the plan of every measured point,
which must be the plan that was measured. Other work of the host for these kernels is not compared. If all is the same,
the results get a record of it, by which they are valid for the present sources.

Named instructions may be ignored: then kernels are equal if they have the same numbers of all other instructions, with
the same operands except for register numbers and the addresses of branch targets. The record names the ignored ones,
and so do the reports.
"""

import io
import json
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.gpu.kernel import build, calls
from benchmarks.gpu.plans import DIRECTIONS, H200, enforced
from benchmarks.speed import RESULTS, ROOT
from fused_rnn import cuda
from fused_rnn.cells import CELLS

from . import family, results
from .measure import FORCED

COMPILERS = 2  # running at the same time
NAMED = 8  # kernels or points that a refusal names
BRANCHES = "BRA|BSSY|CALL|WARPSYNC"  # instructions with the address of another one


# Machine code -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """The identity of a kernel, whatever its name is."""

    direction: str
    cell: str
    dtype: str
    size: tuple[int, ...]  # K, blocks, shares, octets, features

    def __str__(self) -> str:
        return f"{self.cell} {self.dtype} {self.direction} {'x'.join(map(str, self.size))}"


@dataclass(frozen=True)
class Code:
    """The compiled form of a kernel."""

    resources: build.Resources
    lines: tuple[str, ...]  # of the disassembly: every instruction as text and as bits


def mangled(cell: str) -> str:
    """Return the cell as the name of a kernel has it, among the arguments of its template."""
    names = re.findall(r"\w+", build.cpp_cell(cell))
    base = "I".join(f"NS_{len(name)}{name}" for name in names) + "E" * (2 * len(names) - 1)
    modulates = calls.MODULATES.index(CELLS[cell].modulates)
    return f"NS1_9ModulatedI{base}LNS_9ModulatesE{modulates}EEE" if modulates else base


CELL_OF = {mangled(cell): cell for cell in results.CELLS}
DTYPE_OF = {"NS_8BFloat16E": "bfloat16", "NS_4HalfE": "float16", "f": "float32"}
SYMBOL = re.compile(
    rf"run_(?P<direction>{'|'.join(DIRECTIONS)})I(?P<cell>{'|'.join(CELL_OF)})(?P<dtype>{'|'.join(DTYPE_OF)})"
    r"NS1_4SizeI(?P<size>(?:Li\d+E)+)E"
)


def kernel_of(symbol: str) -> Kernel | None:
    """Identify a kernel by its mangled name, or return None if it is not a warp kernel of a known cell."""
    found = SYMBOL.search(symbol)
    if not found:
        return None
    size = [*map(int, re.findall(r"\d+", found["size"])), 0][:5]  # older names lack features
    return Kernel(found["direction"], CELL_OF[found["cell"]], DTYPE_OF[found["dtype"]], tuple(size))


def unpadded(line: str) -> str:
    """Collapse the columns of a disassembly, whose width depends on the longest instruction of any kernel in it."""
    return " ".join(line.split())


def counted(lines: Sequence[str], but_for: Sequence[str]) -> tuple[str, ...]:
    """Return all lines; if some are ignored, the sorted texts of the others, without register numbers and targets."""
    if not but_for:
        return tuple(lines)
    texts = (re.sub(r"/\*.*?\*/", "", line).strip(" ;") for line in lines)
    kept = (text for text in texts if text and re.sub(r"@!?U?P\w+\s+", "", text) not in but_for)
    named = (re.sub(r"\b(U?R)\d+(\.reuse)?", r"\1", text) for text in kept)
    return tuple(sorted(re.sub(rf"(\b(?:{BRANCHES})\b.*)\b0x[0-9a-f]+$", r"\1", text) for text in named))


def codes(disassembly: str, resources: dict[str, build.Resources], but_for: Sequence[str] = ()) -> dict[Kernel, Code]:
    """Return the code of every warp kernel, from the output of cuobjdump and the resources of kernels by symbol."""
    found = {}
    for part in re.split(r"^\s*Function\s*:\s*", disassembly, flags=re.MULTILINE)[1:]:
        symbol, *lines = part.splitlines()
        if kernel := kernel_of(symbol):
            found[kernel] = Code(resources[symbol.strip()], counted([*filter(None, map(unpadded, lines))], but_for))
    return found


def differences(
    before: dict[Kernel, Code], now: dict[Kernel, Code], measured: Iterable[tuple[str, str]]
) -> Iterator[str]:
    """Yield the changes to the kernels of the measured cells and dtypes, one kernel each."""
    for direction, (cell, dtype) in product(DIRECTIONS, sorted(measured)):
        old, new = (
            {k: code for k, code in side.items() if (k.direction, k.cell, k.dtype) == (direction, cell, dtype)}
            for side in (before, now)
        )
        if not old:
            yield f"{cell} {dtype} {direction} has no machine code to compare"
        yield from (f"{kernel} is gone" for kernel in old if kernel not in new)
        yield from (f"{kernel} is new" for kernel in new if kernel not in old)
        yield from (f"{kernel} differs" for kernel in old if kernel in new and old[kernel] != new[kernel])


# Plans ------------------------------------------------------------------------------------------------------

Plan = Callable[[str, dict], str | None]  # the present plan of a point's direction, or None if the clusters refuse it


def planned_otherwise(points: Sequence[dict], plan: Plan) -> Iterator[str]:
    """Yield the measured points whose plan has changed."""
    for point in points:
        if "skipped" in point:
            continue
        plans = point["cluster"].get("plans", {})
        for direction in DIRECTIONS:
            before, now = plans.get(direction), plan(direction, point)
            if before != now:
                sizes = f"H={point['hidden']} B={point['batch']}"
                yield f"{point['cell']} {point['dtype']} {sizes} {direction} with {now}, measured with {before}"


def chip_of(content: dict) -> cuda.Chip:
    """Return the chip of a file of results in the form for plans; an H200's, if the file does not have it."""
    if "chip" in content:
        return cuda.Chip(**{**content["chip"], "clusters": tuple(content["chip"]["clusters"])})
    if content["hardware"]["gpu"] == H200.name:
        return H200
    raise common.InputError(f"results of {content['hardware']['gpu']} lack 'chip', without which nothing is planned")


def planner(libraries: dict[tuple[str, str], Path], chip: cuda.Chip) -> Plan:
    """Make a planner from the compiled kernels of each direction and dtype; this needs no GPU."""
    loaded = {which: build.Library(path, chip, torch.device("cpu")) for which, path in libraries.items()}

    def plan(direction: str, point: dict) -> str | None:
        sizes = {"T": point["steps"], "B": point["batch"], "I": point.get("input", point["hidden"])}
        dtype = getattr(torch, point["dtype"])
        call = calls.sized(direction, point["cell"], dtype, **sizes, H=point["hidden"])
        try:
            with enforced(FORCED["cluster"]):
                return loaded[direction, point["dtype"]].plan(call).forced
        except common.InputError:  # refused
            return None

    return plan


# Both sources compiled --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Build:
    """The compiled warp kernels of some sources."""

    codes: dict[Kernel, Code]
    libraries: dict[tuple[str, str], Path]  # by direction and dtype


def git(*arguments: str) -> bytes:
    """Return git's output for this repository; raise InputError with its complaint."""
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, check=False)
    if done.returncode:
        raise common.InputError(f"git {' '.join(arguments)} in {ROOT} failed: {done.stderr.decode().strip()}")
    return done.stdout


def sources_of(revision: str, folder: Path) -> Path:
    """Extract the C++ sources of a revision into this folder."""
    with zipfile.ZipFile(io.BytesIO(git("archive", "--format=zip", revision, "csrc"))) as archive:
        archive.extractall(folder)
    return folder


def compiled(commands: dict[tuple[str, str], list[str]], folder: Path, nvcc: str, but_for: Sequence[str] = ()) -> Build:
    """Compile with commands of nvcc for each direction and dtype; raise InputError without a disassembler."""
    targets = {which: folder / f"{'_'.join(which)}.so" for which in commands}
    with ThreadPoolExecutor(COMPILERS) as pool:
        reports = dict(zip(commands, pool.map(build.compiled, commands.values(), targets.values())))
    found: dict[Kernel, Code] = {}
    for which, target in targets.items():
        disassembly = build.disassembly(target, nvcc)
        if disassembly is None:
            raise common.InputError("machine code cannot be compared: there is no cuobjdump and nvdisasm")
        found |= codes(disassembly, build.resources(reports[which], which[0]), but_for)
    return Build(found, targets)


def builds(
    before: Path, dtypes: Iterable[str], arch: str, nvcc: str, folder: Path, but_for: Sequence[str] = ()
) -> tuple[Build, Build]:
    """Compile the kernels of the sources in ``before``, which may lack other dtypes, and of the present ones."""
    old, new = {}, {}
    for direction, dtype in product(DIRECTIONS, dtypes):
        source = before / "csrc" / "cuda" / "cluster" / f"{direction}_{dtype}.cu"
        old[direction, dtype] = build.nvcc_command(nvcc, arch, [], source)
        new[direction, dtype] = build.nvcc_command(nvcc, arch, build.macros_of_clusters(dtype, direction))
    return compiled(old, folder / "old", nvcc, but_for), compiled(new, folder / "new", nvcc, but_for)


# Carrying over ----------------------------------------------------------------------------------------------


def carry_over(revision: str, but_for: Sequence[str] = ()) -> None:
    """Record in the committed results of a revision's sources that they are valid for the present ones.

    Instructions in ``but_for``, such as CCTL.IVALL, are ignored.

    Raises InputError if no results need this, or, with the differences, if they are not valid.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before, present = sources_of(revision, folder / "before"), family.digest()
        digest = family.digest(before)
        found = {path: results.read(path) for path in results.files()}
        paths = [path for path, each in found.items() if each.valid_for(digest) and not each.valid_for(present)]
        if not paths:
            raise common.InputError(
                f"no results in {RESULTS} are valid for the sources of {revision} and not yet for those here"
            )
        commit = git("rev-parse", f"{revision}^{{commit}}").decode().strip()
        date = common.now()
        made: dict[tuple[str, ...], tuple[Build, Build]] = {}
        for path in paths:
            content = json.loads(path.read_text())
            arch = build.architecture_of(*map(int, content["hardware"]["capability"].split(".")))
            nvcc, dtypes = build.find_nvcc(arch), sorted({outcome.dtype for outcome in found[path].outcomes})
            key = (arch, *dtypes)
            if key not in made:
                made[key] = builds(before, dtypes, arch, nvcc, folder / "-".join(key), but_for)
            number = compare(path.name, found[path], content, *made[key])
            record = {"family": present, "from": digest, "revision": commit, "arch": arch, "kernels": number}
            record |= {"compiler": build.version_of(nvcc), "date": date}
            if but_for:
                record["but_for"] = list(but_for)
            content["carried"] = [*content.get("carried", []), record]
            common.write_json(path, content)
            ignored = f" but for {', '.join(but_for)}" if but_for else ""
            print(f"{path.name}: {number} kernels have the same machine code{ignored}, and all points the same plans")


def compare(name: str, found: results.Results, content: dict, old: Build, new: Build) -> int:
    """Return the number of compared kernels; raise InputError for kernels that differ, or points with another plan."""
    measured = {(outcome.cell, outcome.dtype) for outcome in found.outcomes}
    for complaints in (
        differences(old.codes, new.codes, measured),
        planned_otherwise(content["points"], planner(new.libraries, chip_of(content))),
    ):
        if different := list(complaints):
            more = f", and {len(different) - NAMED} more" if len(different) > NAMED else ""
            raise common.InputError(f"{name} is not valid for the sources here: {', '.join(different[:NAMED])}{more}")
    return sum((kernel.cell, kernel.dtype) in measured for kernel in old.codes)
