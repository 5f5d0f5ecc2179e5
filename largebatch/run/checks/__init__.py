"""Checks before a run starts: machine, disk, memory, observers, dry run."""
