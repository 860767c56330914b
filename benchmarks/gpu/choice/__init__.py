"""Where the kernels of clusters (csrc/cuda/cluster) are chosen before those of blocks: measured, and as a table in C++.

``measure`` times both families side by side, ``results`` reads what it wrote, ``rows`` finds the ranges of sizes in
which the clusters are ahead, and ``header`` writes them down as csrc/cuda/cluster/measured.h.
"""
