"""The block of benchmarks/README.md on the costs that the kernels are tuned by, for ``benchmarks.report``.

Every number is a median of a file that ``python -m benchmarks.gpu.micro`` wrote. The block shows only measurements that
decide something; the file has all of them.
"""

from benchmarks.common import digits, folded

NOT_RUN = "Not yet run on a GPU."
UNITS = {"us": "µs"}
# The label of a row, its measurements, and their settings: one entry each, in this order.
ROWS = (
    (
        "barrier of 2 / 8 / 16 / 128 blocks at a counter",
        "counter_barrier",
        [{"blocks": blocks} for blocks in (2, 8, 16, 128)],
    ),
    ("the same by flags", "flag_barrier", [{"blocks": blocks} for blocks in (2, 8, 16, 128)]),
    ("the same by cooperative groups", "grid_sync", [{"blocks": blocks} for blocks in (2, 8, 16, 128)]),
    ("barrier of a cluster of 16 in hardware", "cluster_barrier", [{"cluster": 16, "everywhere": 1}]),
    ("the same without ordering memory", "cluster_barrier_relaxed", [{"cluster": 16, "everywhere": 1}]),
    ("message through L2 whose words are its flag", "tagged_message", [{"distance": 66}]),
    ("the same with a flag of its own", "flagged_message", [{"distance": 66}]),
    ("push into another block's shared memory", "cluster_push", [{"cluster_scope": 0}]),
    (
        "state of 2 / 8 / 32 KiB exchanged by 16 blocks through L2",
        "tile_exchange",
        [{"blocks": 16, "bytes": size} for size in (2048, 8192, 32768)],
    ),
    (
        "the same in a cluster of 16",
        "cluster_exchange",
        [{"cluster": 16, "bytes": size} for size in (2048, 8192, 32768)],
    ),
    ("shared memory read by 256 threads", "shared_scan", [{"threads": 256}]),
    ("mma.m16n8k16 by 16 warps, operands in registers", "matrix_rate", [{"warps": 16}]),
    ("the same where every two need an ldmatrix", "matrix_shared_rate", [{"warps": 16}]),
    ("float32 multiply-adds by 256 threads, operands in registers", "multiply_add_rate", [{"threads": 256}]),
    (
        "the same from shared memory, 1 / 2 / 4 outputs a lane",
        "multiply_add_shared_rate",
        [{"threads": 256, "outputs": outputs} for outputs in (1, 2, 4)],
    ),
)


def block(results: list[dict]) -> str:
    """Make one folded section per file of results, or one sentence without results."""
    return "\n\n".join(section(result) for result in results) if results else NOT_RUN


def section(result: dict) -> str:
    device = result["device"]
    intro = (
        f"Medians measured on {result['date'][:10]} with `{result['command']}`: {device['device']}, "
        f"{device['multiprocessors']} multiprocessors, {digits(device['clock_khz'] / 1e6)} GHz; rates are those of one "
        "multiprocessor."
    )
    rows = [f"| {title} | {entry(result, name, settings)} |" for title, name, settings in ROWS]
    table = "\n".join(["| | |", "|---|---|", *rows])
    return folded(f"What barriers, messages, memory and arithmetic cost on {device['device']}", intro, table)


def entry(result: dict, name: str, settings: list[dict]) -> str:
    """Format the medians at each of the settings, and their unit."""
    found = [record for record in result["records"] if record["name"] == name]
    shown = [next((r for r in found if wanted.items() <= r.items()), {}) for wanted in settings]
    unit = next((record["unit"] for record in shown if "unit" in record), "")
    return f"{' / '.join(digits(record.get('median')) for record in shown)} {UNITS.get(unit, unit)}".strip()
