"""Ranks and what they tell each other: runtime, rendezvous, gathers, lost ranks, signals, checksums."""
