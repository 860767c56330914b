"""``python -m benchmarks.gpu.streams``: the directions of a bidirectional LSTM one after the other, and at once.

``fused_rnn/streams.py`` says how two streams take part in a call. What they gain depends on how long the kernels take,
and what they cost is the host's, so whole calls are timed, as many in a row as keep the GPU busy if the host can. Calls
with one stream and with two take turns. On the CPU, where there are no streams, this can only be tried: --quick.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import fused_rnn
from benchmarks import common
from benchmarks.gpu import machine
from benchmarks.speed import RESULTS, ROOT
from benchmarks.speed.clock import HostClock, clock_for
from fused_rnn import streams

SIZES = ((128, 16, 200), (128, 16, 1000), (256, 16, 1000), (256, 64, 1000), (512, 16, 1000))  # H, B, T
QUICK_SIZES = ((8, 2, 3),)
DTYPES = ("bfloat16", "float32")
MODES = {"forward": "without gradients", "training": "training step"}
CALLS, ROUNDS = 8, 5
WAYS = {"0": "one", "1": "two"}  # values of FUSED_RNN_TWO_STREAMS, and numbers of streams


@dataclass(frozen=True)
class Case:
    dtype: str
    hidden: int
    batch: int
    steps: int
    mode: str

    def call(self, device: torch.device) -> Callable[[], object]:
        how = {"device": device, "dtype": getattr(torch, self.dtype)}
        lstm = fused_rnn.LSTM(self.hidden, self.hidden, bidirectional=True, **how)
        x = torch.randn(self.steps, self.batch, self.hidden, **how)
        d_output = torch.randn(self.steps, self.batch, 2 * self.hidden, **how)

        def train() -> None:
            lstm.zero_grad(set_to_none=True)
            lstm(x)[0].backward(d_output)

        @torch.no_grad()
        def forward() -> Tensor:
            return lstm(x)[0]

        return train if self.mode == "training" else forward


def measure(case: Case, clock: HostClock) -> dict[str, float]:
    """Return the milliseconds of a call by the number of streams; medians."""
    call = case.call(clock.device)
    times: dict[str, list[float]] = {name: [] for name in WAYS.values()}
    for number, (value, name) in itertools.product(range(1 + ROUNDS), WAYS.items()):
        with common.environment(streams.WANTED, value):
            ms = clock.time(lambda: [call() for _ in range(CALLS)])
        if number:  # the first one warms up
            times[name].append(ms / CALLS)
    return {f"ms_{name}": round(statistics.median(of_it), 4) for name, of_it in times.items()}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.Parser(prog="python -m benchmarks.gpu.streams", description=__doc__)
    parser.add_argument("--device", default="cuda", help="where to compute: cuda, cuda:1, or cpu")
    parser.add_argument("--quick", action="store_true", help="smoke run: one tiny size")
    parser.add_argument("--out", type=Path, help="file of results, in place of one in benchmarks/results or runs")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    clock = clock_for(common.open_device(options.device))
    if clock.device.type == "cpu" and not options.quick:
        raise common.InputError("--device cpu has no streams to measure: --quick tries the command there")
    hardware = machine.description(clock.device)
    folder = ROOT / "runs" if options.quick or clock.device.type == "cpu" else RESULTS
    path = options.out or folder / common.file_name("streams", hardware["gpu"])
    result = {
        **common.origin("benchmarks.gpu.streams", arguments),
        "hardware": hardware,
        "digests": machine.digests(),
        "plan": {"calls": CALLS, "rounds": ROUNDS},
        "times": [],
    }
    for dtype, size, mode in itertools.product(DTYPES, QUICK_SIZES if options.quick else SIZES, MODES):
        case = Case(dtype, *size, mode)
        result["times"].append({**vars(case), **measure(case, clock)})
        common.write_json(path, result)
    print(f"{section(result)}\n\nwrote {path}")


# The block of benchmarks/README.md ----------------------------------------------------------------------------


def block(results: list[dict]) -> str:
    """Make one section per file of results, or one sentence without results."""
    return "\n\n".join(map(section, results)) if results else common.NOT_MEASURED


def section(result: dict) -> str:
    hardware, plan = result["hardware"], result["plan"]
    method = result.get("method", "with `python -m benchmarks.gpu.streams`")
    preamble = (
        f"A bidirectional LSTM with I = H on {hardware['gpu']}, torch {hardware['torch']}, measured on "
        f"{result['date'][:10]} {method}: ms of a whole call, medians of {plan['rounds']} rounds of "
        f"{plan['calls']} calls in a row, with one stream → with two. Without `{streams.WANTED}` in the environment, "
        f"calls with T · H of {streams.LONG} and more take two."
    )
    head = ["dtype", "H", "B", "T", *MODES.values()]
    times = {tuple(r[name] for name in ("dtype", "hidden", "batch", "steps", "mode")): r for r in result["times"]}
    rows = []
    for case in dict.fromkeys(key[:-1] for key in times):
        found = [times.get((*case, mode)) for mode in MODES]
        rows.append([*map(str, case), *("–" if r is None else entry(r) for r in found)])
    return f"{preamble}\n\n{common.table(head, rows)}"


def entry(record: dict) -> str:
    one, two = record["ms_one"], record["ms_two"]
    return f"{common.digits(one)} → {common.digits(two)}, **{one / two:.2f}×**"


if __name__ == "__main__":
    common.run_command(main, saved="the sizes that were finished are written")
