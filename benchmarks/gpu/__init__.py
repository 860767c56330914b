"""Speed and memory on a GPU: ``python -m benchmarks.gpu``, one run of some minutes that writes one file of results.

``points`` says what is measured and in which order, ``candidates`` how a cell is run, ``check`` whether it is right,
``clock`` how time and memory are read, ``measure`` puts them together, ``machine`` measures the ceilings of the device.
``report`` makes the tables of README.md, ``micro`` measures what the kernels are tuned by, ``run_all.sh`` runs it all.
"""
