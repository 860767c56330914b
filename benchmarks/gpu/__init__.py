"""Speed and memory on a GPU: ``python -m benchmarks.gpu``, one run of some minutes that writes one file of results.

``points`` says what is measured and in which order, ``candidates`` what is timed at a point, ``measure`` times it and
reads its memory, ``machine`` describes the device. How a cell is run and checked, the clocks and the ceilings are those
of ``benchmarks.speed``. ``report`` makes the tables of README.md, ``micro`` measures what the kernels are tuned by,
``kernel`` shows one of them alone, ``run_all.sh`` runs it all, by ``kit``.
"""
