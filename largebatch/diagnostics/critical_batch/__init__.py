"""Critical batch size: steps to target over batch size, and the fit of B_crit."""
