"""Figures, verdicts and words, and the report that is made from a results file alone."""

import json
import math

import numpy as np
import pytest

from benchmarks.common import CELLS, COMPARED
from benchmarks.copy_task import __main__ as command
from benchmarks.copy_task.data import Recall
from benchmarks.copy_task.options import configuration_of, parse_options
from benchmarks.copy_task.pictures import COLOURS
from benchmarks.copy_task.report import label, number, sentence
from benchmarks.copy_task.summary import decades, mean_and_error, outcome, summarise
from benchmarks.pictures import PALETTE

from .conftest import record, refusal


def test_mean_and_standard_error():
    figure = mean_and_error([1.0, 2.0, 6.0])
    assert figure["mean"] == 3
    assert figure["standard_error"] == pytest.approx(np.std([1, 2, 6], ddof=1) / math.sqrt(3))
    assert mean_and_error([2.0]) == {"mean": 2.0, "standard_error": None}
    assert mean_and_error([2.0, None]) == {"mean": None, "standard_error": None}
    assert number(figure, 1) == "3.0 ± 1.5"


@pytest.mark.parametrize(
    ("accuracy", "loss", "expected"),
    [
        (0.995, 0.01, "solved"),
        (0.3, 2.0, "better"),
        (0.3, 2.4, "more accurate"),
        (0.1, 2.3, "chance"),
        (0.12, 2.3, "chance"),
        (0.12, 2.2, "lower loss"),
        (0.1, None, "diverged"),
    ],
)
def test_outcome(accuracy, loss, expected):
    baseline = {"accuracy": 0.1, "loss": math.log(10)}
    assert outcome({"accuracy": accuracy, "loss": loss, "baseline": baseline, "answers": 1000}) == expected


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([(0.995, 0.02)], ["solved;", "accuracy 99.5 % where guessing has 10.0%,", "0.020 where the memoryless model"]),
        ([(0.1, 2.303)], ["at chance (no better than guessing and the memoryless model);"]),
        ([(0.55, 1.2)], ["better than guessing and the memoryless model;", "(50 % of the way from there to perfect)"]),
        ([(0.1, 1.9)], ["no more accurate than guessing but of lower loss than the memoryless model;"]),
        ([(0.3, 5.0)], ["more accurate than guessing but of no lower loss than the memoryless model;"]),
        ([(0.1, None)], ["diverged (its loss is no longer finite);"]),
        ([(1.0, 0.01), (0.1, 2.303)], ["solved in 1 of 2 trials, at chance", "accuracy 55.0 ± 45.0 %"]),
    ],
)
def test_words_follow_from_the_numbers(scores, words):
    (row,) = summarise([record(*pair, trial=trial) for trial, pair in enumerate(scores)])
    said = sentence(row, Recall(2, 10))
    assert said.startswith("LSTM, length 5: ")
    assert [word for word in words if word not in said] == []


def test_cells_have_names_for_people_and_colours_that_stay():
    named = {
        "lstm": "LSTM",
        "gru_reset_after": "GRU reset after",
        "multiplicative_lstm_hidden": "multiplicative LSTM hidden",
    }
    assert {cell: label(cell) for cell in named} == named
    assert [COLOURS[cell] for cell in COMPARED] == list(PALETTE[:5])
    assert len(set(COLOURS.values())) == len(CELLS)


def test_decades_of_the_gradient():
    assert decades([1e-6, 5.0, 1.0]) == pytest.approx(-6)
    assert decades([0.0, 1.0]) is decades([1.0, None]) is None


def write_results(folder, arguments: list[str], trials: list[dict]) -> dict:
    """Write and return the results of a run with these options on a GPU elsewhere."""
    configuration = configuration_of(parse_options(arguments), "cuda")
    content = {"configuration": configuration, "hardware": {"cpu": "abacus"}, "trials": trials}
    (folder / "results.json").write_text(json.dumps(content))
    return content


def report(folder) -> str:
    command.main(["--report", "--out", str(folder)])
    return (folder / "report.md").read_text()


def test_report_is_made_of_a_results_file_alone(tmp_path, capsys):
    """The file may have trials that ended early, come from another machine, or be of an unfinished run."""
    trials = [record(0.995, 0.02, trial=trial) for trial in range(3)]
    trials += [record(0.995, 0.02, length=9), record(0.1, 2.3, length=9, trial=1), record(0.1, None, "gru")]
    content = write_results(tmp_path, ["--cell", "lstm", "gru", "--length", "5", "9"], trials)
    text = report(tmp_path)
    assert "| cpu | abacus |" in text
    assert "**Not finished: 6 of 12 trials so far.**" in text
    assert "right in every trial: LSTM 5 (3 ± 1 epochs and 1.5 ± 0.0 minutes a trial)." in text
    assert "| 5 | LSTM | -6.0 ± 0.0 | – |" in text
    assert "Left out" not in text
    assert "Training begins" not in text
    printed = capsys.readouterr().out
    assert "GRU, length 5: diverged" in printed
    assert "LSTM 5 (3 ± 1 epochs" in printed
    assert json.loads((tmp_path / "results.json").read_text()) == content


def test_ascending_run_is_finished_where_its_cells_stop(tmp_path, without_pictures):
    arguments = ["--cell", "lstm", "gru", "--length", "9", "5", "7", "--trials", "1", "--ascend", "--grow-from", "4"]
    trials = [record(0.995, 0.02), record(0.5, 1.0, "gru"), record(0.995, 0.02, length=7)]
    write_results(tmp_path, arguments, trials)
    left_out = "Left out, because the cell has not solved a shorter length: GRU 7, GRU 9."
    assert f"**Not finished: 3 of 4 trials so far.** {left_out}" in report(tmp_path)
    write_results(tmp_path, arguments, [*trials, record(0.5, 1.0, length=9)])
    text = report(tmp_path)
    assert "Not finished" not in text
    assert left_out in text
    assert "Training begins with sequences of length 4" in text
    assert "in every trial: LSTM 7 (" in text


def test_report_that_cannot_be_made_is_refused(tmp_path, capsys):
    arguments = ("--report", "--out", str(tmp_path))
    assert "does not exist" in refusal(capsys, *arguments)
    write_results(tmp_path, [], [])
    assert "no finished trial" in refusal(capsys, *arguments)
    without_time = {name: value for name, value in record(0.5, 1.0).items() if name != "seconds"}
    write_results(tmp_path, [], [record(0.5, 1.0), without_time])
    assert "another version of this harness: its trials have no seconds;" in refusal(capsys, *arguments)
