"""The block on the losses of language models shows the contents of the files, and nothing else."""

import json

import pytest

from benchmarks.common import hardware
from benchmarks.language_model.methods import METHODS
from benchmarks.language_model.published import PUBLISHED, block
from benchmarks.language_model.report import in_units

from .conftest import train


def epoch(number: int, unit: str, **losses: float) -> dict:
    named = {f"{part}_loss": loss for part, loss in losses.items()}
    units = {f"{part}_{name}": v for part, loss in losses.items() for name, v in in_units(loss, unit).items()}
    return {"epoch": number, **named, **units, "seconds": 90.0, "backend": "cpu"}


def run(cell: str, count: int, unit: str, **more) -> dict:
    epochs = [epoch(number, unit, train=2 / number, held_out=3 / number) for number in range(1, count)]
    last = epoch(count, unit, train=2 / count, held_out=3 / count, test=1.5)
    return {"cell": cell, "parameters": 12345, "epochs": [*epochs, last], **more}


def result(runs: list[dict], **configuration) -> dict:
    given = {"command_line": "python -m it", "preset": None, "alphabet": "bytes", "seed": 7, "epochs": 1}
    given |= configuration
    data = {"training_symbols": 1_000_000, "held_out_symbols": 5000}
    return {"configuration": given, "hardware": hardware(), "data": data, "runs": runs}


def test_the_table_shows_losses_of_a_few_epochs():
    lines = block([result([run("gru", 10, "byte"), run("lstm", 4, "byte")])]).splitlines()
    assert lines[0] == "`python -m it`"
    assert "seed 7. 1,000,000 and 5,000 bytes to train on and held out" in lines[2]
    assert lines[4:8] == [
        "| cell | backend | parameters | epoch 1 | epoch 4 | epoch 7 | epoch 10 | test | minutes |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| gru | `cpu` | 12,345 | 2.000 / 3.000 | 0.500 / 0.750 | 0.286 / 0.429 | 0.200 / 0.300 | 1.500 | 15.0 |",
        "| lstm | `cpu` | 12,345 | 2.000 / 3.000 | 0.500 / 0.750 | – | – | 1.500 | 6.0 |",
    ]


def test_words_are_measured_in_perplexity_beside_what_was_published():
    text = block([result([run("torch_lstm", 2, "word")], alphabet="words", preset="zaremba-small")])
    assert "| torch lstm | `cpu` | 12,345 | 7.4 / 20.1 | 2.7 / 4.5 | 4.5 | 3.0 |" in text.splitlines()
    assert PUBLISHED["zaremba-small"] in text


def test_a_run_that_was_stopped_says_so():
    runs = [run("gru", 10, "byte"), run("torch_lstm", 4, "byte")]
    assert "The run of the torch lstm was stopped after epoch 4 of 10." in block([result(runs, epochs=10)]).splitlines()
    assert "stopped" not in block([result(runs, epochs=4)])


def test_the_best_model_speaks_and_tables_stay_whole():
    said = {method: f"by {method}: a|b *c*" for method in METHODS}
    runs = [run("gru", 3, "byte", samples=dict.fromkeys(METHODS, "worse")), run("lstm", 4, "byte", samples=said)]
    text = block([result(runs)])
    assert "| nucleus | by nucleus: a\\|b \\*c\\* |" in text.splitlines()
    assert "worse" not in text


def test_a_run_can_be_shown_as_it_was_written(text, tmp_path):
    assert train(text, tmp_path / "out", "--prompt", "Never", "--test", text) == 0
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    shown = block([written])
    assert f"`{written['configuration']['command_line']}`" in shown
    assert f"{written['runs'][0]['epochs'][-1]['test_loss']:.3f}" in shown
    assert f"| greedy | {written['runs'][0]['samples']['greedy']}" in shown.replace("\\", "")


@pytest.mark.parametrize("preset", PUBLISHED)
def test_what_was_published_belongs_to_a_preset(preset):
    assert PUBLISHED[preset] in block([result([run("lstm", 2, "byte")], preset=preset)])


def test_nothing_recorded():
    assert block([]) == "No run has been recorded yet."
