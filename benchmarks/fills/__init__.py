"""What sequences of different lengths cost, by how much of T·B they fill: ``python -m benchmarks.fills``.

``cases`` says what is measured: lengths that fill from 1 % to all of it, and the ways to run them. ``measuring``
measures time and memory in processes of its own, ``__main__`` starts these and writes the results, ``report`` makes
what README.md shows of them. Cells are built, checked and timed as in ``benchmarks.speed``.
"""
