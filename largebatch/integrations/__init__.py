"""Callbacks for trainers of others: noise scale, trust ratios and generalization gap in their own loggers.

`from largebatch.integrations.hugging_face import LargeBatchCallback`, or `from largebatch.integrations.lightning`.
"""
