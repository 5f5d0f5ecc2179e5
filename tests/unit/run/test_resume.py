"""Which checkpoint belongs to a run: what the config left to the class of the optimizer had its default."""

from __future__ import annotations

import copy
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from largebatch.optim import LAMB_PRESETS, LARS_PRESETS
from largebatch.records.checkpoint import Checkpoint, CheckpointError, saved_versions
from largebatch.run.config.reading import ConfigError
from largebatch.run.plan_report import reduction_rows
from largebatch.run.prepare import Prepared, prepare
from largebatch.run.resume import check_identity, run_identity
from largebatch.run.resume.model_files import files_named
from largebatch.run.resume.start import _notes_of_changes
from tests.unit.composing import compose_run

SMALL = ("data=synthetic", "model=linear", "logger=none", "length=4ep", "schedule.warmup=1ep")


def identity(*overrides: str) -> dict[str, Any]:
    return run_identity(prepare(compose_run(*SMALL, *overrides), {}))


def check(saved: dict[str, Any], given: dict[str, Any]) -> None:
    check_identity(Checkpoint(Path("runs/x"), 3, {}, {"identity": saved}), given)


@pytest.mark.parametrize(("name", "paper"), [("lars", LARS_PRESETS["paper"]), ("lamb", LAMB_PRESETS["paper"])])
def test_a_run_from_before_the_options_were_named_goes_on_as_the_papers_and_as_nothing_else(name, paper):
    now = identity(f"optimizer={name}")
    old = copy.deepcopy(now)
    for option in paper:
        if option != "trust_coefficient":
            del old["optimizer"][option]
    check(old, now)
    check(now, old)
    with pytest.raises(CheckpointError, match=r"optimizer\.adapt_undecayed was True, now False"):
        check(old, identity(f"optimizer={name}", f"{name}=timm"))


def test_a_changed_option_is_named_with_both_values():
    with pytest.raises(CheckpointError, match=r"optimizer\.momentum was 0\.9, now 0\.8\. Resume"):
        check(identity("optimizer=lars"), identity("optimizer=lars", "optimizer.momentum=0.8"))


def test_a_class_that_is_gone_is_compared_by_what_the_config_said():
    now = identity()
    gone = now | {"optimizer": {"_target_": "nowhere.Gone", "momentum": 0.9}}
    check(gone, copy.deepcopy(gone))
    with pytest.raises(CheckpointError, match=r"optimizer\._target_ was nowhere\.Gone, now torch\.optim\.SGD"):
        check(gone, now)


def test_no_class_that_a_checkpoint_names_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "planted_optimizer.py").write_text("import pathlib\npathlib.Path(__file__ + '.ran').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    now = identity()
    hostile = now | {"optimizer": {"_target_": "planted_optimizer.Any", "momentum": 0.9}}
    with pytest.raises(CheckpointError, match=r"optimizer\._target_ was planted_optimizer\.Any, now torch\.optim\.SGD"):
        check(hostile, now)
    assert "planted_optimizer" not in sys.modules
    assert not (tmp_path / "planted_optimizer.py.ran").exists()


def test_a_run_from_before_there_were_kinds_of_warmup_goes_on_with_a_gradual_one():
    now = identity("batch.total=64")
    old = copy.deepcopy(now)
    del old["schedule"]["warmup_kind"]
    check(old, now)
    with pytest.raises(CheckpointError, match=r"schedule\.warmup_kind was gradual, now constant"):
        check(old, identity("batch.total=64", "schedule.warmup_kind=constant"))


def test_a_run_from_before_other_augmentations_goes_on_without_them():
    now = identity()
    old = copy.deepcopy(now)
    old["data"]["augment"] = {"crop_padding": 0, "flip": False, "cutout": 0}
    check(old, now)
    with pytest.raises(CheckpointError, match=r"data\.augment\.mixup was 0\.0, now 0\.2"):
        check(old, identity("data.augment.mixup=0.2"))


def test_a_run_from_before_ramps_and_exact_batch_norm_goes_on_without_them():
    now = identity()
    old = {key: value for key, value in now.items() if key not in ("batch_norm", "ramp")}
    check(old, now)
    ramp = ("batch.ramp.milestones=[1ep]", "batch.ramp.totals=[64]")
    changed = r"ramp\.milestones was \[\], now \['1ep'\]; ramp\.totals was \[\], now \[64\]"
    with pytest.raises(CheckpointError, match=changed):
        check(old, identity(*ramp))


def test_compression_of_gradients_is_another_run_and_the_size_of_buckets_is_not():
    ranks = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}

    def on_two_ranks(*overrides: str) -> Prepared:
        return prepare(compose_run(*SMALL, *overrides), ranks)

    plain, larger, rounded, thin = (
        on_two_ranks(*overrides)
        for overrides in (
            [],
            ["precision.bucket_mb=100"],
            ["precision.gradient_compression=bf16"],
            ["precision.gradient_compression=powersgd", "precision.powersgd.matrix_approximation_rank=2"],
        )
    )
    check(run_identity(plain), run_identity(larger))
    check({key: one for key, one in run_identity(plain).items() if key != "gradient_compression"}, run_identity(plain))
    with pytest.raises(CheckpointError, match=r"kind was none, now bf16.*'resume_allow=\[gradient_compression\]'"):
        check(run_identity(plain), run_identity(rounded))
    with pytest.raises(CheckpointError, match=r"matrix_approximation_rank was None, now 2"):
        check(run_identity(rounded), run_identity(thin))
    rows = {one.config.precision.bucket_mb: reduction_rows(one.config, 2) for one in (plain, larger)}
    assert "at most 25 MiB at once" in rows[25][0][2]
    assert "at most 100 MiB at once" in rows[100][0][2]
    assert [reduction_rows(one.config, 2)[0][1] for one in (plain, rounded, thin)] == ["all_reduce", "bf16", "powersgd"]
    assert all(reduction_rows(one.config, 2)[0][2].startswith("inexact") for one in (rounded, thin))
    assert reduction_rows(plain.config, 1) == []


def changes(saved: dict[str, Any], given: dict[str, Any], *allow: str) -> list[str]:
    return list(map(str, check_identity(Checkpoint(Path("runs/x"), 3, {}, {"identity": saved}), given, allow=allow)))


@pytest.mark.fault(39)
@pytest.mark.bad_input("another config on resume")
def test_a_change_of_length_or_rate_needs_a_permission_and_the_error_names_it():
    before, after = identity(), identity("length=8ep", "scaling.base_lr=0.2")
    with pytest.raises(CheckpointError, match=r"length was 4ep, now 8ep.*'resume_allow=\[length,scaling\]'"):
        changes(before, after)
    with pytest.raises(
        CheckpointError, match=r"scaling\.base_lr was 0\.05, now 0\.2\. .*resume_allow=\[length,scaling\]"
    ):
        changes(before, after, "length")
    assert changes(before, after, "length", "scaling") == [
        "length was 4ep, now 8ep",
        "scaling.base_lr was 0.05, now 0.2",
    ]
    assert changes(before, before, "length") == []


@pytest.mark.fault(38)
@pytest.mark.bad_input("another config on resume")
@pytest.mark.parametrize("override", ["seed=1", "optimizer=lars", "batch.total=64", "precision=fp64"])
def test_no_permission_lets_another_run_go_on(override: str):
    with pytest.raises(CheckpointError) as refusal:
        changes(identity(), identity(override, "length=8ep"), "length", "schedule", "scaling", "clip_norm")
    assert "resume_allow" not in str(refusal.value)


@pytest.mark.parametrize(
    ("before", "after", "permission"),
    [
        ("optimizer.momentum=0.9", "optimizer.momentum=0.8", "optimizer.momentum"),
        ("loss.label_smoothing=0", "loss.label_smoothing=0.1", "loss.label_smoothing"),
    ],
)
def test_a_single_value_changes_where_its_own_name_permits_it(before: str, after: str, permission: str):
    saved, given = identity(before), identity(after)
    with pytest.raises(CheckpointError, match=rf"To change it on purpose: 'resume_allow=\[{permission}\]'\."):
        changes(saved, given)
    with pytest.raises(CheckpointError, match=re.escape(f"resume_allow=[length,{permission}]")):
        changes(saved, given, "length")
    (told,) = changes(saved, given, permission)
    assert told.startswith(f"{permission} was ")


def test_what_samples_come_and_how_many_is_never_permitted_and_said_so():
    asked = ("optimizer.momentum=0.8", "batch.total=64", "seed=1")
    with pytest.raises(CheckpointError, match="Nothing permits another global_batch_size, seed within a run"):
        changes(identity(), identity(*asked), "optimizer.momentum")


def test_a_class_that_was_moved_or_renamed_needs_a_permission_and_an_optimizer_keeps_its_name():
    plain = identity()
    was = plain | {"model": {"_target_": "mine.nets.Net", "width": 4}}
    moved, renamed = (plain | {"model": {"_target_": f"mine.models.{name}", "width": 4}} for name in ("Net", "MyNet"))
    with pytest.raises(
        CheckpointError, match=r"resume_allow=\[model\._target_\]'\. Permit _target_ only if it is the same"
    ):
        changes(was, moved)
    assert changes(was, moved, "model._target_") == ["model._target_ was mine.nets.Net, now mine.models.Net"]
    assert changes(was, renamed, "model._target_") == ["model._target_ was mine.nets.Net, now mine.models.MyNet"]
    other = plain | {"optimizer": plain["optimizer"] | {"_target_": "torch.optim.RMSprop"}}
    with pytest.raises(CheckpointError, match=r"Nothing permits another optimizer\._target_"):
        changes(plain, other, "optimizer._target_")


def test_the_pieces_of_a_loss_are_no_part_of_a_run():
    assert identity("loss.logits_at_once=100") == identity("loss.logits_at_once=null") == identity()
    assert "logits_at_once" not in identity()["loss"], "checkpoints from before the key go on"


def test_a_run_goes_on_whose_identity_is_written_in_old_names():
    views = ("model=two_views", "data=paired_views", "loss=info_nce", "logger=none", "observers.evaluation.micro=2")
    now = run_identity(prepare(compose_run(*views), {}))
    assert now["loss"]["_target_"] == "largebatch.losses.InfoNCE"
    check(now | {"batch_norm": "ghost", "loss": now["loss"] | {"_target_": "largebatch.coupled_losses.InfoNCE"}}, now)
    with pytest.raises(ConfigError, match=r"has moved\. Write loss\._target_=largebatch\.losses\.InfoNCE\."):
        prepare(compose_run(*views, "loss._target_=largebatch.coupled_losses.InfoNCE"), {})


def test_a_renamed_optimizer_has_the_defaults_of_the_class_that_it_is_now():
    plain = identity()
    was = plain | {"optimizer": {"_target_": "old.place.SGD", "momentum": 0.9}}
    now = plain | {"optimizer": {"_target_": "torch.optim.SGD", "momentum": 0.9, "nesterov": False}}
    assert changes(was, now, "optimizer._target_") == ["optimizer._target_ was old.place.SGD, now torch.optim.SGD"]


def test_a_misspelt_permission_is_refused_with_the_nearest_name():
    with pytest.raises(CheckpointError, match=r"resume_allow=\[optimizer\.momentun\]: neither.*optimizer\.momentum"):
        changes(identity(), identity(), "optimizer.momentun")
    with pytest.raises(ConfigError, match=r"resume_allow.*choose from length"):
        prepare(compose_run(*SMALL, "resume=auto", "run.dir=x", "resume_allow=[seed]"), {})


def test_code_that_changed_is_told_by_its_module_and_needs_no_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The model's own file, and those that it imports a layer, a number or a kept function from; no others."""
    files = {
        "planted_layers": "from torch import nn\nclass Layer(nn.Linear):\n    pass\n",
        "planted_settings": "WIDTH = 8\n",
        "planted_tables": "import functools\n@functools.lru_cache\ndef table(): ...\n",
        "installed/planted_library": "import planted_other\ndef helper(): ...\n",
        "planted_net": "import json\nfrom planted_layers import Layer\nfrom planted_settings import WIDTH\n"
        "from planted_tables import table\nfrom planted_library import helper\n"
        "class Net(Layer):\n    def forward(self, x):\n        return super().forward(x.flatten(1))\n",
        "planted_other": "x = 1\n",
    }
    (tmp_path / "installed" / "library-1.dist-info").mkdir(parents=True)  # as `pip install --target` leaves it
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, Path(name).name, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "installed")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("planted_other")
    config = compose_run(*SMALL)
    config.model = {"_target_": "planted_net.Net", "in_features": 64, "out_features": 10}
    before = run_identity(prepare(config, {}))
    own = {"planted_net", "planted_layers", "planted_settings", "planted_tables"}
    assert own | {"largebatch"} == before["code"].keys()
    (tmp_path / "planted_layers.py").write_text(files["planted_layers"] + "# changed\n")
    after = run_identity(prepare(config, {}))
    (told,) = changes(before, after)
    assert re.fullmatch(r"the code of planted_layers differs \(its hash was \w{16}, now \w{16}\)", told)
    saved = Checkpoint(Path("runs/x"), 3, {}, {"identity": before}, versions=saved_versions())
    (note,) = _notes_of_changes(saved, check_identity(saved, after))
    assert note.startswith("changed since the checkpoint: the code of planted_layers")


def test_a_run_from_before_code_was_recorded_goes_on():
    now = identity()
    check({key: value for key, value in now.items() if key != "code"}, now)


@pytest.mark.fault(41)
def test_other_samples_under_the_same_name_are_another_run_unless_that_is_allowed():
    before, after = identity(), identity("+data.train.seed=1")
    told = r"samples of the training set differ \(their hash was [0-9a-f]{16}, now [0-9a-f]{16}\)"
    with pytest.raises(CheckpointError, match=rf"{told}.*'resume_allow=\[content\]'"):
        changes(before, after)
    assert changes(before, identity("data.validation.num_samples=64")) == []
    (change,) = changes(before, after, "content")
    assert re.fullmatch(told, change)


@pytest.mark.fault(41, "other data on resume", "refused")
@pytest.mark.parametrize("num_samples", [511, 513])
def test_a_training_set_that_grew_or_shrank_is_another_run(num_samples):
    with pytest.raises(CheckpointError, match=rf"data\.num_samples was 512, now {num_samples}"):
        changes(identity(), identity(f"data.train.num_samples={num_samples}"), "content")


def test_a_run_from_before_samples_were_compared_goes_on():
    now = identity()
    check({key: value for key, value in now.items() if key != "content"}, now)


@pytest.mark.fault(40, "other package versions on resume", "told")
def test_versions_that_changed_are_told():
    saved = Checkpoint(
        Path("runs/x"), 3, {}, {}, versions={"torch": "1.0", "largebatch": saved_versions()["largebatch"]}
    )
    (note,) = _notes_of_changes(saved, [])
    assert note.startswith("saved by torch 1.0, now ")


def test_a_run_whose_model_is_named_by_a_path_goes_on_where_the_same_files_lie_at_another(tmp_path: Path):
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "deep" / "x.json").write_text(content)
    plain = identity()

    def named(name: str) -> dict[str, Any]:
        model = {"_target_": "mine.Model", "name": str(tmp_path / name)}
        return plain | {"model": model, "model_files": files_named(model)}

    check(named("a"), named("b"))
    with pytest.raises(CheckpointError, match=r"model\.name was .*/a, now .*/c\."):
        check(named("a"), named("c"))
    old = named("a")
    del old["model_files"]  # as checkpoints were before
    check(old, named("a"))
    with pytest.raises(CheckpointError, match=r"model\.name was .*/a, now .*/b\."):
        check(old, named("b"))
