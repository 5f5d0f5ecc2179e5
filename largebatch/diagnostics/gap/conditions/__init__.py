"""The same samples as training sees them, as evaluation sees them, and in between."""
