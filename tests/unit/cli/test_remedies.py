"""A named thing that does not exist is refused, in every verb, with what was meant; never with another experiment."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from largebatch import conf_dir
from largebatch.__main__ import main
from largebatch.cli.composition.composing import compose_config
from largebatch.cli.composition.remedies import keys_of, remedy
from largebatch.cli.process import refusing
from largebatch.run.config.did_you_mean import did_you_mean, meant_by_key
from tests.unit.composing import compose_run

pytestmark = [pytest.mark.usefixtures("in_a_folder"), pytest.mark.quick]
NO_KEY, NO_CHOICE, NO_DASHES = "there is no such key. ", "there is no such choice. ", "settings have no dashes, "


@pytest.mark.bad_input(
    "an unknown optimizer", "an unknown key", "a plus before a group that has a choice", "unbalanced braces or quotes"
)
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["sed=1"], f"sed=1: {NO_KEY}Did you mean 'seed'?"),
        (["optimzer=lars"], f"optimzer=lars: {NO_KEY}Did you mean 'optimizer'?"),
        (["experment=quickstart"], f"experment=quickstart: {NO_KEY}Did you mean 'experiment'?"),
        (["~observers.progres"], f"~observers.progres: {NO_KEY}Did you mean 'observers.progress'?"),
        (["optimizer=LAMB"], f"optimizer=LAMB: {NO_CHOICE}Did you mean 'optimizer=lamb'?"),
        (["model=resnet"], f"model=resnet: {NO_CHOICE}Did you mean 'model=resnet18' or 'model=resnet50'?"),
        (["experiment=quickstrat"], f"experiment=quickstrat: {NO_CHOICE}Did you mean 'experiment=quickstart'?"),
        (["experiment=gd_variants"], "Did you mean 'experiment=textbook/gd_variants'?"),
        (["experiment=[quickstart,linear_regresion]"], "Did you mean 'experiment=linear_regression'?"),
        (["debug=tniy"], f"debug=tniy: {NO_CHOICE}Did you mean 'debug=tiny'? There are: overfit, profile, "),
        (["hydra/launcher=submitit_slrum"], "Did you mean 'hydra/launcher=submitit_slurm'?"),
        (["optimizer=lars", "lars=simcrl"], f"lars=simcrl: {NO_CHOICE}Did you mean 'lars=simclr'?"),
        (["lars=simclr"], f"lars=simclr: {NO_KEY}The group lars comes with optimizer=lars: add this choice."),
        # Looks alike, and is another experiment.
        (["model=resnet34"], f"model=resnet34: {NO_CHOICE}There are: "),
        (["model=vit"], f"model=vit: {NO_CHOICE}There are: "),
        (["data=cifar100"], f"data=cifar100: {NO_CHOICE}There are: "),
        (["optimizer=adam"], f"optimizer=adam: {NO_CHOICE}torch's, whose decay is part of the gradient: "),
        (["model=mine.Net"], "For a class of your own write FOLDER/model/NAME.yaml with `_target_: package.Class`"),
        (["loss=mse"], "loss=module loss._target_=torch.nn.MSELoss."),  # ours is half of it
        (["loss=hinge"], "For any loss of torch give loss=module loss._target_=torch.nn.NAME."),
        (["data.mixup=0.2"], f"data.mixup=0.2: {NO_KEY}Did you mean 'data.augment.mixup'?"),
        (["zzzzzz=1"], f"zzzzzz=1: {NO_KEY}Known here: seed, "),
        (["a.b=1"], f"a.b=1: {NO_KEY}There is no section a either."),
        # What other tools call it.
        (["precision=bf16-mixed"], "Did you mean 'precision=bf16'?"),
        (["precision=half"], "Did you mean 'precision=fp16'?"),
        (["loss=ce"], "Did you mean 'loss=cross_entropy'?"),
        (["data.batch_size=64"], f"data.batch_size=64: {NO_KEY}Write batch.total=64 if that is the batch of one "),
        (["optimizer.lr=0.1"], f"{NO_KEY}scaling.base_lr is the rate at a batch of scaling.base_batch_size samples, "),
        (["trainer.max_epochs=10"], f"{NO_KEY}Write length=10ep."),
        (["wandb.project=mine"], f"{NO_KEY}Did you mean 'logger.wandb.project'?"),
        (["+debug=tiny"], "debug has a choice already: drop the plus of +debug=tiny."),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_what_does_not_exist_is_told_with_what_was_meant(overrides: list[str], told: str, known: list[str]):
    """Asked for without the start of a verb, which costs ten times as much."""
    with pytest.raises(HydraException) as caught:
        compose_config(overrides)
    message = f"{caught.value}\n{caught.value.__cause__ or ''}"
    found = remedy(message, lambda: known, overrides, Path(conf_dir()))
    assert found is not None
    assert told in found.text
    assert set(found.arguments) <= set(overrides)


@pytest.fixture(scope="module")
def known() -> list[str]:
    return list(keys_of(OmegaConf.to_container(compose_run())))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["batch.totl=64"], f"batch.totl=64: {NO_KEY}Did you mean 'batch.total'?"),
        (["optimizer=sdg"], f"optimizer=sdg: {NO_CHOICE}Did you mean 'optimizer=sgd'?"),
        (["run.dir=läufe/ü", "model=größe"], f"model=größe: {NO_CHOICE}There are: "),
        (["--epochs", "10"], f"--epochs 10: {NO_DASHES}they are KEY=VALUE. Write length=10ep."),
        (["--batch-size=64"], f"--batch-size=64: {NO_DASHES}they are KEY=VALUE. Write batch.total=64 if that is "),
        (["--optimizer", "lars"], f"--optimizer lars: {NO_DASHES}write optimizer=lars."),
        (["--scaling.base_lr=0.1"], "write scaling.base_lr=0.1. In a W&B sweep, `command` has ${args_no_hyphens} "),
        (["--help", "batch.totl=3"], f"batch.totl=3: {NO_KEY}Did you mean 'batch.total'?"),
        (["help"], "help: an argument is KEY=VALUE. Write --help for every key, or `largebatch help WORD` for one."),
        (["--help", "words"], "largebatch: words: an argument is KEY=VALUE."),
        (["--hlp"], "--hlp: there is no such flag. Did you mean '--help'?"),
        (["--config", "mine.yaml"], "give --config-dir FOLDER experiment=NAME."),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_a_verb_says_it_in_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert told in said.err.splitlines()[-1]
    assert "HYDRA_FULL_ERROR" not in said.err


@pytest.mark.parametrize(
    "verb",
    ["train", "plan", "verify", "study", "find-lr", "find-micro", "measure sharpness", "textbook lars", "bench loop"],
)
def test_no_verb_goes_on_without_the_choice_it_was_given_also_of_a_folder_of_ones_own(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """`optional` in a list of defaults forgave a misspelt name: the default config trained instead."""
    group = "debug" if verb == "train" else "experiment"
    (tmp_path / "mine" / group).mkdir(parents=True)
    (tmp_path / "mine" / group / "warm_start.yaml").write_text("# @package _global_\nseed: 3\n", encoding="utf-8")
    assert main([*verb.split(), "--config-dir", str(tmp_path / "mine"), f"{group}=warmstart"]) == 2
    said = capsys.readouterr().err
    assert f"{group}=warmstart: {NO_CHOICE}Did you mean '{group}=warm_start'?" in said
    assert f"There are in {conf_dir()} and {tmp_path / 'mine'}: " in said
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]


def test_an_argument_that_a_class_of_ones_own_lacks_in_its_file_is_told_with_the_others_and_the_plus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("name: mine\ntrain: {_target_: mine.Images, split: a}\n", "utf-8")
    assert main(["train", "--config-dir", str(tmp_path), "data=mine", "data.train.width=4", "data.train.splt=b"]) == 2
    told = capsys.readouterr().err
    assert (
        f"data.train.width=4: {NO_KEY}Known here: _target_, split. Another argument of the class takes a plus: " in told
    )
    assert "+data.train.width=4. " in told
    assert f"data.train.splt=b: {NO_KEY}Did you mean 'data.train.split'?" in told


def test_a_misspelt_choice_inside_a_file_is_told_with_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /optimizer: LARS\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    assert main(["plan", "--config-dir", str(tmp_path), "experiment=mine"]) == 2
    assert f"optimizer=LARS: {NO_CHOICE}Did you mean 'optimizer=lars'?" in capsys.readouterr().err


def test_a_file_that_is_no_yaml_is_one_line_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("name: mine\ntrain: {_target_: ?}\n", encoding="utf-8")
    assert main(["train", "--config-dir", str(tmp_path), "data=mine"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not valid YAML: " in line
    assert 'mine.yaml", line 2, column 19' in line


def test_settings_of_a_group_in_braces_are_hydras_business(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "batch={total: 64}"]) == 0
    assert "64 samples" in " ".join(capsys.readouterr().out.split())


def test_only_the_first_rank_of_a_machine_says_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(refusing, "_HEAD_START_S", 0)
    for argument in ("sed=1", "run.dir=a=b"):
        assert main(["plan", argument]) == 2
        assert capsys.readouterr().err == ""


@pytest.mark.bad_input("a number for a group, as in batch=64")
@pytest.mark.parametrize("argument", ["batch=64", "batch=null", "schedule=0.1", "experiment=null"])
def test_a_number_for_a_group_is_wrong_input_with_the_choices(argument: str, capsys: pytest.CaptureFixture[str]):
    """Of a number for `batch`, which is meant for `batch.total`, Hydra makes a traceback."""
    assert main(["plan", "seed=1", argument]) == 2
    said = capsys.readouterr().err
    group = argument.partition("=")[0]
    choices = ", ".join(sorted(path.stem for path in Path(conf_dir(), group).glob("*.yaml")))
    assert said.startswith(f"largebatch: {argument}: {group} is a group of settings, chosen by name ({choices}). ")
    assert (f"such as {group}." in said) is (group != "experiment")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "name", "is_meant"),
    [
        ("trian", "train", True),
        ("batch.totl", "batch.total", True),
        ("batchtotal", "batch.total", True),
        ("shakespere_gpt", "shakespeare_gpt", True),
        ("Quick-Start", "quickstart", True),
        ("lr", "rl", False),  # of two letters one is half of the word
        ("min_micro", "max_micro", False),
        ("paper_v2", "paper_v3", False),
        ("sgd", "lars", False),
    ],
)
def test_a_name_is_meant_if_each_of_its_words_is_a_slip_away(given: str, name: str, is_meant: bool):
    assert bool(did_you_mean(given, [name, "unrelated"])) is is_meant
    assert bool(meant_by_key(f"observers.{given}", [f"observers.{name}", "unrelated"])) is is_meant


def test_a_part_of_a_key_is_no_suggestion_for_it():
    assert (
        did_you_mean("gd_variants", ["textbook/gd_variants", "textbook/lars"])
        == " Did you mean 'textbook/gd_variants'?"
    )
    assert meant_by_key("observers.limit", ["data.limit", "observers.batch_limit"]) == ""


def test_a_file_without_a_package_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("batch: {total: 16}\n", encoding="utf-8")
    assert main(["plan", "--config-dir", str(tmp_path), "experiment=mine"]) == 2
    told = "experiment: its file sets keys below experiment, which has none. Start the file with `# @package"
    assert told in capsys.readouterr().err


def test_runs_of_a_sweep_are_runs_of_their_own_in_wandb(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    sweep = ["train", "--multirun", "seed=0,1"]
    assert main([*sweep, "logger.wandb.id=x"]) == 2
    monkeypatch.setenv("WANDB_RUN_ID", "x")
    assert main(sweep) == 2
    said = [f"largebatch: {name}: W&B would merge all runs" for name in ("logger.wandb.id=x", "WANDB_RUN_ID")]
    assert [line.rpartition(" of the sweep")[0] for line in capsys.readouterr().err.splitlines()] == said


def test_a_misspelt_subject_of_study_is_told(capsys: pytest.CaptureFixture[str]):
    assert main(["study", "analyse", "x.csv"]) == 2
    assert "'analyse' is not one of its subjects. Did you mean 'analyze'?" in capsys.readouterr().err


def test_a_choice_that_an_experiment_overrules_is_told_or_refused(capsys: pytest.CaptureFixture[str]):
    """SGD at the rate of LARS, ten, and a full batch of 32 samples were trained without a word."""
    assert main(["plan", "experiment=digits_large_lars", "optimizer=sgd"]) == 0
    assert capsys.readouterr().err == (
        "largebatch: experiment=digits_large_lars overrules optimizer=sgd: scaling.base_lr=10.0 (not 0.05), "
        "scaling.base_batch_size=718 (not 32). To keep the choice, add scaling.base_lr=0.05 "
        "scaling.base_batch_size=32.\n"
    )
    assert main(["plan", "debug=tiny", "batch=full"]) == 2
    assert "debug=tiny overrules batch=full: batch.total=64 (not full)." in capsys.readouterr().err
    for arguments in (
        ["debug=tiny", "batch=full", "batch.total=full"],
        [
            "experiment=digits_large_lars",
            "optimizer=lars",
            "lars=simclr",
            "scaling.base_lr=5",
            "scaling.base_batch_size=64",
        ],
        ["debug=tiny", "schedule=step"],
        ["optimizer=adamw", "batch=full"],
        ["experiment=linear_regression", "batch=full", "scaling.base_lr=0.1"],  # as its file says
    ):
        assert main(["plan", *arguments]) == 0
        assert capsys.readouterr().err == ""


@pytest.mark.bad_input("a number that YAML reads as another one, as 010 and 1:30")
def test_a_number_that_yaml_reads_as_another_one_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "own.yaml"
    arguments = ["plan", "--config-dir", str(tmp_path), "experiment=own"]
    file.write_text("# @package _global_\nseed: 010  # 1:30\ndata:\n  timeout_s: 1:30\nrun: {name: '010'}\n")
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert f"- {file}, line 2: YAML 1.1 reads 010 as 8. Write 8, or '010' for the text.\n" in told
    assert f"- {file}, line 4: YAML 1.1 reads 1:30 as 90. Write 90, or '1:30' for the text.\n" in told
    file.write_text("# @package _global_\nseed: 10\nlength: 3ep\nrun: {name: 2026-01-02_12:30}\n")
    assert main(arguments) == 0


def test_a_choice_of_one_s_own_with_a_name_of_ours_is_refused_because_hydra_passes_over_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    for name in ("mlp", "mine"):
        (tmp_path / "model" / f"{name}.yaml").write_text(
            "_target_: torch.nn.Linear\nin_features: 64\nout_features: 10\n"
        )
    assert main(["plan", "--config-dir", str(tmp_path), "model=mlp"]) == 2
    message = capsys.readouterr().err
    assert f"passes over {tmp_path}/model/mlp.yaml, which has the same name" in message
    assert main(["plan", "--config-dir", str(tmp_path), "model=mlp", "--cfg", "job"]) == 0
    assert main(["plan", "--config-dir", str(tmp_path), "model=linear", "plan.format=json"]) == 0  # ours alone


@pytest.mark.parametrize(
    ("verb", "instead"),
    [
        (["measure", "gap"], "measure.checkpoint=PATH"),
        (["verify"], "model.weights=PATH"),
        (["find-lr"], "model.weights=PATH"),
        (["study"], "The same command with the same run.dir continues it."),
    ],
    ids=" ".join,
)
def test_a_verb_that_resumes_nothing_refuses_resume(
    verb: list[str], instead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, "resume=runs/mine"]) == 2
    assert instead in capsys.readouterr().err


def test_the_keys_that_a_sweep_agent_passes_as_flags_are_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--scaling.base_lr=0.1", "--batch.total=32"]) == 2
    message = capsys.readouterr().err
    assert "write scaling.base_lr=0.1 batch.total=32. In a W&B sweep, `command` has ${args_no_hyphens}" in message
    assert message.count("no dashes") == 1
