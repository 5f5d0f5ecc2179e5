"""The loss of a larger batch, attributed to fewer steps, less noise and unscaled hyper-parameters by matched runs."""
