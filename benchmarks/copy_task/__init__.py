"""The copy task: how far back each cell remembers, and what that costs. ``python -m benchmarks.copy_task --help``."""
