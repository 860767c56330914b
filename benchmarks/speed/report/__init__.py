"""The blocks of tables that ``benchmarks.report`` writes from the results of ``python -m benchmarks.speed``.

Every number, name and date comes from files of results. ``tables`` shows those of a CPU, ``scaling`` how cost grows,
``sequences`` those of different lengths and those of episodes, ``gpu`` the groups of a GPU. Entries and origins read
alike in all of them, as functions here say.
"""

from collections.abc import Callable

from benchmarks.common import NOT_MEASURED, digits
from benchmarks.speed.records import Measured, Results

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


def ratio(measured: Measured | None, ours: str, theirs: str, kind: str = "time") -> str:
    """Format ours / theirs = ratio, of which more than 1 is in our favour."""
    if measured is None or not {ours, theirs} <= measured.records(kind).keys():
        return "–"
    if problem := measured.problem(kind, ours) or measured.problem(kind, theirs):
        return problem
    mine, other = measured.quantity(kind, ours), measured.quantity(kind, theirs)
    times = f"**{other / mine:.2f}×**" if mine else "–"  # a step may find all its memory in earlier freed blocks
    return f"{digits(mine)} / {digits(other)} = {times}"


def multiple(measured: Measured, kind: str, candidate: str, ours: float | None) -> str:
    """Format what a candidate takes = how many times as much as ours."""
    number = measured.quantity(kind, candidate)
    if problem := measured.problem(kind, candidate):
        return problem
    return digits(number) + (f" = **{number / ours:.2f}×**" if number and ours and number != ours else "")


def block_of(section: Callable[[Results], str]) -> Callable[[list[dict]], str]:
    """Make a function of one section per file of results, or one sentence without results."""

    def block(results: list[dict]) -> str:
        return "\n\n".join(section(Results(result)) for result in results) if results else NOT_MEASURED

    return block
