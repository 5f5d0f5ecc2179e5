"""How a run computes: number format, kernels, layout, compilation. Each is decided once, with its reason."""
