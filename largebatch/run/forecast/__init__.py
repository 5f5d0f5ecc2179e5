"""What a run will take, from earlier runs of the same kind, and what it then took."""
