from largebatch.diagnostics.gap import EvalSums, GeneralizationGap, generalization_gap

__all__ = ["EvalSums", "GeneralizationGap", "generalization_gap"]
