"""Losses of the same samples under the conditions of training, of evaluation, and in between."""
