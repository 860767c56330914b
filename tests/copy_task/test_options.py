"""The command line: presets, help, and wrong input."""

import pytest

from benchmarks.common import InputError
from benchmarks.copy_task.options import DEMO, LONGEST, PRESETS, parse_options

from .conftest import refusal, run

HARNESSES_FIVE = ["rnn", "lstm", "gru", "multiplicative_lstm", "multiplicative_gru"]  # in the order of colours, too


def test_demo_is_a_preset_that_options_override():
    plain, demo = vars(parse_options([])), vars(parse_options(["--demo"]))
    assert {name for name in plain if plain[name] != demo[name]} <= {*DEMO, "demo", "out"}
    assert all(demo[name] == value for name, value in DEMO.items())
    assert parse_options(["--demo", "--symbols", "3"]).symbols == 3
    longest = parse_options(["--longest", "--cell", "gru"])
    assert (longest.cell, longest.minutes, longest.length) == (["gru"], LONGEST["minutes"], LONGEST["length"])
    assert longest.minutes < 10
    assert parse_options(["--longest", "--length", "9", "5"]).length == [5, 9]
    echo = parse_options(["--demo", "--protocol", "echo"])
    assert echo.symbols is None
    assert echo.length == DEMO["length"]


def test_protocols_have_their_own_defaults():
    echo = parse_options(["--protocol", "echo"])
    assert (echo.lr, echo.epochs, echo.batch, echo.sequences, echo.held_out) == (0.01, 10, 32, 100, 100)
    recall = parse_options([])
    assert (recall.length, recall.symbols, recall.vocabulary) == ([100, 200, 500, 1000], 10, 10)
    assert (recall.hidden, recall.trials, recall.cell) == (128, 3, HARNESSES_FIVE)
    assert set(PRESETS["recall"]) == set(PRESETS["echo"])


def test_help_explains_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, value in vars(parse_options([])).items():
        assert f"--{name.replace('_', '-')}" in text
        if value is not None:
            assert f"(default: {value})" in text
    assert "u uniform from 1 to the delay between a symbol and its answer less one" in text  # as chrono_bias draws it
    assert "gru resets before the recurrent product" in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--protocol", "recite"], "--protocol: invalid choice: 'recite' (choose from"),
        (["--length", "0"], "--length: must be at least 1, got 0"),
        (["--protocol", "echo", "--symbols", "5"], "--symbols 5 does not go with --protocol echo"),
        (["--vocabulary", "1"], "--vocabulary 1 leaves nothing to remember"),
        (["--seed", "-1"], "--seed: must be between 0 and 4294967295, got -1"),
        (["--keep-bias", "nan"], "--keep-bias: must be a finite number or chrono, got nan"),
        (["--keep-bias", "much"], "got much"),
        (["--keep-bias=-1e300"], "--keep-bias: must be at most 1e+37 to be computed with in float32, got -1e300"),
        (["--lr", "1e300"], "--lr: must be at most 1e+37 to be computed with in float32, got 1e300"),
        (["--threads", "100000"], "the number of this machine's cores, got 100000"),
        (["--layers", "10000000"], "needs about"),
        (["--hidden", "1" + 300 * "0"], "--hidden: must be below 2**63"),
        (["--trials", "10000000000", "--cell", "rnn"], "--trials 10000000000 of 1 cells at 4 lengths make results"),
        (["--until", "1"], "--until: must be at least 0 and below 1, got 1"),
        (["--minutes", "0"], "--minutes: must be a finite number above 0, got 0"),
        (["--schedule", "linear"], "--schedule: invalid choice: 'linear' (choose from"),
        (["--protocol", "echo", "--grow-from", "5"], "--grow-from 5 does not go with --protocol echo"),
        (["--grow-at", "0.9"], "--grow-at 0.9 says when sequences grow, and without --grow-from none does"),
        (["--demo", "--longest"], "--longest: not allowed with argument --demo"),
        (["--protocol", "echo", "--longest"], "--longest does not go with --protocol echo"),
        (["--processes", "0"], "--processes: must be at least 1, got 0"),
        (["--longest", "--processes", "2"], "--processes 2 does not go with --ascend"),
        (["--device", "abacus"], "--device abacus is unknown"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(arguments, named, tmp_path, capsys):
    folder = tmp_path / "out"
    assert named in refusal(capsys, *arguments, "--out", str(folder))
    assert not folder.exists()


EMPTY = '{"configuration": {}, "hardware": {}, "trials": []}'


@pytest.mark.parametrize("content", ["", EMPTY, "[]", '{"configuration": 3}', '{"losses": []}'])
def test_foreign_file_is_not_resumed(content, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(InputError, match="holds no results of the copy task"):
        run(tmp_path, "--resume")
    with pytest.raises(InputError, match="holds no results of the copy task"):
        run(tmp_path, "--report")
    assert path.read_text() == content


def test_there_is_one_cpu_by_whatever_number():
    assert [parse_options(["--device", name]).device for name in ("cpu", "cpu:0", "cuda:1")] == ["cpu", "cpu", "cuda:1"]


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run(tmp_path / "file" / "run")
