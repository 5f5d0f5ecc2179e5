"""The gradient of one global batch, in every way that it can be had; batch norm; snapshots."""
