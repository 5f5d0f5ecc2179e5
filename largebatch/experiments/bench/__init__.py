"""Races between this package and independent rivals."""
