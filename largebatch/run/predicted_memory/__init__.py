"""The memory that a rank will need: the run's own steps, taken with tensors that have shapes and no numbers."""
