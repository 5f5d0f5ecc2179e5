"""A config becomes a run: config/, checks/, doctor/, resume/, derive, prepare, build."""
