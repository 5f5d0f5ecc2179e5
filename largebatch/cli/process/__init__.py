"""How a process starts, ends, and leaves its surroundings."""
