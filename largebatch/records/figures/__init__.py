"""Figures as values, and how they are drawn: as PNG, and for plotly on the page and in W&B."""
