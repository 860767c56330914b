"""How cost grows with T, B, H and the number of layers: ``python -m benchmarks.scaling``.

``sweeps`` is the table of what is measured, ``timing`` measures it in a process of its own, ``__main__`` starts that
and writes the results, ``findings`` says whether time against T is a straight line and where the cost of work leaps.
``report`` and ``pictures`` make what README.md shows of them. Cells are built, checked and timed as in
``benchmarks.speed``.
"""
