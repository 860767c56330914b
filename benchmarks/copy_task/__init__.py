"""The copy task: how far back each cell remembers, and at what cost. ``python -m benchmarks.copy_task --help``."""
