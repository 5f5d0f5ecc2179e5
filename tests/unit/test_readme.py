"""What the README tells people to type is possible: every command composes, and its run passes all checks."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from omegaconf import DictConfig

from largebatch.__main__ import VERBS
from largebatch.cli.chapter import EXPERIMENTS
from largebatch.cli.composition.composing import compose_config
from largebatch.cli.measure import MEASURES
from largebatch.experiments.study.settings import StudyConfig
from largebatch.run.config.reading import parse_section
from largebatch.run.prepare import prepare
from tests.unit.composing import compose_run

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMAND = re.compile(r"(?:-m )?largebatch (\w[\w-]*)([^`#|\n]*)")


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """(verb, arguments) of everything in code that begins with `largebatch VERB`, whatever launcher stands before."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    found = [COMMAND.search(text) for text in (*"".join(blocks).splitlines(), *spans)]
    return [(match[1], tuple(shlex.split(match[2]))) for match in found if match]


# Of the user's own, or read from a copy of the data that the tests may not have.
ELSEWHERE = ("--config-dir", "data.path=", "--help", "...")
OWN_ARGUMENTS = {
    "checkpoint",
    "compare",
    "doctor",
    "ledger",
    "report",
}  # no config; neither have `bench optim` and `bench rows`
WORDS = ("loop", "diagnostics", "verify", "--multirun", "WHAT", "NAME", "all", *MEASURES, *EXPERIMENTS)
OF_A_VERB = ("measure.", "chapter.", "find_lr.")  # sections that only one verb has
RUNS = [
    (verb, arguments)
    for verb, arguments in commands()
    if verb not in OWN_ARGUMENTS
    and arguments[:1] not in (("optim",), ("rows",), ("analyze",), ("atlas",))
    and (verb, arguments) != ("study", ())  # has no target of its own: a verb that a sentence names
    and not any(argument.startswith(ELSEWHERE) for argument in arguments)
]


def test_commands_are_found():
    assert len(RUNS) >= 8
    assert {verb for verb, _ in commands()} <= VERBS.keys()


@pytest.mark.parametrize(("verb", "arguments"), dict.fromkeys(RUNS), ids=lambda part: " ".join(part) or "-")
def test_a_command_of_the_readme_passes_all_checks(
    verb: str, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    overrides = [argument for argument in arguments if argument not in WORDS and not argument.startswith(OF_A_VERB)]
    # Of a sweep the first value; the commas of a list are its own.
    parts = [one.partition("=") for one in overrides]
    overrides = [f"{key}={value if value[:1] == '[' else value.split(',')[0]}" for key, _, value in parts]
    environ = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    if (wanted := [one for one in overrides if one.startswith("launcher.num_processes=")]) and verb == "plan":
        environ |= {"WORLD_SIZE": wanted[0].partition("=")[2], "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    config = _study(overrides) if verb == "study" else compose_run(*overrides)
    assert prepare(config, environ).derived.num_steps > 0


def _study(overrides: list[str]) -> DictConfig:
    """A study's experiments have a section that no other verb knows."""
    config = compose_config([one for one in overrides if not one.startswith("study.")], config_name="study")
    parse_section(config, "study", StudyConfig)
    return config


@pytest.mark.parametrize("path", [line for line in re.findall(r"launch/[\w./]+\w", README) if "." in line])
def test_a_file_that_the_readme_names_is_there(path: str):
    assert (ROOT / path).exists()


def test_the_loop_of_ones_own_runs_as_printed():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    from largebatch.models import Linear

    names: dict[str, object] = {"model": Linear(4, 2)}
    exec(code, names)
    assert names["lr"] == 3.2
