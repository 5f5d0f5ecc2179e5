"""Start and end of the process: exit codes, output streams, and the state that a verb restores."""
