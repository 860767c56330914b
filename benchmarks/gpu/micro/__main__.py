"""``python -m benchmarks.gpu.micro``: measure the costs that the kernels are tuned by, and write one file of results.

The program is compiled where there is nvcc (``--build`` does only that, and needs no GPU), and may be copied to the
machine with the GPU. Results grow line by line: what was measured before a failure or the time limit is kept.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks import common
from benchmarks.gpu import toolkit
from benchmarks.speed import ROOT

from . import MEASUREMENTS

SOURCE = Path(__file__).with_name("micro.cu")
PROGRAM = ROOT / "build" / "micro"
OUT = ROOT / "runs" / "micro.json"
ARCHITECTURES = ("sm_80", "sm_90a")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.Parser(prog="python -m benchmarks.gpu.micro", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", help="measure these, not all")
    parser.add_argument("--list", action="store_true", help="say what there is to measure and what for, and stop")
    parser.add_argument("--build", action="store_true", help="compile the program anew, and stop")
    parser.add_argument("--program", type=Path, default=PROGRAM, help="the compiled program")
    parser.add_argument("--seconds", type=common.positive_number, default=120.0, help="time for all measurements")
    parser.add_argument("--out", type=Path, default=OUT, help="file of results")
    return parser.parse_args(arguments)


def build_command(target: Path, nvcc: str = "nvcc") -> list[str]:
    """Return the command that compiles the program, for Ampere (and as PTX for its successors) and Hopper."""
    codes = {architecture: [architecture] for architecture in ARCHITECTURES}
    codes["sm_80"].append("compute_80")
    flags = [f"-gencode=arch={name.replace('sm', 'compute')},code=[{','.join(code)}]" for name, code in codes.items()]
    warnings = "-Werror=all-warnings"
    return [nvcc, "-std=c++17", "-O3", warnings, *flags, "-o", str(target), str(SOURCE)]


def build(target: Path) -> None:
    nvcc = toolkit.nvcc()
    if not nvcc:
        raise common.InputError("there is no nvcc here: build with --build where there is one, and carry the program")
    with common.replacing(target) as partial_path:
        command = build_command(partial_path, nvcc)
        print(shlex.join(command), flush=True)
        if subprocess.run(command, check=False).returncode:
            sys.exit("error: the program did not compile")


def lines(command: list[str], seconds: float, status: dict) -> Iterator[dict]:
    """Yield the objects that the program prints; afterwards ``status`` says how it ended."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(seconds, lambda: (status.update(stopped=f"after {seconds:.0f} s"), process.kill()))
        timer.start()
        try:
            yield from map(json.loads, process.stdout)
            status["message"] = process.stderr.read().strip()
        finally:
            timer.cancel()
            process.kill()
    status["exit"] = process.returncode


def summarised(record: dict) -> dict:
    """Add the median and range of the repetitions to a line of the program."""
    if "values" not in record:
        return record
    values = record["values"]
    return {**record, "median": median(values), "least": min(values), "most": max(values)}


def shown(record: dict) -> str:
    given = " ".join(f"{k}={v}" for k, v in record.items() if k not in ("name", "unit", "values", *STATISTICS))
    if "median" not in record:
        return f"{record['name']:26} {given}"
    least, most, unit = (record[key] for key in ("least", "most", "unit"))
    return f"{record['name']:26} {given:28} {record['median']:.4g} {unit} ({least:.4g} to {most:.4g})"


STATISTICS = ("median", "least", "most")


def run(options: argparse.Namespace) -> dict:
    """Run the program, write results as they come, and return them."""
    result = {
        **common.origin("benchmarks.gpu.micro"),
        "hardware": common.hardware(),
        "meaning": {name: f"{what}; {why}" for name, (what, why) in MEASUREMENTS.items()},
        "device": None,
        "records": [],
        "end": {},
    }
    command = [str(options.program.resolve()), *(options.only or [])]
    for record in lines(command, options.seconds, result["end"]):
        if "device" in record:
            result["device"] = record
        else:
            result["records"].append(summarised(record))
            print(shown(result["records"][-1]), flush=True)
        common.write_json(options.out, result)
    if result["device"] is not None:
        common.write_json(options.out, result)
    return result


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.list:
        for name, (what, why) in MEASUREMENTS.items():
            print(f"{name}: {what}\n    {why}")
        return
    if options.build or not options.program.exists():
        build(options.program)
    if options.build:
        return
    if not os.access(options.program, os.X_OK):
        raise common.InputError(f"--program {options.program} cannot be executed")
    result = run(options)
    end = result["end"]
    if result["device"] is None:
        raise common.InputError(f"nothing was measured: {end.get('message') or end}")
    print(f"wrote {options.out}")
    failed = [shown(record) for record in result["records"] if "error" in record]
    if end.get("exit") != 0 or failed:
        reasons = [f"the program ended with {end}"] if end.get("exit") != 0 else []
        sys.exit("error: not everything was measured:\n" + "\n".join(reasons + failed))


if __name__ == "__main__":
    common.run_command(main, saved="what was measured is written")
