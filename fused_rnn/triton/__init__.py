"""Triton kernels of whole sequences. Importing this package does not import triton; its modules do."""
