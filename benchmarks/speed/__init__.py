"""Speed and memory of the fused cells beside torch.nn and hand-written loops: ``python -m benchmarks.speed``.

``plan`` is the one table of measurements, on a CPU and on a GPU; ``cases`` defines a case, and ``candidates`` the ways
to run it: ``eager`` holds the hand-written loops, ``others`` other people's libraries. ``check`` refuses to time wrong
candidates, ``clock`` reads time and memory, ``ceilings`` measures the limits of the device. ``measure`` is the one loop
and runs in processes of its own, through ``child``; ``__main__`` starts them and writes the results. ``records`` reads
these for ``report`` and ``pictures``, which present them; ``findings`` looks for bends and leaps as sizes grow.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"  # the results in the README
