"""The catalogue reads conf/ without Hydra: keys, values and files must be those that Hydra composes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from largebatch import conf_dir
from largebatch.cli.catalogue.composed import Catalogue, typed_choices
from largebatch.cli.catalogue.files import read_file
from tests.unit.composing import compose_choices

pytestmark = pytest.mark.quick

CATALOGUE = Catalogue((Path(conf_dir()),))
PRIMARIES = sorted(path.stem for path in Path(conf_dir()).glob("*.yaml"))
OF_VERBS = {
    "advice/": "advise",
    "textbook/": "textbook",
    "study/": "study",
    "attribute/": "attribute",
}  # experiments of verbs with a section of their own


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def combinations() -> list[tuple[str, tuple[str, ...]]]:
    """Every choice of every group, in the verb and beside the choice that has it."""
    found: list[tuple[str, tuple[str, ...]]] = [(name, ()) for name in PRIMARIES]
    for group in CATALOGUE.groups():
        for choice in CATALOGUE.choices(group):
            verb = next((verb for start, verb in OF_VERBS.items() if choice.startswith(start)), "train")
            if group in ("lars", "lamb"):
                found.append((verb, (f"optimizer={group}", f"{group}={choice}")))
            elif group not in ("study", "attribute", "advise"):
                found.append((verb, (f"{group}={choice}",)))
    return [*found, ("train", ("experiment=digits_ramp", "debug=tiny", "optimizer=lamb", "lamb=timm"))]


@pytest.mark.parametrize(("config_name", "choices"), combinations(), ids=str)
def test_keys_and_values_are_those_of_hydra(config_name: str, choices: Sequence[str]):
    settings = CATALOGUE.settings(config_name, typed_choices(choices, CATALOGUE))
    written = {key: one.value for key, one in settings.items() if not one.is_section}
    composed: Any = OmegaConf.to_container(compose_choices(*choices, config_name=config_name), resolve=False)
    theirs = dict(leaves(composed))
    nested = {key for key in theirs if any(key.startswith(f"{other}.") for other in written)}  # of {a: b} in one line
    assert written.keys() - {key for key in written if any(one.startswith(f"{key}.") for one in nested)} == (
        theirs.keys() - nested
    )
    for key in written.keys() & theirs.keys():
        ours = yaml.safe_load(written[key])
        if isinstance(theirs[key], float):  # YAML 1.1 reads 1e-3 as a text, and OmegaConf as a number
            ours = float(ours)
        assert ours == theirs[key], key


def test_a_comment_belongs_to_the_key_beside_it(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "# What it is. More.\n"
        "a: '#1'   # first line,\n"
        "          # second line\n"
        "# of nobody\n"
        "b:        # a section\n"
        "  c: [1,\n"
        "      2]  # behind the list\n"
        "  d: x#y\n"
        "e: {f: 1} # in one line\n"
        "g:\n",
        encoding="utf-8",
    )
    found = {one.key: (one.value, one.comment) for one in read_file(file, "group/inside").settings}
    assert found == {
        "group.inside.a": ("'#1'", "first line, second line"),
        "group.inside.b": ("", "a section"),
        "group.inside.b.c": ("[1, 2]", "behind the list"),
        "group.inside.b.d": ("x#y", ""),
        "group.inside.e": ("{f: 1}", "in one line"),
        "group.inside.g": ("null", ""),
    }


def test_a_folder_of_ones_own_comes_first(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# Mine.\n_target_: mine.Net\nwidth: 3  # of it\n", encoding="utf-8")
    catalogue = Catalogue((tmp_path, Path(conf_dir())))
    assert catalogue.choices("model")["mine"] == "Mine"
    chosen = typed_choices(["model=mine", "optimizer=nonsense"], catalogue)
    assert chosen == {"model": ("mine",)}
    settings = catalogue.settings("train", chosen)
    assert (settings["model.width"].value, settings["model.width"].comment) == ("3", "of it")
    assert "optimizer.momentum" in settings
