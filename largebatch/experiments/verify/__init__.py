"""Proof that a run does not depend on its topology: factorizations compared with a plain reference, causes named."""

from largebatch.experiments.verify.cases import Case, choose_cases
from largebatch.experiments.verify.causes import Cause, causes_in_advance, causes_of_doubt, causes_of_failure
from largebatch.experiments.verify.comparison import Bounds, Comparison, compare
from largebatch.experiments.verify.outcome import Outcome, compare_factorizations
from largebatch.experiments.verify.probe import Probe
from largebatch.experiments.verify.ranks import run_cases, save_reference, start_ranks
from largebatch.experiments.verify.rounding import rounding_bounds
from largebatch.experiments.verify.trajectories import Trajectory, package_trajectory, reference_trajectory

__all__ = [
    "Bounds",
    "Case",
    "Cause",
    "Comparison",
    "Outcome",
    "Probe",
    "Trajectory",
    "causes_in_advance",
    "causes_of_doubt",
    "causes_of_failure",
    "choose_cases",
    "compare",
    "compare_factorizations",
    "package_trajectory",
    "reference_trajectory",
    "rounding_bounds",
    "run_cases",
    "save_reference",
    "start_ranks",
]
