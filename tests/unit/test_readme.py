"""What README files say is true of the tree: commands compose, snippets run, links, files, keys and names exist.

Commands are composed and their runs checked as far as `prepare` goes, which tries a step on the CPU; none trains.
"""

from __future__ import annotations

import functools
import importlib
import pydoc
import re
import shlex
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig

import largebatch
from largebatch.cli.bench import BENCHES, OF_A_RUN
from largebatch.cli.composition.advice_flags import with_overrides
from largebatch.cli.composition.composing import compose_config
from largebatch.cli.measure import MEASURES, TRAINING
from largebatch.cli.textbook import EXPERIMENTS
from largebatch.cli.verbs import VERBS
from largebatch.diagnostics.settings import Section
from largebatch.experiments.advice.settings import AdviseConfig
from largebatch.experiments.attribution.settings import AttributionConfig
from largebatch.experiments.bench.settings import read_settings
from largebatch.experiments.study.settings import StudyConfig
from largebatch.models import Linear
from largebatch.records.metric_keys import METRIC_FAMILIES, metric_key
from largebatch.run.config.reading import parse_section
from largebatch.run.prepare import prepare
from tests.readme_blocks import BLOCKS, with_block
from tests.unit.composing import GROUPS, compose_run
from tests.unit.test_house import ROOMS

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("conf", "largebatch", "launch", "tests")
READMES = (ROOT / "README.md", *sorted(path for one in FOLDERS for path in (ROOT / one).rglob("README.md")))
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in READMES}
COMMAND = re.compile(r"(?:-m )?largebatch (\w[\w-]*)([^`#|\n]*)")

every_readme = pytest.mark.parametrize("name", TEXTS)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def spans(text: str) -> list[str]:
    """Everything in code within sentences and tables."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def test_the_readme_fits_on_a_screen_and_every_room_has_one():
    assert len(TEXTS["README.md"].encode()) <= 8 * 1024
    assert {f"largebatch/{room}/README.md" for room in ROOMS} - TEXTS.keys() == set()


def test_a_room_names_what_it_offers_to_programs():
    """The names that the docstring of `largebatch` lists by room."""
    listed = re.sub(r"\n {8,}", " ", largebatch.__doc__ or "")
    offered = {room: names.split() for room, names in re.findall(r"^    (\w+) +(.+)$", listed, flags=re.MULTILINE)}
    assert offered.keys() <= set(ROOMS)
    missing = {
        room: gone
        for room, names in offered.items()
        if (text := TEXTS.get(f"largebatch/{room}/README.md")) and (gone := [one for one in names if one not in text])
    }
    assert missing == {}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_generated_block_is_that_of_its_source(name: str):
    """`python -m tests.readme_blocks --write` writes it anew."""
    path, make = BLOCKS[name]
    text = (ROOT / path).read_text(encoding="utf-8")
    assert with_block(text, name, make()) == text


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """(verb, arguments) of everything in code that begins with `largebatch VERB`, whatever launcher stands before."""
    lines = [
        line
        for text in TEXTS.values()
        for line in (*"".join(blocks(text, "bash")).replace("\\\n", " ").splitlines(), *spans(text))
    ]
    found = [COMMAND.search(line) for line in lines]
    return [(match[1], tuple(shlex.split(match[2]))) for match in found if match and match[1] != "VERB"]


# Of the user's own, or read from a copy of the data that the tests may not have.
ELSEWHERE = ("--config-dir", "data.path=", "model.weights=", "measure.checkpoint=", "--help", "...")
OWN_BENCHES = BENCHES.keys() - {*OF_A_RUN, "communication"}  # settings of their own
OWN_ARGUMENTS = {"checkpoint", "compare", "completion", "diff", "doctor", "help", "report"}  # no config
WORDS = (
    *("loop", "diagnostics", "verify", "scaling", "--multirun", "WHAT", "NAME", "all"),
    *(*MEASURES, *TRAINING, *EXPERIMENTS),
)
SECTIONS = ("measure.", "textbook.", "find_lr.", "find_micro.", "plan.")  # each of one verb
OWN_SECTIONS: dict[str, type[Section]] = {"advise": AdviseConfig, "study": StudyConfig, "attribute": AttributionConfig}
OF_A_VERB = (*SECTIONS, "hydra/launcher=")
RUNS = [
    (verb, arguments)
    for verb, arguments in commands()
    if verb not in OWN_ARGUMENTS
    and arguments[:1] not in (("analyze",), ("atlas",), ("page",))
    and not (verb == "bench" and not OWN_BENCHES.isdisjoint(arguments[:1]))
    and (verb, arguments) not in (("study", ()), ("attribute", ()))  # verbs that a sentence names; they need a value
    and not any(
        argument.startswith(ELSEWHERE) or "_target_=mine." in argument or "_target_: mine." in argument
        for argument in arguments
    )
]


def test_commands_are_found():
    assert len(RUNS) >= 30
    assert {verb for verb, _ in commands()} <= VERBS.keys()


def checked_once() -> dict[tuple[str, tuple[str, ...]], str]:
    """(verb whose section it has, overrides) of every command, once for all verbs that compose the same."""
    found = {}
    for verb, arguments in RUNS:
        given = with_overrides(arguments) if verb == "plan" else arguments
        own = [one for one in given if one not in WORDS and not one.startswith(OF_A_VERB)]
        if verb == "launch":  # what stands before the overrides is the script's own
            own = [one for one in own if "=" in one and not one.startswith("-")]
        # Of a sweep the first value; the commas of a list are its own.
        parts = [one.partition("=") for one in own]
        overrides = [f"{key}={value if value[:1] == '[' else value.split(',')[0]}" for key, _, value in parts]
        section = verb if verb in OWN_SECTIONS else ""
        found[section, tuple(overrides)] = " ".join((verb, *arguments))
    return found


@pytest.mark.parametrize(("section", "overrides"), checked_once(), ids=checked_once().values())
def test_a_command_passes_all_checks(
    section: str, overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    environ = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    if wanted := [one for one in overrides if one.startswith("launcher.num_processes=")]:
        environ |= {"WORLD_SIZE": wanted[0].partition("=")[2], "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    config = _with_section(section, list(overrides)) if section else compose_run(*overrides)
    assert prepare(config, environ).numbers.num_steps > 0


def test_a_bench_knows_its_settings():
    found = [given for verb, given in commands() if verb == "bench" and not OWN_BENCHES.isdisjoint(given[:1])]
    assert len(found) > 3
    for name, *given in found:
        bench = importlib.import_module(f"largebatch.experiments.bench.{name.replace('-', '_')}")
        read_settings(bench.Settings, [one for one in given if one != "device=cuda"])  # there is none


def test_settings_of_a_verb_exist():
    own = {one.partition("=")[0] for _, arguments in RUNS for one in arguments if one.startswith(SECTIONS)}
    assert {key for key in own if key not in config_keys()} == set()


def _with_section(verb: str, overrides: list[str]) -> DictConfig:
    """Experiments of these verbs have a section that no other verb knows."""
    config = compose_config([one for one in overrides if not one.startswith(("study.", "advise."))], config_name=verb)
    parse_section(config, verb, OWN_SECTIONS[verb])
    return config


@every_readme
def test_python_runs_as_printed(name: str):
    """In the order of the file, with a model; a loop or a class of the text itself may come first.

    A walk-through runs from its first line to its last: tests/end_to_end/test_walkthroughs.py.
    """
    names: dict[str, object] = {"model": Linear(4, 2)}
    for code in blocks(TEXTS[name].partition("## Walk-through: ")[0], "python"):
        exec(compile(code, name, "exec"), names)
    assert name != "README.md" or names["lr"] == 3.2


@every_readme
def test_links_lead_somewhere(name: str):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        found = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert found.exists(), target
        assert not heading or heading in headings(found.read_text(encoding="utf-8")), target


def headings(text: str) -> set[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


FILE = re.compile(r"(?:\./)?[\w./*{}-]+\.(?:py|sh|sbatch|yaml|md|c|png|txt|toml)|[\w./-]+/")
PLACES = ("", "largebatch", "launch", "tests")
OF_A_RUN = re.compile(
    r".*NAME|runs/|myconf/|plots/|checkpoints/|wandb/|config\.yaml|overrides\.txt|failure|lost_ranks\.txt|flight_recorder|RUN/|slice_|/dev/|/data/"
)


def missing_files(name: str) -> list[str]:
    """Files and folders that a text names in code, and that are neither there nor below its folder."""
    code = [*spans(TEXTS[name]), *re.findall(r"(?:\./)?launch/[\w./]+", "".join(blocks(TEXTS[name], "bash")))]
    files = [one for one in code if FILE.fullmatch(one) and not OF_A_RUN.match(one)]
    here = (ROOT / name).parent
    return [
        one
        for one in files
        if not any((ROOT / place / one).exists() for place in PLACES) and not list(here.rglob(one.strip("./")))
    ]


@every_readme
def test_files_that_are_named_are_there(name: str):
    assert missing_files(name) == []


@every_readme
def test_names_of_the_package_are_there(name: str):
    dotted = [one for one in spans(TEXTS[name]) if re.fullmatch(r"largebatch(\.\w+)+", one)]
    assert [one for one in dotted if pydoc.locate(one) is None] == []


@every_readme
def test_metric_keys_that_are_named_are_written(name: str):
    families = {one.name.partition("/")[0] for family in METRIC_FAMILIES for one in family.keys if "/" in one.name}
    keys = [one for one in spans(TEXTS[name]) if re.fullmatch(r"\w+/[\w/]+", one) and one.split("/")[0] in families]
    known = {path.name for path in (ROOT / "largebatch").rglob("*") if path.is_dir()}  # guard/ might be a folder
    assert [one for one in keys if metric_key(one) is None and one.split("/")[-1] not in known] == []


@functools.cache
def config_keys() -> frozenset[str]:
    """Every key of conf/ with its parents, whatever choices are made: `batch`, `batch.total`, ..."""
    keys: set[str] = set()

    def enter(prefix: str, node: object) -> None:
        keys.add(prefix)
        for key, value in node.items() if isinstance(node, dict) else ():
            enter(f"{prefix}.{key}".lstrip("."), value)

    for path in (ROOT / "conf").rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        package = re.search(r"^# @package (\w+)", text)
        group = path.parent.name if path.parent != ROOT / "conf" else "_global_"
        place = package[1] if package else group
        enter("" if place == "_global_" else place, yaml.safe_load(text))
    return frozenset(keys)


@every_readme
def test_config_keys_that_are_named_exist(name: str):
    """Of a span like `batch.total` or `guard.policy=skip` the key; a group's choice, too."""
    unknown = []
    for one in spans(TEXTS[name]):
        key, _, value = one.strip("'").partition("=")
        if (
            not re.fullmatch(r"[a-z_]+(\.(?!json|html)[a-z_]+)*", key)
            or ("." not in key and not value)
            or FILE.fullmatch(one)
        ):
            continue
        if key in GROUPS:
            file = ROOT / "conf" / key / f"{value}.yaml"  # its name may have a folder in it
            unknown += [] if file.is_file() or value.startswith("largebatch") else [one]
        elif key.split(".")[0] in config_keys() and key not in config_keys():
            unknown.append(one)
    assert unknown == []


@pytest.mark.parametrize("script", sorted((ROOT / "launch").glob("*.sh")), ids=lambda path: path.name)
def test_python_inside_of_a_script_finds_what_it_imports(script: Path):
    for statement in re.findall(r"^from largebatch[\w.]* import .*$", script.read_text(), flags=re.MULTILINE):
        exec(statement, {})
