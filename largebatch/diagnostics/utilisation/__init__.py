"""How much of the devices does the training use? Tokens per second, and model FLOPs utilisation."""
