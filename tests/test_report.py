"""Documents show what was measured, blocks and pictures alike; the README is short, and links lead somewhere."""

import json
import re
import subprocess
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import common, report, summary
from benchmarks.speed.cases import Case
from benchmarks.speed.plan import SHAPES

from .results import POINT, measured, results, us

DOCUMENTS = [
    path.relative_to(report.ROOT)
    for path in map(
        report.ROOT.joinpath,
        subprocess.check_output(
            ["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=report.ROOT, text=True
        ).split(),
    )
    if path.exists()
]
TRAINING = Case("lstm", SHAPES["a"], "training")
MACHINE = {**common.hardware(), "cpu": "A CPU", "cores": 2, "threads": [1, 2]}
SPEED = results("speed", measured(TRAINING, fused=12.5, torch=50.0), hardware=MACHINE)


def gpu(day: int, **us_per_step: float) -> dict:
    """Return the measurements of one point on a GPU."""
    case = measured(replace(POINT, mode="training"), **{name: us(time) for name, time in us_per_step.items()})
    machine = {**common.hardware(), "gpu": "NVIDIA A1"}
    return results("gpu", case, hardware=machine, date=f"2026-01-{day:02}", digests={"kernels": "0" * 64})


@pytest.mark.parametrize("kind", report.BLOCKS)
def test_the_report_says_what_has_not_been_measured(kind):
    said = r"\n\n.*(Not measured yet|[Nn]ot yet run on a GPU|No run has been recorded yet)\.\n\n"
    assert re.search(said, report.block(kind, []))


def test_pictures_are_drawn_beside_the_results_always_the_same(tmp_path):
    case = measured(TRAINING, memory={"fused": 3.0, "torch": 9.0}, fused=12.5, torch=50.0)
    ceilings = [{"threads": 1, "product_float32_tflops": 0.1, "copy_tb_per_s": 0.01}]
    common.write_json(tmp_path / "speed-resident.json", results("speed", case, ceilings=ceilings))
    stale = tmp_path / "speed-default-faster.svg"
    stale.write_text("of results that are gone")
    drawn = []
    for _ in range(2):
        report.draw(tmp_path)
        drawn.append({path.name: path.read_bytes() for path in tmp_path.glob("*.svg")})
    names = [f"speed-resident-{name}.svg" for name in ("faster", "memory", "floor")]
    assert drawn[0].keys() == {*names, "summary-training.svg"}
    assert drawn[0] == drawn[1]
    for picture in drawn[0].values():
        xml.etree.ElementTree.fromstring(picture)
        assert not re.search(rb"\d\.\d{3}", picture.split(b"<defs>", 1)[1])


def emptied(name: str) -> str:
    blocks = "".join(f"{report.begin(kind)}stale{report.end(kind)}\n" for kind in report.DOCUMENTS[name])
    return f"before\n{blocks}after\n"


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder with all documents, their blocks stale."""
    for name in report.DOCUMENTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(emptied(name))
    return tmp_path


def test_the_report_replaces_its_blocks_and_nothing_else(root):
    common.write_json(root / "results" / "speed-resident.json", SPEED)
    for _ in range(2):  # a second run finds what the first one wrote
        report.main(root, root / "results")
        for name, kinds in report.DOCUMENTS.items():
            blocks = [report.block(kind, [SPEED] if kind in ("speed", "summary") else []) for kind in kinds]
            assert (root / name).read_text() == "\n".join(["before", *blocks, "after\n"])


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in report.DOCUMENTS.items() for kind in kinds])
@pytest.mark.parametrize("text", ["", "{begin}", "{end}{begin}", "{begin}{end}{begin}{end}"])
def test_the_report_refuses_a_document_without_its_two_markers(text, name, kind, root):
    begin, end = report.begin(kind), report.end(kind)
    (root / name).write_text(emptied(name).replace(f"{begin}stale{end}", text.format(begin=begin, end=end)))
    with pytest.raises(common.InputError, match=f"{name} must have the line {begin} once"):
        report.main(root, root / "results")
    others = [other for other in report.DOCUMENTS if other != name]
    assert all((root / other).read_text() == emptied(other) for other in others), "nothing is written by halves"


def test_the_report_says_which_document_is_missing(root):
    (root / "benchmarks/README.md").unlink()
    with pytest.raises(common.InputError, match=r"there is no .*benchmarks/README.md to write the tables into"):
        report.main(root, root / "results")


def test_the_summary_takes_the_last_measurement_of_each_size_and_the_mean_of_all():
    two_threads = measured(TRAINING, threads=2, fused=10.0, torch=10.0)
    of_cpu = results("speed", *SPEED["cases"], two_threads, hardware=MACHINE)
    found = [of_cpu, gpu(5, cuda=2, torch=4, graphed=8), gpu(3, cuda=2, torch=40)]
    lines = summary.block(found).splitlines()
    assert "| training step | beside | CPU, float32 | A1, bfloat16 |" in lines
    assert "| LSTM | torch.nn.LSTM | **2.0×** (1.00 to 4.00) | **2.0×** (2.00 to 2.00) |" in lines
    assert "| RNN | torch.nn.RNN | – | – |" in lines
    assert "A CPU, 2 cores (2026-01-02) and on NVIDIA A1 (2026-01-03 to 2026-01-05, with kernels" in lines[-1]


@pytest.mark.parametrize("times", [{}, {"cuda": 2}, {"torch": 2}, {"cuda": 2, "graphed": 3}], ids=str)
def test_the_summary_shows_no_ratio_where_one_of_the_two_has_no_time(times):
    assert summary.block([gpu(5, **times)]) == common.NOT_MEASURED


@pytest.mark.parametrize("name", report.DOCUMENTS)
def test_documents_show_the_results_that_are_there(name):
    text = (report.ROOT / name).read_text()
    assert report.insert(name, text) == text, "run 'python -m benchmarks.report'"


def test_documents_show_every_picture_once():
    shown = [
        (report.ROOT / name).parent.joinpath(target).resolve()
        for name in report.DOCUMENTS
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", (report.ROOT / name).read_text())
    ]
    assert sorted(shown) == sorted(report.RESULTS.glob("*.svg")), "run 'python -m benchmarks.report'"


def test_the_readme_is_short():
    text = (report.ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert len(text.encode()) <= 14 * 1024


def test_the_example_runs(capsys):
    (example,) = re.findall(r"^```python\n(.*?)^```", (report.ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    exec(example, {})
    assert "encoder" in capsys.readouterr().out


def anchors(text: str) -> set[str]:
    """Return GitHub's anchors of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document):
    text = (report.ROOT / document).read_text()
    for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = (report.ROOT / document).parent / path if path else report.ROOT / document
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text()), target


def test_results_are_as_they_were_written():
    """Each line has one record."""
    paths = list(report.RESULTS.glob("*.json"))
    assert paths
    for path in paths:
        assert path.read_text() == common.json_lines(json.loads(path.read_text())) + "\n", path.name
