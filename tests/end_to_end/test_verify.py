"""`largebatch verify`: sound runs pass, and each defect is caught and named."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from largebatch.__main__ import main
from largebatch.cli.verify import run as run_verify
from largebatch.experiments.bench.verify import Settings, count_all
from largebatch.experiments.verify.planted import DEFECTS
from largebatch.experiments.verify.ranks import verify_on_rank
from largebatch.gradient import reductions
from largebatch.run.config.reading import ConfigError
from tests.end_to_end import mutants
from tests.unit.composing import compose_run

pytestmark = pytest.mark.usefixtures("in_a_folder")

HERE = "tests.end_to_end.mutants"
# 22 samples are 11 and 11, or 8, 7 and 7. The even shares add nothing but in the first case.
SMALL = ["data=synthetic", "model=linear", "batch.total=22", "verify.world_sizes=[1,3]", "verify.steps=2"]
PINNED = "batch.micro=5"
STATES = "tests.unit.run.test_dry_run_state"


@pytest.fixture
def verify(ranks, monkeypatch: pytest.MonkeyPatch):
    """What the verb does once it is composed, on ranks of the test session: (exit code, what verify.json says)."""

    def run(*overrides: str, rank: Any = verify_on_rank) -> tuple[int, dict[str, Any]]:
        def start(world_size: int, *arguments: Any) -> Any:
            return ranks(world_size).run(rank, *arguments)[0]

        monkeypatch.setattr("largebatch.experiments.verify.outcome.start_ranks", start)
        code = run_verify(compose_run(*SMALL, "run.dir=out", *overrides, config_name="verify"), list(overrides))
        record = json.loads(Path("out/verify.json").read_text())
        return code, record | record["numbers"]

    return run


def own(name: str, group: str = "model") -> list[str]:
    """A class of the mutants in place of the model or the loss."""
    kept = {"model": "in_features num_outputs", "loss": "label_smoothing"}[group]
    return [f"{group}._target_={HERE}.{name}", *(f"~{group}.{key}" for key in kept.split() if group == "model")]


@pytest.mark.parametrize(
    "overrides",
    [
        ["verify.world_sizes=[1,2,3]"],
        pytest.param([*own("Shifted"), "optimizer=adamw"], marks=pytest.mark.other_processor),
        ["model=convnet", "model.width=2", PINNED],
        ["model=convnet", "model.width=2", "batch_norm=exact", "batch.max_micro=5"],
        pytest.param(["model=convnet", "model.width=2", "batch_norm=exact", PINNED], marks=pytest.mark.other_processor),
        ["model=mlp", "model.hidden=[8]", "model.dropout=0.5", PINNED],
        ["model=convnet", "model.width=2", PINNED, "batch.reduction=ordered", "data.augment.crop_padding=1"],
        ["data=paired_views", "model=two_views", "loss=info_nce"],
        [*own("Skips"), PINNED, "optimizer=adamw"],
        ["optimizer=lars", "clip_norm=0.1"],
        ["optimizer=lamb", "scaling.base_lr=0.1", "verify.precision=fp32"],
    ],
    ids=[
        "linear",
        "gradient 0",
        "pinned batch norm",
        "exact batch norm",
        "exact and pinned",
        "pinned dropout",
        "ordered",
        "contrastive",
        "skipped modules",
        "clipped LARS",
        "LAMB in fp32",
    ],
)
def test_a_sound_run_is_the_same_on_every_factorization(verify, overrides):
    code, record = verify(*overrides)
    assert (code, record["same"], record["causes"]) == (0, True, [])
    assert {case["world_size"] for case in record["cases"]} == {1, 3, *([2] if "[1,2,3]" in overrides[0] else [])}
    for kind in ("gradient", "weights", "statistics"):
        bounds = record["bounds"][kind]
        assert all(0 <= case[kind][name] <= bound for case in record["cases"] for name, bound in bounds.items())
        assert all(bound < 1e-6 for bound in bounds.values()) or record["precision"] == "fp32", "rounding, not more"
        assert bounds.keys() <= record["cases"][0][kind].keys()


@pytest.mark.parametrize(
    ("overrides", "causes"),
    [
        (["model=convnet", "model.width=2"], ["batch norm over micro-batches"]),
        (["model=mlp", "model.hidden=[8]", "model.dropout=0.5"], ["dropout over micro-batches"]),
        ([*own("RankSeeded"), PINNED], ["random draws that depend on the rank"]),
        ([*own("CouplesSamples")], ["model couples samples"]),
        ([*own("DrawsByItself"), PINNED], ["state outside of buffers"]),
        ([*own("Remembers"), PINNED], ["weights or buffers that a pass moves with its samples"]),
        ([f"data.train={{_target_: {STATES}.Drifts, split: train}}"], ["state of the data set"]),
        ([*own("MeanLoss", "loss")], ["mean of means"]),
        ([*own("CoupledLoss", "loss")], ["batch-coupled loss"]),
        ([*own("ReducingLoss", "loss")], ["collective inside the loss or the model"]),
        ([*own("OnlyShifted"), "optimizer=adamw", "optimizer.eps=0.0"], ["optimizer amplifies rounding"]),
    ],
    ids=lambda part: part[0] if len(part) == 1 else "",
)
def test_each_defect_of_the_users_is_caught_and_named_and_nothing_else(verify, capsys, overrides, causes):
    code, record = verify(*overrides, "verify.world_sizes=[1,2]")
    assert (code, record["same"]) == (1, False)
    assert [cause["name"] for cause in record["numbers"]["causes"]] == causes
    assert f"cause: {causes[0]}" in capsys.readouterr().out


def test_weights_that_rounding_decides_are_told_and_shown_by_their_gradient_alone(verify, capsys):
    """Without eps, Adam's step is as long for rounding as for any gradient."""
    code, record = verify(*own("Shifted"), "optimizer=adamw", "optimizer.eps=0.0")
    assert (code, record["causes"], record["bounds"]["undecided"]) == (0, [], ["shift"])
    assert record["bounds"]["weights"].keys() == record["bounds"]["gradient"].keys() - {"shift"}
    assert "1 of 5 tensors are compared by their gradients alone" in capsys.readouterr().out


def test_two_parameters_over_one_memory_are_refused(verify):
    with pytest.raises(ConfigError, match=r"again and last\.bias are two parameters over one memory"):
        verify(*own("TiedByMemory"))


@pytest.mark.other_processor
def test_false_alarms_and_missed_defects_are_counted_and_there_are_none(ranks):
    """All defects of `bench verify` on its oddest net: 0-gradients, a tied, a frozen and a dead layer, batch norm."""
    settings = Settings(nets=("odd",), optimizers=("AdamW without eps", "Muon"), seeds=1)
    for trial in ranks(2).run(count_all, settings)[0]:
        assert trial.sound < 0.25, "far from its bound"
        assert len(trial.defects) == len(DEFECTS)
        assert {name for name, share in trial.defects.items() if share < 4} == set()
        assert set(trial.undecided) <= {"first.bias", "shift"}, "the gradients that are rounding alone"


COMPRESSED = ["verify.precision=fp32", "precision.gradient_compression=bf16"]


def verified_under_a_launcher(overrides: list[str], folder: str, *, doubles: bool) -> tuple[int, list[str]]:
    """Exit code and causes on the ranks of this job, whose compression may send twice the gradient."""

    def doubled(state: Any, bucket: Any) -> Any:
        bucket.buffer().mul_(2)
        return bf16_compress_hook(state, bucket)

    with pytest.MonkeyPatch.context() as patched:
        if doubles:
            patched.setitem(reductions._ALL_REDUCES, "bf16", doubled)
        code = run_verify(compose_run(*SMALL, f"run.dir={folder}", *overrides, config_name="verify"), overrides)
    record = json.loads(Path(folder, "verify.json").read_text()) if os.environ["RANK"] == "0" else {"causes": []}
    return code, [cause["name"] for cause in record.get("numbers", record)["causes"]]


@pytest.mark.parametrize(
    ("tolerance", "doubles", "expected"),
    [("null", False, (1, ["gradient compression"])), ("0.1", False, (0, [])), ("0.1", True, (1, []))],
)
def test_what_train_does_to_gradients_between_ranks_is_in_what_is_verified(
    ranks, tmp_path, tolerance, doubles, expected
):
    """A defect of a compression: its rounding is named and may be accepted, twice the gradient may not."""
    overrides = [*COMPRESSED, f"verify.tolerance={tolerance}"]
    found = ranks(2).run(verified_under_a_launcher, overrides, str(tmp_path / "out"), doubles=doubles)
    assert found == [expected, (expected[0], [])]


def test_a_module_that_couples_samples_is_named(verify):
    _, record = verify(*own("CouplesSamples"))
    assert "first in centre (Centre)" in record["causes"][0]["text"]


def test_an_average_over_ranks_instead_of_samples_is_named(verify):
    code, record = verify("verify.world_sizes=[2,3]", "batch.micro=1", rank=mutants.ranks_alike)
    assert code == 1
    assert [cause["name"] for cause in record["numbers"]["causes"]] == ["unequal shares"]


def test_a_defect_without_a_known_cause_is_still_a_failure(verify, capsys):
    code, record = verify(rank=mutants.off_by_a_little)
    assert (code, record["causes"]) == (1, [])
    assert "cause: not found" in capsys.readouterr().out


def test_wrong_options_are_wrong_input(capsys):
    assert main(["verify", *SMALL, "verify.world_sizes=[1,64]"]) == 2
    assert "verify.world_sizes=[1, 64]: A global batch of 22 cannot be shared by 64 ranks" in capsys.readouterr().err
    assert main(["verify", *SMALL, "verify.steps=0", "verify.precision=fp16"]) == 2
    printed = capsys.readouterr().err
    assert "verify.steps=0: must be at least 1." in printed
    assert "verify.precision=fp16: must be 'fp64' or 'fp32'." in printed


def worlds_of_cases() -> set[int]:
    return {case["world_size"] for case in json.loads(Path("out/verify.json").read_text())["numbers"]["cases"]}


def test_it_starts_its_own_ranks(capsys: pytest.CaptureFixture[str]):
    assert main(["verify", *SMALL, "verify.world_sizes=[2]", "run.dir=out"]) == 0
    assert capsys.readouterr().out.count("same: the largest error is ") == 1
    assert worlds_of_cases() == {2}


def verify_as_launched(folder: Path) -> tuple[int, str]:
    """Exit code and output of the verb in a process that has the environment of a launched rank."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = main(["verify", *SMALL, f"run.dir={folder}"])
    return code, output.getvalue()


def test_it_uses_the_ranks_of_a_launcher(ranks):
    (code, output), silent = ranks(2).run(verify_as_launched, Path("out").resolve())
    assert (code, silent) == (0, (0, ""))
    assert output.count("same: the largest error is ") == 1
    assert worlds_of_cases() == {2}
