"""The largest micro-batch that fits on all ranks, and the speed of each, by steps of the run that leave no trace."""
