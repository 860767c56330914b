"""What a GPU alone can tell, beside the speed of the cells there, which ``python -m benchmarks.speed`` measures.

``machine`` describes the device. ``micro`` measures what the kernels are tuned by, ``plans`` their divisions of work,
``choice`` those of clusters beside those of blocks, ``kernel`` shows one of them alone. ``run_all.sh`` runs it all, by
``kit``.
"""
