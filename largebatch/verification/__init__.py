"""Proof that a run does not depend on its topology: factorizations compared with a plain reference, causes named."""

from largebatch.verification.cases import Case, choose_cases
from largebatch.verification.causes import Cause, causes_in_advance, causes_of_doubt, causes_of_failure
from largebatch.verification.comparison import Bounds, Comparison, compare
from largebatch.verification.probe import Probe
from largebatch.verification.ranks import run_cases, save_reference, start_ranks
from largebatch.verification.rounding import rounding_bounds
from largebatch.verification.trajectories import Trajectory, package_trajectory, reference_trajectory

__all__ = [
    "Bounds",
    "Case",
    "Cause",
    "Comparison",
    "Probe",
    "Trajectory",
    "causes_in_advance",
    "causes_of_doubt",
    "causes_of_failure",
    "choose_cases",
    "compare",
    "package_trajectory",
    "reference_trajectory",
    "rounding_bounds",
    "run_cases",
    "save_reference",
    "start_ranks",
]
