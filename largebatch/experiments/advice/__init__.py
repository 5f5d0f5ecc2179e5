"""How large the batch should be, and what it costs: the answer from the runs at hand."""
