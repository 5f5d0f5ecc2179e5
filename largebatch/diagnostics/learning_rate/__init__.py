"""Learning rates: range test, suggestion, limit of stability."""
