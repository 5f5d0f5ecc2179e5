"""Schema of the section `plan`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from largebatch.diagnostics.memory.budget import parse_bytes
from largebatch.diagnostics.settings import Section


def _switch_or_bytes(value: Any) -> Any:
    return value if value is None or isinstance(value, bool) else parse_bytes(str(value))


class PlanConfig(Section):
    """What is predicted, and how it is printed.

    Attributes:
        memory: whether a rank's memory is predicted, or bytes of a device that it is to fit into.
        device: whose rules the prediction follows.
        dry_run: whether the run is tried on this machine; if not, no weights are made.
        format: how the plan is printed.
    """

    memory: Annotated[bool | int | None, BeforeValidator(_switch_or_bytes)]
    device: Literal["cuda", "cpu"]
    dry_run: bool
    format: Literal["table", "json"]
