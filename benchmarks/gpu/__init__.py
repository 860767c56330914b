"""Measurements that only a GPU can make, beside the speed of the cells, which ``python -m benchmarks.speed`` measures.

``machine`` describes the device. ``micro`` measures the costs that the kernels are tuned by, ``plans`` the plans of
block kernels, ``choice`` warp kernels beside block kernels; ``kernel`` examines a single one. ``run_all.sh`` runs
everything, through ``kit``.
"""
