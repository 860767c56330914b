"""The speed harness and its report: what is timed is right, results are whole, the README shows what was measured."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from benchmarks import common, report
from benchmarks.speed import __main__ as speed
from benchmarks.speed import child
from benchmarks.speed.candidates import candidates, compiled, fused
from benchmarks.speed.cases import CELLS, SHAPES, STEP_CELLS, STEP_MODES, Case, Plan, Shape, random_operands
from benchmarks.speed.check import Bench
from benchmarks.speed.timing import measure_case

SMALL = Shape("small", batch=3, input_size=5, hidden_size=7, steps=6)
REFERENCE = Plan(backend="reference", warm_up=1, rounds=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["training", "forward", "stream"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_candidate_computes_what_the_reference_does(monkeypatch, cell, mode, dtype):
    monkeypatch.setattr("benchmarks.speed.candidates.COMPILER", "eager")
    bench, case = Bench(SMALL, dtype), Case(cell, SMALL, mode)
    found = candidates(cell, "reference", all_rivals=True)
    assert [candidate.name for candidate in found][-3:] == ["eager", "script", "compiled"]
    for candidate in found:
        error = bench.error(candidate, bench.ready(candidate, case))
        assert not error.wrong, f"{candidate.title}: {error}"


@pytest.mark.parametrize("mode", STEP_MODES)
@pytest.mark.parametrize("cell", STEP_CELLS)
def test_single_steps_compute_what_the_reference_does(cell, mode):
    bench, case = Bench(SMALL, torch.float32), Case(cell, SMALL, mode)
    found = candidates(cell, "reference")
    assert [candidate.name for candidate in found] == ["fused", "torch"]
    for candidate in found:
        ready = bench.ready(candidate, case)
        error = bench.error(candidate, ready)
        assert not error.wrong, f"{candidate.title}: {error}"
        parameters = {f"gradient of {name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        gradients = {"gradient of input", *parameters} if mode == "stream_training" else set()
        assert set(ready.run()) == {"output", *gradients}


@pytest.mark.parametrize("cell", ["lstm", "lstm_cell"])
def test_every_step_of_a_stream_is_a_call(cell):
    """Which records a gradient unless the mode is without them."""
    bench = Bench(SMALL, torch.float32)
    for mode in STEP_MODES:
        for candidate in candidates(cell, "reference"):
            ready = bench.ready(candidate, Case(cell, SMALL, mode))
            module, calls = ready.module.cell if cell == "lstm_cell" else ready.module, []
            module.register_forward_hook(lambda *_, calls=calls: calls.append(torch.is_grad_enabled()))
            ready.run()
            assert calls == [mode != "stream"] * SMALL.steps


@pytest.mark.parametrize(("steps", "at_once"), [(1, 1), (7, 7), (32, 16), (58, 2)])
def test_the_compiled_loop_takes_few_steps_at_a_time(monkeypatch, steps, at_once):
    monkeypatch.setattr("benchmarks.speed.candidates.COMPILER", "eager")
    shape = replace(SMALL, steps=steps)
    bench, candidate = Bench(shape, torch.float32), compiled("lstm")
    ready = bench.ready(candidate, Case("lstm", shape, "forward"))
    lengths = []
    loop = ready.module.loop
    ready.module.loop = lambda part, *rest: (lengths.append(len(part)), loop(part, *rest))[1]
    assert not bench.error(candidate, ready).wrong
    assert sum(lengths) == steps
    assert set(lengths) == {at_once}


def test_a_training_step_differentiates_input_and_every_parameter():
    candidate = fused("multiplicative_lstm", "reference")
    bench = Bench(SMALL, torch.float32)
    results = bench.ready(candidate, Case("multiplicative_lstm", SMALL, "training")).run()
    parameters = {f"{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "weight_mih", "weight_mhh", "bias_m")}
    assert set(results) == {"output", "gradient of input", *(f"gradient of {name}" for name in parameters)}


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_wrong_candidate_is_not_timed(monkeypatch, factor):
    def spoiled(cell, backend, all_rivals):
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


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "background"])
def test_ctrl_c_ends_a_process_that_measures_unless_it_was_started_to_ignore_it(monkeypatch, capsys, before):
    monkeypatch.setattr(sys, "argv", ["timing", "1", json.dumps(asdict(REFERENCE))])
    outside = signal.signal(signal.SIGINT, before)
    try:
        child.serve(lambda _: [{"ignored": signal.getsignal(signal.SIGINT) == signal.SIG_IGN}], Plan)
        assert signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGINT, outside)
    assert json.loads(capsys.readouterr().out) == {"ignored": before == signal.SIG_IGN}


def test_a_quick_run_writes_results_that_the_report_can_show(tmp_path):
    path = tmp_path / "speed-quick.json"
    chosen = ["--cells", "multiplicative_gru", "--shapes", "a", "d", "--threads", "1"]
    speed.main([*chosen, "--quick", "--backend", "reference", "--out", str(path)])
    result = json.loads(path.read_text())
    assert {(r["shape"], r["mode"], r["candidate"]) for r in result["times"]} == {
        *(("a", mode, name) for mode in ("training", "forward") for name in ("fused", "eager")),
        *(("d", mode, name) for mode in ("forward", "stream") for name in ("fused", "eager")),
    }
    assert all(record["peak_mib"] >= 0 for record in result["memory"])
    assert result["hardware"]["torch"] == torch.__version__
    assert result["allocator"]["environment"]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    (ceilings,) = result["ceilings"]
    assert ceilings["threads"] == 1
    assert ceilings["product_float32_tflops"] > 0
    assert "| MultiplicativeGRU | 1 | eager loop |" in report.block("speed", report.load_results("speed", tmp_path))


def test_a_quick_run_of_single_steps_writes_results_that_the_report_can_show(tmp_path):
    path = tmp_path / "steps-quick.json"
    speed.main(["--single-steps", "--shapes", "H64B8", "--quick", "--backend", "reference", "--out", str(path)])
    result = json.loads(path.read_text())
    assert {(r["cell"], r["mode"], r["candidate"]) for r in result["times"]} == {
        (cell, mode, name) for cell in STEP_CELLS for mode in STEP_MODES for name in ("fused", "torch")
    }
    assert (result["ceilings"], result["memory"], result["hardware"]["threads"]) == ([], [], [1])
    shown = report.block("steps", report.load_results("steps", tmp_path))
    assert shown.count("| LSTMCell | 1 | torch.nn.LSTMCell |") == len(STEP_MODES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--cells", "lstm_cell"], "--cells lstm_cell goes only with --single-steps: here are rnn, lstm,"),
     (["--single-steps", "--shapes", "a"], "--shapes a does not go with --single-steps: here are H64B1, H64B8,")],
)  # fmt: skip
def test_what_does_not_go_with_single_steps(arguments, said):
    with pytest.raises(common.InputError, match=re.escape(said)):
        speed.main(arguments)


def test_the_suite_runs_what_is_selected_and_says_why_the_rest_cannot(tmp_path):
    selected = "multiplicative_gru and eager and -d- and float32-forward or haste and H128B16"
    command = [sys.executable, "-m", "pytest", "benchmarks", "-rs", "--benchmark-enable", "-p", "no:cacheprovider"]
    path = tmp_path / "benchmark.json"
    command += ["-k", selected, f"--benchmark-json={path}"]
    # pytest-benchmark measures nothing where it finds itself among the processes of pytest-xdist
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment["OMP_NUM_THREADS"] = "1"
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=report.README.parent, env=environment
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (found,) = json.loads(path.read_text())["benchmarks"]
    assert found["param"] == "multiplicative_gru-eager-on_cpu-d-float32-forward"
    assert found["stats"]["rounds"] == Plan.rounds
    assert found["extra_info"]["threads"] == 1
    if not torch.cuda.is_available():
        assert "no CUDA device" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cells", "elman"], "invalid choice: 'elman'"),
        (["--dtype", "float64"], "invalid choice: 'float64'"),
        (["--shapes", "z"], "invalid choice: 'z'"),
        (["--rounds", "0"], "must be at least 1"),
        (["--backend", "cuda"], "cannot run here"),
        (["--backend", "reference", "--threads", "100000"], "--threads 100000 is too many"),
    ],
    ids=["cell", "dtype", "shape", "rounds", "backend", "threads"],
)
def test_wrong_input_ends_with_one_sentence_and_status_2(capsys, arguments, complaint):
    with pytest.raises(SystemExit) as stopped:
        common.run_command(lambda: speed.main(arguments))
    assert stopped.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert complaint in sentence


def test_only_the_whole_table_goes_where_the_report_looks():
    paths = {}
    chosen = {"whole": [], "rivals": ["--all-rivals"], "bfloat16": ["--dtype", "bfloat16"]}
    chosen |= {"part": ["--cells", "lstm"], "quick": ["--quick"]}
    for name, arguments in chosen.items():
        options = speed.parse([*arguments, "--backend", "reference"])
        plan = replace(speed.plan_from(options), backend=Plan.backend)
        paths[name] = speed.output_path(options, plan)
    assert paths == {
        "whole": report.RESULTS / "speed-resident.json",
        "rivals": report.RESULTS / "rivals-resident.json",
        "bfloat16": report.RESULTS / "speed-resident-bfloat16.json",
        "part": speed.ROOT / "runs" / "speed-resident.json",
        "quick": speed.ROOT / "runs" / "speed-resident.json",
    }


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
        "file": "speed-resident",
        "date": "2026-01-02T03:04:05+00:00",
        "hardware": {**common.hardware(), "threads": [1]},
        "allocator": {"name": "resident"},
        "plan": {"cells": ["lstm"], "backend": "cpu", "rounds": 15, "warm_up": 5},
        "shapes": {"a": shape},
        "times": times,
        "memory": [],
        **values,
    }


def test_the_report_divides_medians():
    row = "| LSTM | 1 | torch.nn.LSTM | 12.5 / 50.0 = **4.00×** |"
    assert row in report.block("speed", [example()]).splitlines()


def test_the_report_begins_with_the_least_and_the_greatest_ratio():
    slower = [{**record(name, median_ms=ms, spread_ms=1.0), "threads": 2} for name, ms in (("fused", 10), ("torch", 9))]
    memory = [record("fused", peak_mib=3.0), record("torch", peak_mib=9.0)]
    lines = report.block("speed", [example(times=[*example()["times"], *slower], memory=memory)]).splitlines()
    assert "| cell | compared with | training | memory, training |" in lines
    assert "| LSTM | torch.nn.LSTM | 0.90 to 4.00× | 3.00× |" in lines


def test_a_gradient_of_the_last_output_alone_has_a_table_of_its_own():
    shape = replace(SMALL, last_only=True)
    input, d_output = random_operands(shape, torch.float32)
    assert input.all()
    assert not d_output[:-1].any()
    assert d_output[-1].all()
    shapes = {"a": asdict(SHAPES["a"]), "e": asdict(SHAPES["e"])}
    last = [{**record(name, median_ms=ms, spread_ms=1.0), "shape": "e"} for name, ms in (("fused", 10), ("torch", 90))]
    lines = report.block("speed", [example(times=[*example()["times"], *last], shapes=shapes)]).splitlines()
    assert "| cell | compared with | training | training from the last output |" in lines
    assert "| LSTM | torch.nn.LSTM | 4.00× | 9.00× |" in lines
    assert {"| cell | threads | other | (a) |", "| cell | threads | other | (e) |"} <= set(lines)


def test_the_report_says_wrong_where_a_candidate_was_wrong():
    times = [record("fused", wrong="output is off"), record("torch", median_ms=50.0, spread_ms=1.0)]
    lines = report.block("speed", [example(times=times)]).splitlines()
    assert "| LSTM | torch.nn.LSTM | wrong |" in lines
    assert "| LSTM | 1 | torch.nn.LSTM | wrong |" in lines


def test_the_report_sets_times_beside_the_floor():
    found = {"threads": 1, "product_float32_tflops": 0.1, "copy_tb_per_s": 0.01}
    text = report.block("speed", [example(ceilings=[found])])
    flops = 6 * 32 * 200 * 512 * (11 + 128)
    row = f"| LSTM | 1 | torch.nn.LSTM | {flops / 0.1e9 / 12.5:.0%} / {flops / 0.1e9 / 50:.0%} |"
    assert row in text.splitlines()
    assert "1: products at 100 GFLOP/s, copies at 10.0 GB/s" in text
    assert "](benchmarks/results/speed-resident-floor.svg)" in text
    assert "floor" not in report.block("speed", [example()])  # results from before ceilings were measured


def test_the_report_shows_all_rivals_as_multiples_of_the_fused_time():
    script = {**record("torch", median_ms=8.0), "candidate": "script", "title": "TorchScript"}
    wrong = {**record("torch", wrong="output is off"), "candidate": "compiled", "title": "torch.compile"}
    text = report.block("rivals", [example(times=[*example()["times"], script, wrong])])
    assert "| | threads | fused | torch.nn | TorchScript | torch.compile |" in text.splitlines()
    assert "| LSTM, (a) training | 1 | 12.5 | 50.0 = **4.00×** | 8.00 = **0.64×** | wrong |" in text.splitlines()


@pytest.mark.parametrize("kind", ["speed", "rivals", "scaling", "fills", "resets"])
def test_the_report_says_what_has_not_been_measured(kind):
    assert "Not measured yet." in report.block(kind, [])


def test_pictures_are_drawn_beside_the_results_always_the_same(tmp_path):
    memory = [{**record("fused", peak_mib=3.0)}, {**record("torch", peak_mib=9.0)}]
    ceilings = [{"threads": 1, "product_float32_tflops": 0.1, "copy_tb_per_s": 0.01}]
    common.write_json(tmp_path / "speed-resident.json", example(memory=memory, ceilings=ceilings))
    stale = tmp_path / "speed-default-faster.svg"
    stale.write_text("of results that are gone")
    drawn = []
    for _ in range(2):
        report.draw(tmp_path)
        drawn.append({path.name: path.read_bytes() for path in tmp_path.glob("*.svg")})
    assert drawn[0].keys() == {f"speed-resident-{name}.svg" for name in ("faster", "memory", "floor")}
    assert drawn[0] == drawn[1]


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


def test_the_readme_shows_the_pictures_that_are_there():
    shown = set(re.findall(r"\]\((benchmarks/results/[^)]+\.svg)\)", report.README.read_text()))
    there = {str(path.relative_to(speed.ROOT)) for path in report.RESULTS.glob("*.svg")}
    assert shown == there, "run 'python -m benchmarks.report'"
    assert there


RECORDS = [{"cell": "lstm", "times": [float(i) for i in range(100)]} for _ in range(3)]


def test_results_have_a_record_in_each_line(tmp_path):
    content = {"date": "today", "plan": {"cells": ["lstm"]}, "points": RECORDS, "long": [{"all": RECORDS * 3}]}
    common.write_json(tmp_path / "results.json", content)
    written = (tmp_path / "results.json").read_text()
    assert json.loads(written) == content
    lines = [line.strip(" ,") for line in written.splitlines()]
    assert '"plan": {"cells": ["lstm"]}' in lines
    assert lines.count(json.dumps(RECORDS[0])) == 3 + 9  # also where a record of records is too long for a line
    assert len(lines) == 24


@pytest.mark.parametrize("content", [[], {}, None, [[1, 2], []], {1: {"a": RECORDS[0]}, "b": "x" * 200}], ids=str)
def test_results_are_json_whatever_they_are(tmp_path, content):
    common.write_json(tmp_path / "results.json", content)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(content))
