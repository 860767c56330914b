"""The copy task: its data against the published description, its scores, its runs, and that its models learn."""

import json
import math
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from benchmarks.common import CELLS, InputError, run_command
from benchmarks.copy_task import __main__ as command
from benchmarks.copy_task import document, memory, train
from benchmarks.copy_task.data import Data, Echo, Recall
from benchmarks.copy_task.model import CopyModel, chrono_bias, gradient_norms
from benchmarks.copy_task.options import DEMO, LONGEST, PRESETS, configuration_of, parse_options, task_of
from benchmarks.copy_task.report import number, sentence
from benchmarks.copy_task.summary import decades, mean_and_error, outcome, summarise
from benchmarks.copy_task.train import run_trial

SMALL = [
    *("--cell", "lstm", "multiplicative_gru", "--length", "3", "5", "--symbols", "2", "--vocabulary", "3"),
    *("--trials", "2", "--hidden", "5", "--batch", "4", "--epochs", "2", "--sequences", "10"),
    *("--held-out", "6", "--extra", "1", "4"),
]
TIMES = {"seconds", "seconds_per_step"}
SCORES = {"loss": 1.0, "accuracy": 0.5}


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small only lose by a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def without_pictures(monkeypatch):
    """For tests that look at other things: drawing takes longer than the runs."""
    monkeypatch.setattr(document, "draw_pictures", lambda *_: [])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(folder, *more: str) -> dict:
    """Run the command in this process; returns results.json."""
    command.main([*SMALL, "--out", str(folder), *more])
    return json.loads((folder / "results.json").read_text())


def without_times(value):
    """A record of results without what differs from run to run."""
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


# Data -------------------------------------------------------------------------------------------------------


def test_recall_is_laid_out_as_published():
    """Henaff et al. 2016, §3.1, with T = length + 1: S symbols, T-1 blanks, a delimiter, S blanks; S + T steps later
    each symbol is due."""
    S, K, D, B = 4, 8, 7, 5
    inputs, targets = Recall(S, K).draw(D, B, generator())
    T = D + 1
    assert inputs.shape == (T + 2 * S, B, K + 2)
    assert (inputs.sum(-1) == 1).all()
    categories = inputs.argmax(-1)
    assert (categories[:S] < K).all()
    assert (categories[S : S + T - 1] == K).all()
    assert (categories[S + T - 1] == K + 1).all()
    assert (categories[S + T :] == K).all()
    assert torch.equal(targets, categories[:S])


def test_symbols_are_uniform():
    _, targets = Recall(10, 10).draw(1, 2000, generator())
    counts = torch.bincount(targets.flatten(), minlength=10)
    assert (counts - 2000).abs().max() < 5 * math.sqrt(2000 * 0.9)


def test_echo_is_laid_out_as_recorded():
    inputs, targets = Echo(10).draw(100, 30, generator())
    assert inputs.shape == (101, 30, 11)
    assert torch.equal(inputs, targets)
    assert set(inputs[:-1].unique().tolist()) == set(range(10))
    assert (inputs[-1] == 10).all()


def test_splits_differ_and_repeat():
    def draw(seed: int) -> list[torch.Tensor]:
        data = Data(Recall(10, 10), 3, seed)
        training = data.training(count=4, batch=4)
        epochs = [next(iter(next(training)))[1] for _ in range(2)]
        return [*epochs, data.held_out("validation", 4)[1], data.held_out("test", 4)[1]]

    first, again, other = draw(0), draw(0), draw(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    distinct = [tuple(part.flatten().tolist()) for part in [*first, *other]]
    assert len(set(distinct)) == 8


def test_epochs_cover_every_sequence_once():
    data = Data(Echo(10), 2, seed=0)
    epochs = data.training(count=10, batch=4)
    first, second = ([targets for _, targets in next(epochs)] for _ in range(2))
    assert [part.shape[1] for part in first] == [4, 4, 2]

    def rows(parts: list[torch.Tensor]) -> list[list]:
        return torch.cat(parts, 1).transpose(0, 1).flatten(1).tolist()

    assert rows(first) != rows(second)
    assert sorted(rows(first)) == sorted(rows(second))
    assert [targets.shape[1] for _, targets in next(Data(Recall(2, 3), 2, 0).training(10, 4))] == [4, 4, 2]


# Scores -----------------------------------------------------------------------------------------------------


def test_recall_baseline_is_what_uniform_logits_score():
    task = Recall(4, 7)
    _, targets = task.draw(5, 50, generator())
    baseline = task.baseline(5)
    assert baseline.loss == pytest.approx(task.loss(torch.zeros(4, 50, 7), targets).item())
    assert baseline.accuracy == pytest.approx(1 / 7)


def test_echo_baseline_is_what_the_best_constant_scores():
    task = Echo(10)
    _, targets = task.draw(100, 500, generator())
    constant = torch.full(targets.shape, 4.5)
    constant[-1] = 10
    baseline = task.baseline(100)
    assert round(baseline.loss, 2) == 8.17
    assert baseline.loss == pytest.approx(task.loss(constant, targets).item(), rel=0.01)
    assert baseline.accuracy == pytest.approx(task.accuracy(constant, targets).item(), abs=0.01)


def test_recall_scores_only_the_recalled_part():
    """The outputs that are scored change with the last S inputs' steps and with nothing after or instead of them."""
    task = Recall(3, 5)
    inputs, targets = task.draw(4, 2, generator())
    model = CopyModel("gru", task, hidden=6, layers=1)
    outputs = model(inputs.float(), len(targets))
    whole, _ = model.recurrent(inputs.float())
    assert torch.equal(outputs, model.decoder(whole)[-3:])
    expected = torch.stack([-outputs.log_softmax(-1)[s, b, targets[s, b]] for s in range(3) for b in range(2)]).mean()
    torch.testing.assert_close(task.loss(outputs, targets), expected)


def test_accuracy_counts_right_symbols():
    recall, targets = Recall(2, 3), torch.tensor([[0, 1], [2, 2]])
    outputs = torch.eye(3)[torch.tensor([[0, 1], [2, 0]])]
    assert recall.accuracy(outputs, targets).item() == 0.75
    echo, rows = Echo(3), torch.tensor([[[0, 1, 2, 2]], [[3, 3, 3, 3]]])
    assert echo.accuracy(rows + torch.tensor([0.4, -0.4, 0.6, 0]), rows).item() == 0.75
    assert echo.accuracy(rows * torch.tensor([[[1.0]], [[0.0]]]), rows).item() == 1  # the delimiter does not count


def test_answers_are_as_many_as_the_accuracy_counts():
    assert Recall(3, 5).answers(100) == 3
    assert Echo(10).answers(100) == 100 * 11


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


def record(accuracy: float, loss: float | None, cell: str = "lstm", length: int = 5, trial: int = 0) -> dict:
    """A trial's record with these results, over which the words are to be found."""
    epoch = {f"{part}_{name}": value for part in ("train", "held_out") for name, value in SCORES.items()}
    return {
        **{"cell": cell, "length": length, "trial": trial, "parameters": 7, "answers": 1000, "seconds": 90.0},
        **{"accuracy": accuracy, "loss": loss, "baseline": {"accuracy": 0.1, "loss": math.log(10)}},
        "extra": [{"extra": 2, "accuracy": accuracy, "loss": loss}],
        "epochs": [{**epoch, "seconds": 2.0, "seconds_per_step": 0.5}] * (trial + 2),
        "gradient_norms": {"before": [1e-6, 1e-3, 1.0], "after": [0.0, 0.5, 1.0]},
    }


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


def test_decades_of_the_gradient():
    assert decades([1e-6, 5.0, 1.0]) == pytest.approx(-6)
    assert decades([0.0, 1.0]) is decades([1.0, None]) is None


# Gradient norms ---------------------------------------------------------------------------------------------


def loss_with_moved_state(model, task, inputs, targets, t: int, delta: torch.Tensor) -> float:
    """The loss where the top layer's h_t, for its own output as for later steps, is moved by ``delta``."""
    outputs, state = [], None
    for step, x in enumerate(inputs.split(1)):
        _, state = model.recurrent(x, state)
        if step == t:
            hidden, *rest = state if isinstance(state, tuple) else (state,)
            hidden = hidden.clone()
            hidden[-1] += delta
            state = (hidden, *rest) if rest else hidden
        top = (state[0] if isinstance(state, tuple) else state)[-1]
        outputs.append(model.decoder(top))
    return task.loss(torch.stack(outputs[-len(targets) :]), targets).item()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_gradient_norms_agree_with_finite_differences(cell, layers):
    torch.manual_seed(0)
    task = Recall(2, 3)
    model = CopyModel(cell, task, hidden=4, layers=layers, dtype=torch.float64)
    inputs, targets = task.draw(2, 3, generator())
    inputs = inputs.double()
    norms = gradient_norms(model, task, inputs, targets)
    assert len(norms) == len(inputs)
    assert all(parameter.grad is None for parameter in model.parameters())
    epsilon = 1e-5
    for t, norm in enumerate(norms):
        expected = []
        for b in range(3):
            one_sequence = inputs[:, b : b + 1], targets[:, b : b + 1]
            differences = [
                loss_with_moved_state(model, task, *one_sequence, t, delta)
                - loss_with_moved_state(model, task, *one_sequence, t, -delta)
                for delta in epsilon * torch.eye(4, dtype=torch.float64)
            ]
            expected.append(math.hypot(*differences) / (2 * epsilon))
        assert norm == pytest.approx(np.mean(expected), rel=1e-5)


# Runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small finished run, what it printed, and its results."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.copy_task", *SMALL, "--out", str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return folder, done.stdout, json.loads((folder / "results.json").read_text())


def test_results_state_everything(finished):
    _, _, results = finished
    configuration = results["configuration"]
    assert configuration["cell"] == ["lstm", "multiplicative_gru"]
    assert configuration["backend"] == "cpu"  # what ran, not 'auto'
    assert {"protocol", "length", "symbols", "vocabulary", "trials", "lr", "clip", "seed", "dtype"} <= set(
        configuration
    )
    assert {"cpu", "gpu", "torch", "fused_rnn", "threads"} <= set(results["hardware"])
    keys = [(trial["length"], trial["cell"], trial["trial"]) for trial in results["trials"]]
    assert keys == [(n, cell, k) for n in (3, 5) for cell in configuration["cell"] for k in (0, 1)]
    for trial in results["trials"]:
        assert trial["seed"] == trial["trial"]
        assert 0 <= trial["accuracy"] <= 1
        assert trial["loss"] > 0
        assert trial["baseline"] == {"accuracy": pytest.approx(1 / 3), "loss": pytest.approx(math.log(3))}
        assert [part["extra"] for part in trial["extra"]] == [1, 4]
        assert len(trial["epochs"]) == 2
        assert all(epoch["train_loss"] > 0 and epoch["held_out_loss"] > 0 for epoch in trial["epochs"])
        assert all(epoch["seconds"] > epoch["seconds_per_step"] > 0 for epoch in trial["epochs"])
        assert all(len(norms) == trial["length"] + 5 for norms in trial["gradient_norms"].values())


def test_tables_pictures_and_words(finished):
    folder, printed, results = finished
    names = {"results.json", "report.md", "table.md", "table.json", "lengths.png", "longer.png"}
    names |= {f"{kind}-{length}.png" for kind in ("curves", "gradients") for length in (3, 5)}
    assert {path.name for path in folder.iterdir()} == names
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in names if name.endswith("png"))
    rows = json.loads((folder / "table.json").read_text())
    assert rows == summarise(results["trials"])
    of_lstm = [trial["accuracy"] for trial in results["trials"] if (trial["length"], trial["cell"]) == (3, "lstm")]
    assert rows[0]["accuracy"]["mean"] == pytest.approx(np.mean(of_lstm))
    table = (folder / "table.md").read_text().splitlines()
    assert len(table) == 2 + 2 * (1 + 2)
    assert table[2].startswith("| 3 | (memoryless model) | 33.3 | 1.099 |")
    assert len({line.count("|") for line in table}) == 1
    for row in rows:
        assert sentence(row, Recall(2, 3)) in printed
    assert printed.count("guessing has 33.3%") == len(results["trials"]) + len(rows)


def test_report_shows_all_of_a_run(finished):
    folder, _, results = finished
    text = (folder / "report.md").read_text()
    rows = summarise(results["trials"])
    assert all(f"- {sentence(row, Recall(2, 3))}." in text for row in rows)
    assert (folder / "table.md").read_text() in text
    shown = set(re.findall(r"!\[.*?\]\((.*?)\)", text))
    assert shown == {path.name for path in folder.iterdir() if path.suffix == ".png"}
    for part in ("configuration", "hardware"):
        assert all(f"| {name} | " in text for name in results[part])
    assert "Not finished" not in text


def test_report_is_made_of_a_results_file_alone(tmp_path, capsys):
    """Of trials that ended early, of another machine, and of a run that is not finished."""
    configuration = configuration_of(parse_options(["--cell", "lstm", "gru", "--length", "5", "9"]), "cuda")
    trials = [record(0.995, 0.02, trial=trial) for trial in range(3)]
    trials += [record(0.995, 0.02, length=9), record(0.1, 2.3, length=9, trial=1), record(0.1, None, "gru")]
    content = {"configuration": configuration, "hardware": {"cpu": "abacus"}, "trials": trials}
    (tmp_path / "results.json").write_text(json.dumps(content))
    command.main(["--report", "--out", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "| cpu | abacus |" in text
    assert "**Not finished: 6 of 12 trials so far.**" in text
    assert "right in every trial: LSTM 5 (3 ± 1 epochs and 1.5 ± 0.0 minutes a trial)." in text
    assert "| 5 | LSTM | -6.0 ± 0.0 | – |" in text
    printed = capsys.readouterr().out
    assert "GRU, length 5: diverged" in printed
    assert "LSTM 5 (3 ± 1 epochs" in printed
    assert json.loads((tmp_path / "results.json").read_text()) == content


def test_report_without_finished_trials_is_refused(tmp_path, capsys):
    assert "does not exist" in refusal(capsys, "--report", "--out", str(tmp_path))
    configuration = configuration_of(parse_options([]), "cpu")
    content = {"configuration": configuration, "hardware": {}, "trials": []}
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert "no finished trial" in refusal(capsys, "--report", "--out", str(tmp_path))


def test_interrupted_run_resumes_to_the_same_results(finished, tmp_path, monkeypatch, without_pictures):
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run_trial(*arguments)

    monkeypatch.setattr(command, "run_trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert len(json.loads((tmp_path / "results.json").read_text())["trials"]) == 3
    resumed = run(tmp_path, "--resume")
    assert len(calls) == 4 + 5
    assert without_times(resumed["trials"]) == without_times(finished[2]["trials"])


def test_killed_run_is_compared_to_the_same_results(finished, tmp_path, without_pictures):
    """A process that is killed between two trials leaves the finished one; --compare goes on by itself."""
    path = tmp_path / "results.json"
    started = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.copy_task", *SMALL, "--out", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while started.poll() is None and not (path.exists() and json.loads(path.read_text())["trials"]):
        time.sleep(0.002)
    started.kill()
    started.wait()
    before = json.loads(path.read_text())["trials"]
    resumed = run(tmp_path, "--compare")["trials"]
    assert 1 <= len(before) < len(resumed)
    assert resumed[: len(before)] == before
    assert without_times(resumed) == without_times(finished[2]["trials"])


def test_diverged_model_is_said_to_have_diverged(tmp_path, capsys, without_pictures):
    options = ("--protocol", "echo", "--cell", "rnn", "--length", "3", "--trials", "1", "--lr", "1e30")
    arguments = [*options, "--epochs", "3", "--hidden", "3", "--out", str(tmp_path)]
    command.main(arguments)
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["trials"][0]["loss"] is None
    assert "diverged" in capsys.readouterr().out


# Wrong input ------------------------------------------------------------------------------------------------


def refusal(capsys, *arguments: str) -> str:
    """Run the command, which must refuse; returns its one sentence."""
    with pytest.raises(SystemExit) as exit:
        run_command(lambda: command.main(list(arguments)))
    captured = capsys.readouterr()
    assert exit.value.code == 2
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--protocol", "recite"], "recite"),
        (["--length", "0"], "0"),
        (["--protocol", "echo", "--symbols", "5"], "--symbols 5"),
        (["--vocabulary", "1"], "--vocabulary 1"),
        (["--seed", "-1"], "-1"),
        (["--keep-bias", "nan"], "--keep-bias: must be a finite number or chrono, got nan"),
        (["--keep-bias", "much"], "got much"),
        (["--until", "1"], "--until"),
        (["--minutes", "0"], "--minutes"),
        (["--demo", "--longest"], "--longest"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(arguments, named, tmp_path, capsys):
    folder = tmp_path / "out"
    assert named in refusal(capsys, *arguments, "--out", str(folder))
    assert not folder.exists()


def test_results_are_not_overwritten(finished):
    folder, _, results = finished
    with pytest.raises(InputError, match="--resume"):
        run(folder)
    with pytest.raises(InputError, match=r"lr 0\.01, and this run has 0\.5"):
        run(folder, "--resume", "--lr", "0.5")
    assert json.loads((folder / "results.json").read_text()) == results


@pytest.mark.parametrize("content", ["", "[]", '{"configuration": 3}', '{"losses": []}'])
def test_foreign_file_is_not_resumed(content, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(InputError, match="holds no results of the copy task"):
        run(tmp_path, "--resume")
    assert path.read_text() == content


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run(tmp_path / "file" / "run")


# Memory -----------------------------------------------------------------------------------------------------


def test_what_cannot_fit_is_refused_with_the_estimate(tmp_path, capsys):
    folder = tmp_path / "out"
    line = refusal(capsys, "--length", "100", "10000000", "--cell", "lstm", "rnn", "--out", str(folder))
    assert "--length 10000000 with lstm needs about" in line
    needed, free = map(float, re.findall(r"([\d.]+) GiB", line))
    assert needed > free > 0
    assert not folder.exists()


def test_the_largest_trial_decides_what_fits(monkeypatch):
    options = parse_options(["--cell", "rnn", "lstm", "--length", "500", "100", "--extra"])
    task = task_of(options)
    needed = memory.trial_bytes(options, task, "lstm", 500, "cpu")["cpu"]
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed)
    memory.check_memory(options, task, "cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    with pytest.raises(InputError, match="--length 500 with lstm"):
        memory.check_memory(options, task, "cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)  # where nobody knows, nothing is refused
    memory.check_memory(options, task, "cpu")


def test_a_gpu_holds_the_training_and_the_cpu_the_sequences():
    task = Recall(10, 10)
    here, there = (
        memory.trial_bytes(parse_options(["--device", device]), task, "gru", 100, "cuda") for device in ("cpu", "cuda")
    )
    assert set(there) == {"cpu", "cuda"}
    assert here == {"cpu": sum(there.values())}
    assert there["cuda"] > there["cpu"] > 0


def test_every_size_counts():
    def needed(*arguments: str) -> int:
        options = parse_options(["--extra", "5", *arguments])
        return sum(memory.trial_bytes(options, task_of(options), "multiplicative_lstm", 20, "cpu").values())

    larger = ("--hidden", "500"), ("--layers", "2"), ("--batch", "64"), ("--held-out", "999"), ("--extra", "500")
    assert all(needed(*more) > needed() for more in [*larger, ("--dtype", "float64"), ("--symbols", "40")])
    assert needed("--protocol", "echo", "--sequences", "5000") > needed("--protocol", "echo")
    assert needed("--hidden", str(10**12)) > 10**24


def test_memory_left_in_a_container(tmp_path):
    assert memory.left_in_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.left_in_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\nfile 300\nactive_file 100\ninactive_file 50\n")
    assert memory.left_in_group(tmp_path) == 450


def test_estimate_is_what_a_trial_takes():
    """Growth of the process's peak within a factor of two, after a small trial has loaded all code."""
    script = """
from pathlib import Path
from benchmarks.copy_task.memory import trial_bytes
from benchmarks.copy_task.options import parse_options, task_of
from benchmarks.copy_task.train import run_trial
peaks = []
for length in (2, 200):
    options = parse_options(["--backend", "cpu", "--sequences", "32", "--held-out", "32", "--epochs", "1", "--extra"])
    task = task_of(options)
    run_trial(options, task, "multiplicative_gru", length, 0)
    lines = Path("/proc/self/status").read_text().splitlines()
    peaks.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")))
print(peaks[1] - peaks[0], trial_bytes(options, task, "multiplicative_gru", length, "cpu")["cpu"])
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    grown, estimate = map(int, done.stdout.split())
    assert 0.5 < estimate / grown < 2


# Options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_backend_reaches_the_cells(backend, tmp_path, monkeypatch, without_pictures):
    asked = []
    monkeypatch.setattr(
        train, "CopyModel", lambda *a, backend, **o: asked.append(backend) or CopyModel(*a, backend=backend, **o)
    )
    results = run(tmp_path, "--backend", backend, "--cell", "gru", "--length", "2", "--trials", "1")
    assert asked == [backend]
    assert results["configuration"]["backend"] == backend


def test_help_explains_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, value in vars(parse_options([])).items():
        assert f"--{name.replace('_', '-')}" in text
        if value is not None:
            assert f"(default: {value})" in text


@pytest.mark.parametrize(("option", "value"), [("--until", "0.4"), ("--minutes", "1e-9")])
def test_training_ends_early(option, value, tmp_path, capsys, without_pictures):
    arguments = ("--cell", "gru", "--length", "1", "2", "--trials", "1", "--epochs", "30", "--sequences", "60")
    results = run(tmp_path, *arguments, "--lr", "0.03", option, value)
    for trial in results["trials"]:
        epochs = trial["epochs"]
        if option == "--until":
            assert [epoch["held_out_accuracy"] > 0.4 for epoch in epochs] == [False] * (len(epochs) - 1) + [True]
            assert len(epochs) < 30
        else:
            assert len(epochs) == 1
    assert "100%" in capsys.readouterr().err.splitlines()[-1]  # the bar counts what was spared as no longer to do


def test_demo_is_a_preset_that_options_override():
    plain, demo = vars(parse_options([])), vars(parse_options(["--demo"]))
    assert {name for name in plain if plain[name] != demo[name]} <= {*DEMO, "demo", "out"}
    assert all(demo[name] == value for name, value in DEMO.items())
    assert parse_options(["--demo", "--symbols", "3"]).symbols == 3
    longest = parse_options(["--longest", "--cell", "lstm"])
    assert (longest.cell, longest.minutes, longest.length) == (["lstm"], 10, LONGEST["length"])
    echo = parse_options(["--demo", "--protocol", "echo"])
    assert echo.symbols is None
    assert echo.length == DEMO["length"]


def test_protocols_have_their_own_defaults():
    echo = parse_options(["--protocol", "echo"])
    assert (echo.lr, echo.epochs, echo.batch, echo.sequences, echo.held_out) == (0.01, 10, 32, 100, 100)
    recall = parse_options([])
    assert (recall.length, recall.symbols, recall.vocabulary) == ([100, 200, 500, 1000], 10, 10)
    assert (recall.hidden, recall.trials, recall.cell) == (128, 3, list(CELLS))
    assert set(PRESETS["recall"]) == set(PRESETS["echo"])


@pytest.mark.parametrize("cell", CELLS)
def test_keep_bias_shifts_one_gate(cell):
    def bias(keep_bias: float) -> torch.Tensor:
        torch.manual_seed(0)
        return CopyModel(cell, Recall(2, 3), 4, 2, keep_bias).recurrent.bias_ih_l1.detach()

    gates = {"rnn": [0.0], "lstm": [0.0, 3.0, 0.0, 0.0], "gru": [0.0, -3.0, 0.0]}[cell.split("_")[-1]]
    torch.testing.assert_close(bias(3.0) - bias(0.0), torch.tensor(gates).repeat_interleave(4))


@pytest.mark.parametrize("cell", CELLS)
def test_chrono_bias_spreads_over_the_delay(cell):
    """The gates keep a unit's state for 1 to delay - 1 steps, its share of the units growing evenly; see Tallec &
    Ollivier 2018."""
    torch.manual_seed(0)
    hidden, delay = 2000, 101
    bias = CopyModel(cell, Recall(2, 3), hidden, 2, "chrono", delay).recurrent.bias_ih_l1.detach().split(hidden)
    kind = cell.split("_")[-1]
    if kind == "rnn":
        assert bias[0].abs().max() < 0.1
        return
    keep = bias[1] if kind == "lstm" else -bias[1]
    steps = keep.exp().sort().values
    torch.testing.assert_close(steps, torch.linspace(1, delay - 1, hidden), rtol=0.1, atol=4.0)
    if kind == "lstm":
        torch.testing.assert_close(bias[0], -keep, rtol=0, atol=0.1)
        assert bias[2].abs().max() < 0.1


def test_delay_is_from_a_symbol_to_its_answer():
    inputs, targets = Recall(4, 8).draw(7, 1, generator())
    assert len(inputs) - len(targets) == Recall(4, 8).delay(7)
    assert Echo(10).delay(7) == 0
    assert torch.equal(chrono_bias(4, Echo(10).delay(7)), torch.zeros(4))  # nothing to remember, nothing to keep


@pytest.mark.parametrize("cell", ["gru", "multiplicative_gru"])
def test_keep_bias_keeps_the_state(cell):
    state = torch.full((2, 1, 4), 0.5)
    _, last = CopyModel(cell, Recall(2, 3), 4, 2, keep_bias=30.0).recurrent(torch.ones(5, 1, 5), state)
    torch.testing.assert_close(last, state)


# Learning ---------------------------------------------------------------------------------------------------

LEARNING = [
    *("--length", "3", "--symbols", "2", "--vocabulary", "4", "--hidden", "24"),
    *("--lr", "0.01", "--epochs", "4", "--sequences", "3200", "--extra"),
]


class Shuffled(Recall):
    """Recall whose targets belong to other sequences: there is nothing to learn."""

    def draw(self, length, count, generator):
        inputs, targets = super().draw(length, count, generator)
        return inputs, targets[:, torch.randperm(count, generator=generator)]


@pytest.mark.parametrize("cell", ["gru", "multiplicative_gru"])
def test_gated_cells_learn_to_recall(cell):
    trial = run_trial(parse_options(LEARNING), Recall(2, 4), cell, 3, 0)
    assert trial["accuracy"] > 0.9
    assert trial["loss"] < 0.3 * trial["baseline"]["loss"]
    assert trial["epochs"][-1]["held_out_loss"] < trial["epochs"][0]["train_loss"]


def test_no_cell_recalls_what_it_was_not_told():
    trial = run_trial(parse_options(LEARNING), Shuffled(2, 4), "gru", 3, 0)
    assert outcome(trial) == "chance"


def test_nothing_is_learned_without_steps_that_matter():
    trial = run_trial(parse_options([*LEARNING, "--lr", "1e-12"]), Recall(2, 4), "gru", 3, 0)
    assert outcome(trial) == "chance"
    assert trial["gradient_norms"]["after"] == pytest.approx(trial["gradient_norms"]["before"], rel=1e-3)
