"""Speed and memory of the fused cells beside torch.nn and hand-written loops: ``python -m benchmarks.speed``.

``plan`` is the one table of what is measured, on a CPU and on a GPU; ``cases`` says what a case is, ``candidates`` how
it can be run: ``eager`` holds the hand-written loops, ``others`` other people's libraries. ``check`` refuses to time
what is wrong, ``clock`` reads time and memory, ``ceilings`` says how fast the device can be at all. ``measure`` is the
one loop and runs in processes of its own, through ``child``; ``__main__`` starts them and writes the results.
``records`` reads these for ``report`` and ``pictures``, which make what people are shown; ``findings`` looks for bends
and leaps where sizes grow.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"  # what the README shows
