"""The blocks of tables that ``benchmarks.report`` writes from the results of ``python -m benchmarks.speed``.

Every number, name and date comes from files of results. ``tables`` shows those of a CPU, ``scaling`` how cost grows,
``fills`` sequences of different lengths, ``resets`` those of episodes, ``gpu`` the groups of a GPU.
"""

from collections.abc import Callable

from benchmarks.common import NOT_MEASURED
from benchmarks.speed.records import Results

MALLOC = {
    "resident": "malloc told to keep what is freed, in huge pages: least noise, kindest to code that allocates a lot",
    "default": "malloc as it is by default",
}


def origin(found: Results) -> str:
    """Say when, by which command and on what it was measured."""
    machine = found.machine
    on_gpu = found.plan["device"] != "cpu"
    where = machine["gpu"] if on_gpu else f"{machine['cpu']}, threads: {found.threads[0]}"
    return (
        f"Measured on {found.day} with `{found.command}`: {where}, torch {machine['torch']}, "
        f"fused_rnn {machine['fused_rnn']}, backend `{found.backend}`, {found.dtype}"
    )


def block_of(section: Callable[[Results], str]) -> Callable[[list[dict]], str]:
    """Make a function of one section per file of results, or one sentence without results."""

    def block(results: list[dict]) -> str:
        return "\n\n".join(section(Results(result)) for result in results) if results else NOT_MEASURED

    return block
