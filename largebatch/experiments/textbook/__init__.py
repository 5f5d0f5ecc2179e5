"""The textbook chapter on batch size, run: one module per experiment.

`NAME.py` has `Settings`, the schema of the section `textbook` of conf/experiment/textbook/NAME.yaml, and
`run(experiment, settings) -> Story`. Everything is trained by the trainer that trains everything else; what an
experiment adds are the runs to make, the theory to hold them to, and a sentence that follows from the numbers.
"""
