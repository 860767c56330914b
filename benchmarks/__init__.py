"""Things to run with the package: the copy task, a language model, and speed comparisons."""
