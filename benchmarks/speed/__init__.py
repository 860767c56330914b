"""Speed and memory of the fused cells against torch.nn and hand-written loops: ``python -m benchmarks.speed``.

``cases`` is the one table of what is measured, ``eager`` holds the hand-written loops, ``check`` refuses to time
what is wrong, ``timing`` and ``memory`` run in child processes, ``__main__`` starts them and writes the results.
``benchmarks.report`` turns results into the tables of README.md.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"  # what the README shows
