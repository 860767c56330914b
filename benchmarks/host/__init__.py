"""The host's part of a GPU call, measured without a GPU."""
