"""Instantiates `_target_` nodes: finds the object, checks LARGEBATCH_TARGETS and the signature, and calls it."""

from largebatch.run.config.targets.allowed import (
    ALLOW_LIST,
    FOR_CONFIGS,
    listed,
    name_problem,
    named_by,
    target_nodes,
    target_problems,
)
from largebatch.run.config.targets.arguments import arguments_of, check_arguments, needed_arguments
from largebatch.run.config.targets.finding import TargetError, find_target, listing_problem
from largebatch.run.config.targets.making import make, make_function

__all__ = [
    "ALLOW_LIST",
    "FOR_CONFIGS",
    "TargetError",
    "arguments_of",
    "check_arguments",
    "find_target",
    "listed",
    "listing_problem",
    "make",
    "make_function",
    "name_problem",
    "named_by",
    "needed_arguments",
    "target_nodes",
    "target_problems",
]
