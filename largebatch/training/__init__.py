"""The loop, the guard, the observers."""
