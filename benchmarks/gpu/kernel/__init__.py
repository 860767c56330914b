"""One kernel under the lamp: ``python -m benchmarks.gpu.kernel --cell lstm --dtype bfloat16 --hidden 512 --batch 64``.

Compiles one kernel (cell x dtype x direction x exchange) for one architecture in seconds, holds its results against the
reference, times it and shows what it consists of. ``kernel.cu`` is all that touches csrc/cuda, ``calls`` has its
structures for ctypes; ``build`` compiles and loads it, ``sass`` reads its machine code, ``check`` judges its results.
"""
