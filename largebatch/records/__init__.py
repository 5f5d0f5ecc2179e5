"""What a run leaves: trackers, checkpoints, figures, report, run folder, lock, ledger."""
