"""With LARGEBATCH_TARGETS nothing else is called, or imported; what is on the list is, in every form that configs have.

A module off the list counts as run when Python has it among its modules.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from largebatch import conf_dir
from largebatch.__main__ import main
from largebatch.cli.composition.composing import compose_config
from largebatch.cli.composition.listed_hydra import NotListedError, held_to_the_list
from largebatch.models.hugging_face import hugging_face
from largebatch.run.config.reading import ConfigError, parse_config
from largebatch.run.config.targets import FOR_CONFIGS, TargetError, find_target, make, target_nodes
from tests.unit.composing import compose_run

FOREIGN = "largebatch_test_foreign"
OURS = "largebatch_test_listed"
PACKAGE = {
    "__init__.py": f"""
import functools, importlib, logging, operator, os, subprocess
from os import system
from hydra.utils import get_class, instantiate
from {OURS}.net import Base, Net, act
run = subprocess.run
table = {{"a": 1}}
small = functools.partial(Net, width=4)
bad = functools.partial(os.system)
caller = operator.methodcaller("system", "exit 1")
log = logging.getLogger("x")

class Kept:
    tool = subprocess.run
    os = os
""",
    "net.py": """
from collections import OrderedDict
from torch import nn

class Base:
    @classmethod
    def built(cls, **options):
        return cls(**options)

class Net(Base):
    class Block:
        pass
    def __init__(self, width=8, part=None, **others):
        self.width, self.part, self.others = width, part, others
    @staticmethod
    def wide():
        return Net(64)

class Named(OrderedDict):
    pass

def act():
    return nn.ReLU()
""",
}


@pytest.fixture(autouse=True)
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / OURS).mkdir()
    for name, text in PACKAGE.items():
        (tmp_path / OURS / name).write_text(text)
    (tmp_path / f"{FOREIGN}.py").write_text("import logging\ndef run(*_, **__): ...\nclass Handler: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LARGEBATCH_TARGETS", f" {OURS}.*,fractions.Fraction, ")
    yield
    for name in [name for name in sys.modules if name.startswith((FOREIGN, OURS))]:
        del sys.modules[name]


def node(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": name.replace("OURS", OURS).replace("FOREIGN", FOREIGN), **arguments}


OUT = [
    "OURS.os.system",
    "OURS.system",
    "OURS.run",
    "OURS.Kept.tool",
    "OURS.Kept.os.system",
    "OURS.bad",
    "OURS.caller",
    "OURS.log.info",
    "OURS.table.get",
    "OURS.importlib.import_module",
    "OURS.functools.partial",
    "OURS.get_class",
    "OURS.instantiate",
    "OURS.net.Named.fromkeys",  # of the class that it inherits from
    "OURS.Net.__init__.__globals__.get",
    "OURS.Net.__class__",
    "OURS_other.Net",
    "FOREIGN.run",
    "fractions.Decimal",
    "builtins.eval",
    "importlib.import_module",
    "functools.partial",
    "operator.methodcaller",
    "hydra.utils.instantiate",
    "hydra.utils.call",
    "hydra._internal.utils._locate",
    "torch.load",
    "torch.hub.load",
    "torch.nn.functional.importlib.import_module",
    "torch.nn.modules.module.torch.load",
    "torch.nn.modules.module._forward_unimplemented",
    "torch.optim.lr_scheduler.partial",
    "largebatch.optim.kernels.compiler._works",
    "largebatch.optim.kernels.compiler.subprocess.run",
    "largebatch.models.checkpoint_activations",
    "largebatch.models.GPT.forward",
    "largebatch.records.checkpoint.folder.read_checkpoint",
    "largebatch.__main__.main",
    "ｏｓ.system",  # noqa: RUF001, letters that look like those of os
    "",
]


@pytest.mark.bad_input("a target outside of what is allowed")
@pytest.mark.parametrize("name", OUT)
def test_what_is_defined_off_the_list_is_not_called_whatever_leads_to_it(name: str):
    with pytest.raises(TargetError, match=r"LARGEBATCH_TARGETS|Python's internals|calls its argument"):
        make("x", node(name))
    assert FOREIGN not in sys.modules


NESTED = [
    {"part": node("FOREIGN.run")},
    {"part": [[{"deep": node("FOREIGN.run")}]]},
    {"_args_": [8, node("FOREIGN.run")]},
    {"part": node("OURS.Net", _partial_=True, part=node("FOREIGN.run"))},
    {"_recursive_": False, "part": node("FOREIGN.run")},
    {"part": node("hydra.utils.get_method", path=f"{FOREIGN}.run")},
    {"part": node("hydra.utils.get_object", _args_=[f"{FOREIGN}.run"])},
    {"part": "${oc.create:'{_target_: FOREIGN.run}'}"},
    {"part": node("${oc.env:LARGEBATCH_TEST_UNSET,FOREIGN.run}")},
    {"part": "${data.train}", "trust_remote_code": True},
]


@pytest.mark.bad_input("a target outside of what is allowed")
@pytest.mark.parametrize("arguments", NESTED, ids=str)
def test_every_node_of_a_config_is_checked_before_anything_is_imported(arguments: dict[str, Any]):
    config = compose_run()
    text = OmegaConf.to_yaml(OmegaConf.create(node("OURS.Net", **arguments))).replace("FOREIGN", FOREIGN)
    OmegaConf.set_struct(config, False)
    config.model = OmegaConf.create(text)
    with pytest.raises(
        ConfigError, match=r"model.*: (is not on the list of LARGEBATCH_TARGETS|runs code of a repository)"
    ):
        parse_config(config)
    assert not {FOREIGN, OURS} & sys.modules.keys()


def test_a_lookup_does_not_lead_out_of_a_listed_module():
    with pytest.raises(TargetError, match=r"^x\.part\.path=.*Kept\.tool: is subprocess\.run, which is not on the list"):
        make("x", node("OURS.Net", part=node("hydra.utils.get_object", path=f"{OURS}.Kept.tool")))


def test_nodes_that_a_target_makes_itself_do_not_lead_out_either():
    with pytest.raises(
        TargetError, match=r"^x\.part\.0\._target_=.*Kept\.tool: is subprocess\.run, which is not on the"
    ):
        make("x", node("OURS.Net", _recursive_=False, part=[node("OURS.Kept.tool")]))
    assert make("x", node("OURS.Net", _recursive_=False, part=[node("OURS.Net")])).part[0]["_target_"] == f"{OURS}.Net"


def test_a_text_that_was_escaped_is_not_resolved_a_second_time():
    escaped = f"${{oc.create:'{{_target_: {FOREIGN}.run}}'}}"
    assert make("x", node("OURS.Net", part=escaped)).part == escaped
    assert FOREIGN not in sys.modules


def test_what_is_on_the_list_is_called_in_every_form_that_configs_have():
    made = make("x", node("OURS.Net", part=node("OURS.net.Net", width=3), other=[{"a": node("torch.nn.GELU")}]))
    assert (made.width, made.part.width) == (8, 3)
    assert isinstance(made.others["other"][0]["a"], nn.GELU)
    assert make("x", node("OURS.small")).width == 4
    assert make("x", node("OURS.Net.built", width=5)).width == 5  # of a base class in the same package
    assert make("x", node("OURS.Net.wide")).width == 64
    assert type(make("x", node("OURS.Net.Block"))).__name__ == "Block"
    assert isinstance(make("x", node("OURS.act")), nn.ReLU)
    assert make("x", node("fractions.Fraction", numerator=1, denominator=2)) == 0.5
    norm = make("x", node("OURS.Net", part=node("torch.nn.LayerNorm", _partial_=True, eps=1e-3))).part
    assert norm(4).eps == 1e-3
    kind = make("x", node("OURS.Net", part=node("hydra.utils.get_class", path="torch.nn.BatchNorm2d"))).part
    assert kind is nn.BatchNorm2d
    assert make("x", node("OURS.Net", part=node("torch.nn.functional.gelu", _partial_=True))).part(torch.zeros(1)) == 0
    assert find_target("x", node("largebatch.models.linear.Linear")).__name__ == "Linear"


def test_what_largebatch_has_for_configs_is_all_that_its_own_configs_name_and_is_there():
    named = {str(one["_target_"]) for path in Path(conf_dir()).rglob("*.yaml")
             for _, one in target_nodes(OmegaConf.to_container(OmegaConf.load(path)))}  # fmt: skip
    assert {name for name in named if name.startswith("largebatch.")} <= FOR_CONFIGS
    assert all(find_target("x", {"_target_": name}).__doc__ for name in FOR_CONFIGS)
    assert not any(part.startswith("_") for name in FOR_CONFIGS for part in name.split("."))


def test_every_layer_loss_function_and_optimizer_of_torch_is_on_every_list(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LARGEBATCH_TARGETS", "")
    names = [f"torch.nn.{name}" for name in nn.modules.__all__] + [
        f"torch.optim.{name}" for name in torch.optim.__all__
    ]
    names += ["torch.nn.functional.scaled_dot_product_attention", "torch.nn.functional.conv2d", "torch.nn.init.normal_"]
    found = [find_target("x", {"_target_": name}) for name in names if callable(eval(name, {"torch": torch}))]
    assert len(found) > 150


def logging_of(handler: dict[str, Any]) -> dict[str, Any]:
    return {"job_logging": {"version": 1, "root": {"handlers": ["x"]}, "handlers": {"x": handler}}}


HYDRA: list[tuple[dict[str, Any], str]] = [
    ({"callbacks": {"x": node("FOREIGN.run")}}, "hydra.callbacks.x._target_=FOREIGN.run: is not on the list"),
    ({"callbacks": {"x": node("OURS.os.system", command="exit 1")}}, "x._target_=OURS.os.system: is os"),
    (logging_of({"class": f"{FOREIGN}.Handler"}), "hydra.job_logging.handlers.x.class=FOREIGN.Handler: is not on the"),
    (logging_of({"()": f"{FOREIGN}.run"}), "hydra.job_logging.handlers.x.()=FOREIGN.run: is not on the list"),
    (logging_of({"class": "logging.StreamHandler", "stream": f"ext://{FOREIGN}.run"}), ".stream=FOREIGN.run: is not"),
    (logging_of({"class": "${oc.env:X,Y}"}), ".x.class=${oc.env:X,Y}: with LARGEBATCH_TARGETS logging"),
    (logging_of({"class": "logging.FileHandler", "filename": f"{OURS}/late.py"}), "late.py: what logging writes could"),
    (logging_of({"class": "logging.FileHandler", ".": {"baseFilename": "late.py"}}), "what logging writes could"),
    ({"job": {"env_set": {"LARGEBATCH_TARGETS": FOREIGN}}}, "hydra.job.env_set: with LARGEBATCH_TARGETS variables"),
]  # fmt: skip


@pytest.mark.bad_input("a target outside of what is allowed")
@pytest.mark.parametrize(("settings", "message"), HYDRA, ids=[message[:50] for _, message in HYDRA])
def test_settings_of_hydra_are_held_to_the_list_before_hydra_acts_on_them(
    settings: dict[str, Any], message: str, tmp_path: Path
):
    (tmp_path / "experiment").mkdir()
    text = OmegaConf.to_yaml(OmegaConf.create({"hydra": settings}))
    (tmp_path / "experiment" / "own.yaml").write_text(f"# @package _global_\n{text}")
    told = re.escape(message.replace("FOREIGN", FOREIGN).replace("OURS", OURS))
    with held_to_the_list(), pytest.raises(NotListedError, match=told):
        compose_config([f"hydra.searchpath=[file://{tmp_path}]", "experiment=own"])
    assert FOREIGN not in sys.modules


def test_packages_of_configs_pickles_and_the_commands_of_submitit_are_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", f"+hydra.callbacks.x._target_={FOREIGN}.run"]) == 2
    assert f"largebatch: hydra.callbacks.x._target_={FOREIGN}.run: is not on the list" in capsys.readouterr().err
    packages = f"hydra.searchpath=[pkg://{FOREIGN}]"
    assert main(["plan", packages]) == main(["plan", packages, "--config-dir", str(Path(__file__).parent)]) == 2
    assert main(["plan", "--config-path", f"pkg://{FOREIGN}"]) == 2
    assert capsys.readouterr().err.count(f"hydra.searchpath={FOREIGN}: is not on the list") == 3
    assert main(["plan", "--experimental-rerun", "x"]) == 2
    assert "--experimental-rerun: unpickles a file" in capsys.readouterr().err
    assert main(["train", "-m", "hydra/launcher=submitit_local", "seed=1"]) == 2
    assert "submitit_launcher.LocalLauncher: is not on the list" in capsys.readouterr().err
    assert FOREIGN not in sys.modules


@pytest.mark.parametrize(
    "in_file", [{}, {"attn_implementation": "somebody/something"}], ids=["override", "config.json"]
)
def test_no_code_of_the_hub_is_run(in_file: dict[str, Any], tmp_path: Path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 1, "n_embd": 4, **in_file}))
    overrides = {} if in_file else {"attn_implementation": "somebody/something"}
    with pytest.raises(ValueError, match="attn_implementation=somebody/something fetches code"):
        hugging_face("AutoModel", str(tmp_path), pretrained=False, **overrides)
    with pytest.raises(ValueError, match=r"trust_remote_code.*code"):
        hugging_face("AutoModel", "gpt2", trust_remote_code=True)
