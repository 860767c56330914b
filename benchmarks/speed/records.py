"""What the tables and the pictures read of a file of results of ``python -m benchmarks.speed``."""

from typing import NamedTuple

from .cases import Case, Shape
from .ceilings import floor_ms


class Column(NamedTuple):
    shape: str
    mode: str


def columns(result: dict) -> list[Column]:
    """What was timed, mode by mode."""
    modes = dict.fromkeys(record["mode"] for record in result["times"])
    found = dict.fromkeys(Column(record["shape"], record["mode"]) for record in result["times"])
    return [column for mode in modes for column in found if column.mode == mode]


def found_at(result: dict, cell: str, threads: int, column: Column) -> dict[str, dict]:
    """The records of all candidates there, by their names."""
    place = (cell, threads, *column)
    return {
        record["candidate"]: record
        for record in result["times"]
        if (record["cell"], record["threads"], record["shape"], record["mode"]) == place
    }


def timed_at(result: dict, cell: str, threads: int, column: Column) -> dict[str, dict]:
    """Those of the candidates that were right, and so were timed."""
    records = found_at(result, cell, threads, column)
    return {name: record for name, record in records.items() if record.get("median_ms")}


def fastest_rival(result: dict, cell: str, threads: int, column: Column) -> dict | None:
    rivals = [record for name, record in timed_at(result, cell, threads, column).items() if name != "fused"]
    return min(rivals, key=lambda record: record["median_ms"], default=None)


def shares(result: dict, cell: str, threads: int, column: Column) -> dict[str, float]:
    """The share of the floor in the time of every candidate; none where the ceilings were not measured."""
    ceilings = next((found for found in result.get("ceilings", []) if found["threads"] == threads), {})
    case = Case(cell, Shape(**result["shapes"][column.shape]), column.mode)
    floor = floor_ms(case, result["plan"].get("dtype", "float32"), ceilings)
    records = timed_at(result, cell, threads, column) if floor else {}
    return {name: floor / record["median_ms"] for name, record in records.items()}
