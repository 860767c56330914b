"""Applications and measurements of the package: the copy task, a language model, and speed comparisons."""
