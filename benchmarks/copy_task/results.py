"""``DIR/results.json``: the configuration of a run, and its finished trials.

The file is replaced as a whole after each trial, so readers always find it complete. A run continues only with the
same configuration, machine and versions, in any number of processes; it never overwrites results that are not its own.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import InputError, WritingError, hardware, without_nan, write_json

RECORD = (
    *("cell", "length", "trial", "seed", "parameters", "accuracy", "loss", "answers", "baseline", "extra", "epochs"),
    *("gradient_norms", "seconds"),
)
NEEDED = {"protocol", "symbols", "vocabulary"}  # of the configuration, to know the task
MAY_CHANGE = ("processes", "cuda_graph", "threads")  # when a run continues


class Results:
    """Finished trials of one run, on disk in ``folder``.

    Args:
        folder: the folder of ``results.json``.
        configuration: the settings that decide the results.
        resume: whether to continue from existing results.

    Raises InputError if the folder holds results and ``resume`` is not set, holds results of another run, or
    cannot be written.
    """

    def __init__(self, folder: Path, configuration: dict, resume: bool) -> None:
        self.path = folder / "results.json"
        self.content = {"configuration": configuration, "hardware": hardware(), "trials": []}
        if before := found_before(folder, resume):
            self._go_on_from(before)
        try:
            write_json(self.path, self.content)
        except WritingError as error:
            raise InputError(f"--out {folder} cannot be written: {error.reason}") from None

    @property
    def trials(self) -> list[dict]:
        return self.content["trials"]

    def find(self, cell: str, length: int, trial: int) -> dict | None:
        """Return the record of a finished trial."""
        wanted = (cell, length, trial)
        return next((t for t in self.trials if (t["cell"], t["length"], t["trial"]) == wanted), None)

    def add(self, record: dict, order: Sequence[tuple[str, int, int]]) -> dict:
        """Keep a finished trial, on disk too, at its place in the ``order`` of (cell, length, trial); return it."""
        record = without_nan(record)  # of a model that diverged
        self.trials.append(record)
        self.trials.sort(key=lambda t: order.index((t["cell"], t["length"], t["trial"])))
        write_json(self.path, self.content)
        return record

    def _go_on_from(self, found: dict) -> None:
        for part in ("configuration", "hardware"):
            self._check_same(found[part], self.content[part])
        self.content["trials"] = found["trials"]

    def _check_same(self, found: dict, given: dict) -> None:
        for name in given | found:
            if name not in MAY_CHANGE and found.get(name) != given.get(name):
                raise InputError(
                    f"{self.path} cannot be resumed: it was made with {name} {found.get(name)}, "
                    f"and this run has {given.get(name)}; take the same settings or another --out"
                )


def read(path: Path) -> dict:
    """Read a results file; raise InputError if it is none, or has trials without one of RECORD's parts."""
    try:
        found = json.loads(path.read_text())
        parts = [found[name] for name in ("configuration", "hardware", "trials")]
        if [type(part) for part in parts] == [dict, dict, list] and found["configuration"].keys() >= NEEDED:
            lacking = [name for name in RECORD if any(name not in trial for trial in found["trials"])]
            if not lacking:
                return found
            raise InputError(
                f"{path} is of another version of this harness: its trials have no {' and no '.join(lacking)}; "
                "take another --out and run them again"
            )
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: a run with this --out writes it") from None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path} holds no results of the copy task")


def found_before(folder: Path, resume: bool) -> dict | None:
    """Return results to continue from, if any; raise InputError if that was not requested."""
    path = folder / "results.json"
    if not path.exists():
        return None
    if not resume:
        raise InputError(f"{path} already holds results: pass --resume to go on from them, or another --out")
    return read(path)
