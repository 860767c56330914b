"""``python -m benchmarks.report``: write what was measured into README.md, and draw its pictures.

Each kind of results has a block between two markers there, and files in benchmarks/results/ whose names begin with the
kind; the pictures lie beside them. Every number, name and date of a block comes from these files; a test checks that
the blocks are those that they give.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import common, pictures
from benchmarks.copy_task import published as copy_task
from benchmarks.fills import report as fills
from benchmarks.gpu import pictures as gpu_pictures
from benchmarks.gpu import report as gpu
from benchmarks.gpu.choice import report as choice
from benchmarks.gpu.machine import other_kernels
from benchmarks.gpu.micro import report as micro
from benchmarks.language_model import published as language_model
from benchmarks.resets import report as resets
from benchmarks.scaling import pictures as scaling_pictures
from benchmarks.scaling import report as scaling
from benchmarks.speed import RESULTS, ROOT
from benchmarks.speed import pictures as speed_pictures
from benchmarks.speed import report as speed

README = ROOT / "README.md"
BLOCKS: dict[str, Callable[[list[dict]], str]] = {  # by kind
    "copy": copy_task.block,
    "language_model": language_model.block,
    "speed": speed.block,
    "steps": speed.steps_block,
    "rivals": speed.rivals_block,
    "scaling": scaling.block,
    "fills": fills.block,
    "resets": resets.block,
    "choice": choice.block,
    "gpu": gpu.block,
    "micro": micro.block,
}
PICTURES: dict[str, Callable[[dict], list[pictures.Picture]]] = {
    "speed": speed_pictures.pictures,
    "scaling": scaling_pictures.pictures,
    "gpu": gpu_pictures.pictures,
}
OTHER_KERNELS: dict[str, Callable[[dict], bool]] = {"gpu": other_kernels, "choice": choice.other_kernels}


def load_results(kind: str, folder: Path = RESULTS) -> list[dict]:
    """Every file of results of a kind with its name, in a fixed order: none if nothing has been measured yet."""
    paths = sorted(folder.glob(f"{kind}-*.json"), reverse=True)
    return [{**json.loads(path.read_text()), "file": path.stem} for path in paths]


def block(kind: str, results: list[dict]) -> str:
    """What the README shows of a kind, with its markers."""
    return "\n\n".join([begin(kind), BLOCKS[kind](results), end(kind)])


def begin(kind: str) -> str:
    return f"<!-- {kind}:begin -->"


def end(kind: str) -> str:
    return f"<!-- {kind}:end -->"


def insert(readme: str, folder: Path = RESULTS) -> str:
    """The README with its blocks replaced; raises InputError if their markers are not there once, in order."""
    for kind in BLOCKS:
        pattern = re.compile(f"{begin(kind)}.*?{end(kind)}", re.DOTALL)
        if len(pattern.findall(readme)) != 1 or readme.count(begin(kind)) != 1 or readme.count(end(kind)) != 1:
            raise common.InputError(f"the README must have the line {begin(kind)} once, and after it {end(kind)} once")
        text = block(kind, load_results(kind, folder))
        readme = pattern.sub(lambda _, text=text: text, readme)
    return readme


def draw(folder: Path = RESULTS) -> None:
    """Draw the pictures of all files of results beside them, and remove those of results that are gone."""
    drawn = {
        path
        for kind, of in PICTURES.items()
        for result in load_results(kind, folder)
        for path in pictures.draw(of(result), result, folder)
    }
    for stale in set(folder.glob("*.svg")) - drawn:
        stale.unlink()


def main(readme: Path = README, folder: Path = RESULTS) -> None:
    if not readme.exists():
        raise common.InputError(f"there is no {readme} to write the tables into")
    text = insert(readme.read_text(), folder)
    draw(folder)
    with common.replacing(readme) as partial_path:
        partial_path.write_text(text)
    print(f"wrote the tables of the result files in {folder} into {readme}, and drew their pictures")
    for kind, others in OTHER_KERNELS.items():
        for result in filter(others, load_results(kind, folder)):
            print(f"{result['file']}.json was measured with other kernels than those here, and the table says so")


if __name__ == "__main__":
    common.run_command(main)
