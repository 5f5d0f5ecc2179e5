"""Fast paths of LARS and LAMB, each tested against the plain loop."""
