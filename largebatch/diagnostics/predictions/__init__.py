"""Predictions of a new run from earlier ones, with prediction intervals, and how they are graded afterwards."""
