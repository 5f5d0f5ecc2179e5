"""Gradient noise: noise scale and the 1/B law of variance."""
