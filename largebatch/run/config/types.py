"""Types of the configuration schema."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidatorFunctionWrapHandler, WrapValidator

from largebatch.batch.duration import Duration
from largebatch.batch.memory_rules import MEMORY_RULES
from largebatch.run.config.did_you_mean import did_you_mean


def _duration(text: Any) -> Any:
    Duration.parse(str(text))
    return text


def _rule_or_duration(text: Any) -> Any:
    if not isinstance(text, str):
        raise ValueError(f"choose {_A_HALF_LIFE}.")
    if text in MEMORY_RULES:
        return text
    try:
        return _duration(text)
    except ValueError:
        raise ValueError(f"choose {_A_HALF_LIFE}.{did_you_mean(str(text), MEMORY_RULES)}") from None


def _rules_or_durations(value: Any) -> Any:
    """Checked as a whole: an error inside a union would name its types, which are no keys."""
    if not isinstance(value, list):
        return _rule_or_duration(value)
    if len(value) != 2:
        raise ValueError(f"a list has two rules, of beta1 and of beta2, and this one has {len(value)}.")
    return [_rule_or_duration(one) for one in value]


def is_in_tokens(value: Any) -> bool:
    """Whether it is a text such as `0.5Mitokens`."""
    try:
        return isinstance(value, str) and Duration.parse(value).unit == "tokens"
    except ValueError:
        return False


def _samples_or_tokens(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    return value if is_in_tokens(value) else check(value)


_WORDS = {"no", "off", "yes", "on", "true", "false", "none", "null", ""}  # switches; as patterns they match many names
_LONGEST_NAME = 255  # bytes, of most file systems


def switch_or_pattern(value: Any) -> Any:
    """True, false, or a text."""
    if isinstance(value, bool) or (isinstance(value, str) and value.lower() not in _WORDS):
        return value
    raise ValueError("must be true, false, or a regular expression of module names.")


def switch_or_blocks(value: Any) -> Any:
    """True, false, or "blocks"."""
    if isinstance(value, bool) or value == "blocks":
        return value
    raise ValueError("must be true, false, or blocks.")


def folder_name(text: str) -> str:
    """A text that can be the name of one folder on every system."""
    is_device = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", text, re.IGNORECASE) is not None
    is_path = not text or not text.isprintable() or "/" in text or text[-1] in ". "
    if is_device or is_path or text[0] == " " or len(text.encode()) > _LONGEST_NAME:
        raise ValueError(
            "names a folder: 1 to 255 printable bytes, without /, without a blank at either end or a dot at the end, "
            "and no device name of Windows such as NUL. Use letters, digits, - and _; set run.dir for another place."
        )
    return text


def folder_path(text: str) -> str:
    """A text that can be a path."""
    if not text.strip() or any(unicodedata.category(sign) == "Cc" for sign in text):
        raise ValueError("must be the path of a folder: not empty, and without control characters.")
    if text.startswith("~"):
        raise ValueError(
            "the shell did not expand ~ here, so it would become a folder of that name. Write $HOME/ instead."
        )
    return text


@dataclass(frozen=True)
class OneOf:
    """Checks a text that is one of several; the error names the nearest."""

    names: tuple[str, ...]

    def __call__(self, value: str) -> str:
        """The value; raises ValueError if it is none of them."""
        if value not in self.names:
            raise ValueError(f"choose one of {', '.join(self.names)}.{did_you_mean(value, self.names)}")
        return value


def one_of(choices: Iterable[str]) -> AfterValidator:
    """A text that is one of `choices`."""
    return AfterValidator(OneOf(tuple(choices)))


_TAKEN = ("loss", "accuracy", "seconds", "skipped", "is_augmented")  # by other keys of an evaluation


def metric_name(text: str) -> str:
    """A name of which keys can be made: eval/val_NAME, eval/train_NAME, gap/NAME."""
    if re.fullmatch(r"[\w.-]+", text) is None or text.endswith("_stderr") or text in _TAKEN:
        raise ValueError(
            f"eval/val_{text} would be its key: a name has letters, digits, _, - and dots, does not end in _stderr, "
            f"and is none of {', '.join(_TAKEN)}."
        )
    return text


MetricName = Annotated[str, AfterValidator(metric_name)]
FolderName = Annotated[str, AfterValidator(folder_name)]
FolderPath = Annotated[str, AfterValidator(folder_path)]
_A_LENGTH = "a length, such as 30ep, 500steps, 100000samples or 10Btokens"  # as `largebatch help` shows it
DurationText = Annotated[str, BeforeValidator(_duration), Field(description=_A_LENGTH)]
_A_HALF_LIFE = f"{', '.join(MEMORY_RULES)}, or a half-life, such as 100000samples or 10Mtokens"
# A rule of a momentum or beta, or its half-life.
HalfLife = Annotated[str, BeforeValidator(_rule_or_duration), Field(description=_A_HALF_LIFE)]
# One for both betas, or one each.
HalfLives = Annotated[
    HalfLife | list[HalfLife],
    BeforeValidator(_rules_or_durations),
    Field(description=f"{_A_HALF_LIFE}; or a list of two, for beta1 and beta2"),
]
# Samples of a batch; a text in tokens until the training set is known, see `in_samples`.
SampleCount = Annotated[int, Field(ge=1), WrapValidator(_samples_or_tokens)]
Target = dict[str, Any]
