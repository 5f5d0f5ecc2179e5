"""Measurements of trained weights, one file each."""
