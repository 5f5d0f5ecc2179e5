"""Secrets: a config that holds one is refused, and values of the environment appear in no output."""

from largebatch.records.credentials.recognition import (
    argument_problems,
    credential_problems,
    is_secret,
    names_secret,
    variables_in,
    without_variables,
)
from largebatch.records.credentials.redaction import (
    RedactedScreen,
    hide_variables,
    is_secret_variable,
    redact_screens,
    redacted,
)

__all__ = [
    "RedactedScreen",
    "argument_problems",
    "credential_problems",
    "hide_variables",
    "is_secret",
    "is_secret_variable",
    "names_secret",
    "redact_screens",
    "redacted",
    "variables_in",
    "without_variables",
]
