"""The parts of ``benchmarks/gpu/run_all.sh``: all measurements that a machine with a GPU can make in some minutes.

``__main__`` runs the parts one after the other; ``progress`` records the progress of tests as they run, ``exits``
measures how soon a process ends, ``harness`` trains the models of the README, ``processes`` describes other processes.
"""
