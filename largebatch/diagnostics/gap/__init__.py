"""The generalization gap: between training and test set, and between large and small batches."""
