"""Ranks and how they communicate: runtime, rendezvous, gathers, lost ranks, signals, checksums."""
