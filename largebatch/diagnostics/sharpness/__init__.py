"""Sharpness of a model on a fixed subset of the data, the same on any number of ranks."""
