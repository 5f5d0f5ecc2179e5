"""The loop, the guard, the observers."""

from typing import TYPE_CHECKING

from largebatch import lazy_names

if TYPE_CHECKING:
    from largebatch.training.assembly import make_run
    from largebatch.training.loop import Observer, Run, train
    from largebatch.training.step_report import StepReport

__all__ = ["Observer", "Run", "StepReport", "make_run", "train"]
if not TYPE_CHECKING:  # to a type checker, a module with a __getattr__ has every name, misspelt ones too
    __getattr__, __dir__ = lazy_names(
        __name__, {"loop": "Observer Run train", "assembly": "make_run", "step_report": "StepReport"}
    )
