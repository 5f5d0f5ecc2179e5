"""Schema and reading of a config."""
