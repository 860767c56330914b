"""The speed harness and its report: what is timed is right, results are whole, the README shows what was measured."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import common, report
from benchmarks.speed import __main__ as speed
from benchmarks.speed.cases import CELLS, SHAPES, Case, Plan, Shape, candidates, fused, make_step
from benchmarks.speed.check import build, mistake
from benchmarks.speed.timing import measure_case

SMALL = Shape("small", batch=3, input_size=5, hidden_size=7, steps=6)
REFERENCE = Plan(backend="reference", warm_up=1, rounds=3)


@pytest.mark.parametrize("mode", ["training", "forward"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_candidate_computes_what_the_reference_does(cell, mode):
    case = Case(cell, SMALL, mode)
    for candidate in candidates(cell, "reference"):
        assert mistake(candidate, build(candidate, SMALL), case) is None, candidate.title


def test_a_training_step_differentiates_input_and_every_parameter():
    candidate = fused("multiplicative_lstm", "reference")
    results = make_step(build(candidate, SMALL), Case("multiplicative_lstm", SMALL, "training"))()
    parameters = {f"{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "weight_mih", "weight_mhh", "bias_m")}
    assert set(results) == {"output", "gradient of input", *(f"gradient of {name}" for name in parameters)}


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_wrong_candidate_is_not_timed(monkeypatch, factor):
    def spoiled(cell, backend):
        class Spoiled(torch.nn.LSTM):
            def forward(self, input):
                output, state = super().forward(input)
                return factor * output, state

        return fused(cell, backend), replace(candidates(cell, backend)[1], build=Spoiled)

    monkeypatch.setattr("benchmarks.speed.timing.candidates", spoiled)
    right, wrong = measure_case(Case("lstm", SMALL, "forward"), REFERENCE)
    assert right["median_ms"] > 0
    assert right["spread_ms"] >= 0
    assert "output is off by" in wrong["wrong"]
    assert "median_ms" not in wrong


def test_a_quick_run_writes_results_that_the_report_can_show(tmp_path):
    path = tmp_path / "speed.json"
    chosen = ["--cells", "multiplicative_gru", "--shapes", "a", "d", "--threads", "1"]
    speed.main([*chosen, "--quick", "--backend", "reference", "--out", str(path)])
    result = json.loads(path.read_text())
    assert {(r["shape"], r["mode"], r["candidate"]) for r in result["times"]} == {
        *(("a", mode, name) for mode in ("training", "forward") for name in ("fused", "eager")),
        *(("d", "forward", name) for name in ("fused", "eager")),
    }
    assert all(record["peak_mib"] >= 0 for record in result["memory"])
    assert result["hardware"]["torch"] == torch.__version__
    assert result["allocator"]["environment"]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert "| MultiplicativeGRU | 1 | eager loop |" in report.block("speed", [result])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cells", "elman"], "invalid choice: 'elman'"),
        (["--shapes", "z"], "invalid choice: 'z'"),
        (["--rounds", "0"], "must be at least 1"),
        (["--backend", "cuda"], "cannot run here"),
        (["--backend", "reference", "--threads", "100000"], "--threads 100000 is too many"),
    ],
    ids=["cell", "shape", "rounds", "backend", "threads"],
)
def test_wrong_input_ends_with_one_sentence_and_status_2(capsys, arguments, complaint):
    with pytest.raises(SystemExit) as stopped:
        common.run_command(lambda: speed.main(arguments))
    assert stopped.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert complaint in sentence


def test_only_the_whole_table_goes_where_the_report_looks():
    folders = {}
    for name, arguments in {"whole": [], "part": ["--cells", "lstm"], "quick": ["--quick"]}.items():
        options = speed.parse([*arguments, "--backend", "cpu"])
        plan = replace(Plan(), cells=tuple(options.cells), most_steps=8 if options.quick else None)
        folders[name] = speed.output_path(options, plan).parent
    assert folders == {"whole": report.RESULTS, "part": speed.ROOT / "runs", "quick": speed.ROOT / "runs"}


# The report -------------------------------------------------------------------------------------------------


def record(candidate: str, **values) -> dict:
    title = {"fused": "fused_rnn", "torch": "torch.nn.LSTM"}[candidate]
    return {
        "cell": "lstm",
        "shape": "a",
        "mode": "training",
        "threads": 1,
        "candidate": candidate,
        "title": title,
    } | values


def example(**values) -> dict:
    shape = {name: getattr(SHAPES["a"], name) for name in Shape.__dataclass_fields__}
    times = [record("fused", median_ms=12.5, spread_ms=0.5), record("torch", median_ms=50.0, spread_ms=1.0)]
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "hardware": common.hardware(),
        "allocator": {"name": "resident"},
        "plan": {"backend": "cpu", "rounds": 15, "warm_up": 5},
        "shapes": {"a": shape},
        "times": times,
        "memory": [],
        **values,
    }


def test_the_report_divides_medians():
    row = "| LSTM | 1 | torch.nn.LSTM | 12.5 / 50.0 = **4.00×** |"
    assert row in report.block("speed", [example()]).splitlines()


def test_the_report_says_wrong_where_a_candidate_was_wrong():
    times = [record("fused", wrong="output is off"), record("torch", median_ms=50.0, spread_ms=1.0)]
    assert "| LSTM | 1 | torch.nn.LSTM | wrong |" in report.block("speed", [example(times=times)]).splitlines()


def empty_readme() -> str:
    return "before\n" + "".join(f"{report.begin(kind)}stale{report.end(kind)}\n" for kind in report.BLOCKS) + "after\n"


def test_the_report_replaces_its_blocks_and_nothing_else(tmp_path):
    readme, folder = tmp_path / "README.md", tmp_path / "results"
    readme.write_text(empty_readme())
    common.write_json(folder / "speed-resident.json", example())
    blocks = [report.block(kind, [example()] if kind == "speed" else []) for kind in report.BLOCKS]
    for _ in range(2):  # a second run finds what the first one wrote
        report.main(readme, folder)
        assert readme.read_text() == "\n".join(["before", *blocks, "after\n"])


@pytest.mark.parametrize("kind", report.BLOCKS)
@pytest.mark.parametrize("text", ["", "{begin}", "{end}{begin}", "{begin}{end}{begin}{end}"])
def test_the_report_refuses_a_readme_without_its_two_markers(text, kind, tmp_path):
    begin, end = report.begin(kind), report.end(kind)
    readme = empty_readme().replace(f"{begin}stale{end}", text.format(begin=begin, end=end))
    with pytest.raises(common.InputError, match=f"README must have the line {begin} once"):
        report.insert(readme, tmp_path)


def test_the_readme_shows_the_results_that_are_there():
    readme = report.README.read_text()
    assert report.insert(readme) == readme, "run 'python -m benchmarks.report'"
