"""Files of results: the reports read what the files say."""

from dataclasses import replace

import pytest

from benchmarks.speed.cases import Case, Shape
from benchmarks.speed.plan import episodic, filled, sized
from benchmarks.speed.records import Results
from benchmarks.speed.report import gpu as gpu_report

from .results import POINT, measured, results


@pytest.mark.parametrize("shape", [filled("10 %"), episodic("0 %"), sized(512, 3, 9, ragged=True)], ids=str)
def test_a_file_is_read_as_it_was_written(shape):
    case = measured(Case("lstm", shape, "training", group="main"), packed=1.0, torch="is off")
    (found,) = Results(results("fills", case)).cases
    assert found.case.record == {name: case[name] for name in found.case.record}
    assert found.case.shape == replace(shape, modes=Shape.modes)
    assert (found.ms("packed"), found.ms("torch"), found.problem("time", "torch")) == (1.0, None, "wrong")
    assert Results(results("fills", case)).command == "python -m it"


def test_a_skipped_case_says_why():
    (found,) = Results(results("gpu", {**POINT.record, "threads": 1, "skipped": "no time"})).cases
    assert (found.skipped, found.failed, found.times, found.memory) == ("no time", "", {}, {})


def test_times_are_read_by_the_step_and_memory_in_mib_also_of_kernels_alone():
    case = measured(POINT, {"cuda": 7.5}, cuda=2.345, torch={"failed": "no memory"})
    case["kernels_us_per_step"] = {"forward": 1.5, "backward": 2.25, "prepare": 0.01, "other": 0.3}
    (found,) = Results(results("gpu", case)).cases
    assert (found.ms("cuda"), found.quantity("us", "cuda")) == (2.345, pytest.approx(2345 / 256))
    assert (found.quantity("memory", "cuda"), found.quantity("memory", "torch"), found.ms("torch")) == (7.5, None, None)
    assert found.problem("time", "torch") == "failed"
    assert "| LSTM | bfloat16 | H=512 B=64 T=256 | 1.50 | 2.25 | 0.01 | 0.30 |" in gpu_report.kernels([found])


def test_shares_are_of_the_floor_by_the_ceilings_with_so_many_threads():
    case = measured(POINT, threads=2, cuda=2.5)
    ceilings = [{"threads": 2, "product_bfloat16_tflops": 1.0, "copy_tb_per_s": 1.0}]
    found = Results(results("speed", case, ceilings=ceilings))
    assert found.shares(found.cases[0]) == {"cuda": found.floor_ms(found.cases[0]) / 2.5}
    other = Results(results("speed", {**case, "threads": 1}, ceilings=ceilings))
    assert other.shares(other.cases[0]) == {}
