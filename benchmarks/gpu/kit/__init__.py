"""What ``benchmarks/gpu/run_all.sh`` runs: everything that a machine with a GPU can tell within some minutes.

``__main__`` runs the parts one after the other; ``progress`` writes down what tests do while they do it, ``exits``
measures how soon a process ends, ``harness`` trains the models of the README, ``processes`` reads what others do.
"""
