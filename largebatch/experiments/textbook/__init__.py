"""The textbook chapter on batch size, run: one module per experiment.

`NAME.py` has `Settings`, the schema of the section `textbook` of conf/experiment/textbook/NAME.yaml, and
`run(experiment, settings) -> Result`. The usual trainer trains every run. An experiment adds the runs to make, the
theory to compare them with, and sentences that follow from the numbers.
"""
