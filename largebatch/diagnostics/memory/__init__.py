"""How much memory a rank needs, before it is allocated."""
