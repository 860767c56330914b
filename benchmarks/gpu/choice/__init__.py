"""The sizes for which warp kernels (csrc/cuda/cluster) are chosen over block kernels: measurements, and a table in C++.

``measure`` times both families side by side, ``results`` reads the files that it wrote, ``rows`` finds the ranges of
sizes in which the clusters are ahead, and ``header`` writes them to csrc/cuda/cluster/measured.h.
"""
