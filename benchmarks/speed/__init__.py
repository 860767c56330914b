"""Speed and memory of the fused cells against torch.nn and hand-written loops: ``python -m benchmarks.speed``.

``cases`` is the one table of what is measured, ``candidates`` the ways to run it: ``eager`` holds the hand-written
loops, ``others`` other people's libraries. ``check`` refuses to time what is wrong, ``clock`` reads time and memory,
``ceilings`` says how fast the machine can be at all. ``timing`` and ``memory`` run in child processes, ``__main__``
starts them and writes the results, ``report`` and ``pictures`` make what README.md shows of them.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"  # what the README shows
