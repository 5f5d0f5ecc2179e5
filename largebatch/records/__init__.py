"""The records of a run: trackers, checkpoints, figures, report, run folder, lock, ledger."""
