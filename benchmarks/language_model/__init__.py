"""A recurrent language model: train it on a text, generate from it, measure it on another text."""
