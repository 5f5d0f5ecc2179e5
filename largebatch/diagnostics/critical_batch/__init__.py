"""How large a batch pays: steps to target over batch size, and the fit of the critical batch."""
