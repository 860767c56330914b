"""The block on how far back a cell recalls shows what a run has written."""

import pytest

from benchmarks.copy_task.published import block
from benchmarks.copy_task.report import longest_solved
from benchmarks.copy_task.summary import summarise

from .conftest import run


@pytest.mark.usefixtures("without_pictures")
def test_a_run_can_be_shown_as_it_was_written(tmp_path):
    written = run(tmp_path, "--longest", "--cell", "gru", "--length", "3", "5", "--grow-from", "1", "--trials", "1")
    lines = block([written]).splitlines()
    assert lines[0].startswith(f"{written['configuration']['symbols']} symbols out of ")
    assert lines[2] == longest_solved(summarise(written["trials"]))
    accuracy = 100 * written["trials"][0]["accuracy"]
    assert any(line.startswith(f"| 3 | GRU | {accuracy:.1f} |") for line in lines)


@pytest.mark.usefixtures("without_pictures")
def test_trials_side_by_side_are_shown_as_such(tmp_path):
    (first, *_) = block([run(tmp_path, "--processes", "2", "--cell", "gru", "--length", "3")]).splitlines()
    assert "H=5, at most 2 epochs for each, 2 trials side by side; " in first


def test_nothing_recorded():
    assert block([]) == "No run has been recorded yet."
