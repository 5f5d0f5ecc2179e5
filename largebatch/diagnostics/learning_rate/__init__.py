"""Which learning rates train: range test, suggestion, limit of stability."""
