"""Fast paths of LARS and LAMB, each held to the plain loop."""
