"""The CUDA and the Triton backend on a GPU, through the public functions, against the reference on the same device.

Without a GPU every test is skipped. FUSED_RNN_GPU_TESTS=cpu runs them on the CPU backend instead, with smaller sizes
and plain stand-ins for streams and graphs: that tests the tests, not the backend.
"""
