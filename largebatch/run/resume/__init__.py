"""How a run begins: in which folder, from which checkpoint, and whether that one belongs to it."""

from largebatch.run.resume.identity import check_identity, run_identity
from largebatch.run.resume.start import Start, begin, find_checkpoint, open_folder, record_start

__all__ = [
    "Start",
    "begin",
    "check_identity",
    "find_checkpoint",
    "open_folder",
    "record_start",
    "run_identity",
]
