"""``python -m benchmarks.report``: write measured results into README.md and the READMEs of benchmarks, and draw them.

Each kind of results has a block between two markers in one of these documents, and files in benchmarks/results/ whose
names begin with the kind; the pictures are beside them. Every number, name and date of a block comes from these files,
and a test checks that.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import common, pictures, summary
from benchmarks.copy_task import published as copy_task
from benchmarks.gpu import streams
from benchmarks.gpu.choice import report as choice
from benchmarks.gpu.machine import other_kernels
from benchmarks.gpu.micro import report as micro
from benchmarks.host import report as host
from benchmarks.language_model import published as language_model
from benchmarks.speed import RESULTS, ROOT
from benchmarks.speed import pictures as speed_pictures
from benchmarks.speed.report import gpu, scaling, sequences
from benchmarks.speed.report import tables as speed

Block = Callable[[list[dict]], str]
DOCUMENTS: dict[str, dict[str, Block]] = {  # the blocks of each document, by kind
    "README.md": {"summary": summary.block},
    "benchmarks/README.md": {
        "speed": speed.block,
        "steps": speed.steps_block,
        "rivals": speed.rivals_block,
        "scaling": scaling.block,
        "fills": sequences.fills_block,
        "resets": sequences.resets_block,
        "gpu": gpu.block,
        "choice": choice.block,
        "streams": streams.block,
        "micro": micro.block,
        "host": host.block,
    },
    "benchmarks/copy_task/README.md": {"copy": copy_task.block},
    "benchmarks/language_model/README.md": {"language_model": language_model.block},
}
BLOCKS = {kind: block for blocks in DOCUMENTS.values() for kind, block in blocks.items()}
SOURCES = {"summary": ("speed", "gpu")}  # the results of blocks that show other kinds
PICTURES: dict[str, Callable[[dict], list[pictures.Picture]]] = {
    "speed": speed_pictures.pictures,
    "scaling": speed_pictures.scaling_pictures,
    "gpu": speed_pictures.gpu_pictures,
}
OTHER_KERNELS: dict[str, Callable[[dict], bool]] = {"gpu": other_kernels, "choice": choice.other_kernels}


def load_results(kind: str, folder: Path = RESULTS) -> list[dict]:
    """Load every file of results of a kind with its name, in a fixed order; none if nothing has been measured yet."""
    paths = sorted(folder.glob(f"{kind}-*.json"), reverse=True)
    return [{**json.loads(path.read_text()), "file": path.stem} for path in paths]


def results_of(kind: str, folder: Path = RESULTS) -> list[dict]:
    """Load the results that the block of a kind shows."""
    return [result for source in SOURCES.get(kind, (kind,)) for result in load_results(source, folder)]


def block(kind: str, results: list[dict]) -> str:
    """Make the block of a kind, with its markers."""
    return "\n\n".join([begin(kind), BLOCKS[kind](results), end(kind)])


def begin(kind: str) -> str:
    return f"<!-- {kind}:begin -->"


def end(kind: str) -> str:
    return f"<!-- {kind}:end -->"


def insert(name: str, text: str, folder: Path = RESULTS) -> str:
    """Replace the blocks of a document; raise InputError unless their markers are there once, in order."""
    for kind in DOCUMENTS[name]:
        pattern = re.compile(f"{begin(kind)}.*?{end(kind)}", re.DOTALL)
        if len(pattern.findall(text)) != 1 or text.count(begin(kind)) != 1 or text.count(end(kind)) != 1:
            raise common.InputError(f"{name} must have the line {begin(kind)} once, and after it {end(kind)} once")
        made = block(kind, results_of(kind, folder))
        text = pattern.sub(lambda _, made=made: made, text)
    return text


def draw(folder: Path = RESULTS) -> None:
    """Draw the pictures of all files of results beside them, and remove those of results that no longer exist."""
    drawn = {
        path
        for kind, of in PICTURES.items()
        for result in load_results(kind, folder)
        for path in pictures.draw(of(result), result, folder)
    }
    drawn |= set(pictures.draw(summary.pictures(results_of("summary", folder)), summary.NAMED, folder))
    for stale in set(folder.glob("*.svg")) - drawn:
        stale.unlink()


def main(root: Path = ROOT, folder: Path = RESULTS) -> None:
    if missing := [name for name in DOCUMENTS if not (root / name).exists()]:
        raise common.InputError(f"there is no {root / missing[0]} to write the tables into")
    texts = {name: insert(name, (root / name).read_text(), folder) for name in DOCUMENTS}
    draw(folder)
    for name, text in texts.items():
        with common.replacing(root / name) as partial_path:
            partial_path.write_text(text)
    print(f"wrote the tables of the result files in {folder} into {', '.join(texts)}, and drew their pictures")
    for kind, others in OTHER_KERNELS.items():
        for result in filter(others, load_results(kind, folder)):
            print(f"{result['file']}.json was measured with other kernels than those here, and the table says so")


def command(arguments: list[str] | None = None) -> None:
    common.Parser(prog="python -m benchmarks.report", description=__doc__).parse_args(arguments)
    main()


if __name__ == "__main__":
    common.run_command(command)
