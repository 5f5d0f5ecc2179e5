"""What on this machine would stop a run or slow it down, before a run finds out."""

from largebatch.run.doctor.diagnosis import Diagnosis, State
from largebatch.run.doctor.examination import examine

__all__ = ["Diagnosis", "State", "examine"]
