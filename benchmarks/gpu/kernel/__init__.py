"""Examination of one kernel: ``python -m benchmarks.gpu.kernel --cell lstm --dtype bfloat16 --hidden 512 --batch 64``.

The command compiles one kernel (cell x dtype x direction x exchange) for one architecture in seconds, compares its
results with the reference, times it and analyses its code. Only ``kernel.cu`` includes csrc/cuda; ``calls`` has its
structures for ctypes; ``build`` compiles and loads it, ``sass`` reads its machine code, ``check`` judges its results.
"""
