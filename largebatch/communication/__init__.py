"""What communication costs on the ranks of a job: all-reduces by themselves, and steps with and without them."""

from largebatch.communication.all_reduces import ProbeTimes, time_all_reduces
from largebatch.communication.ranks import communication_of_ranks
from largebatch.communication.steps import StepTimes, time_steps

__all__ = [
    "ProbeTimes",
    "StepTimes",
    "communication_of_ranks",
    "time_all_reduces",
    "time_steps",
]
