"""Starts or resumes a run: chooses folder and checkpoint, and checks that the checkpoint belongs to the run."""

from largebatch.run.resume.finding import find_checkpoint
from largebatch.run.resume.identity import check_identity, run_identity
from largebatch.run.resume.start import Start, begin, open_folder, record_start

__all__ = [
    "Start",
    "begin",
    "check_identity",
    "find_checkpoint",
    "open_folder",
    "record_start",
    "run_identity",
]
