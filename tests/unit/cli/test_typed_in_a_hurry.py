"""What a hurried person types, in the words of other tools: told what to write, never taken for something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from largebatch import conf_dir
from largebatch.__main__ import main
from largebatch.cli.catalogue.composed import Catalogue
from largebatch.cli.composition.composing import CommandLine
from largebatch.cli.composition.problems import as_one, wrong_before_hydra, wrong_values
from largebatch.cli.composition.remedies import remedy
from largebatch.cli.composition.withheld import variable_problems
from largebatch.run.config import other_tools
from tests.unit.composing import GROUPS, compose_run

pytestmark = [pytest.mark.usefixtures("in_a_folder"), pytest.mark.quick]

RATE = "To give the peak rate itself, whatever the batch, write scaling=none scaling.base_lr=0.1."
BATCH = "Write batch.total=1024 if that is the batch of one optimizer step, over all ranks and accumulation steps."
ACCUMULATION = "More accumulation at the same batch is a smaller batch.max_micro."
RANKS = "torchrun --nproc-per-node 8 -m largebatch"
# Typed -> what the answer says. What stands behind `not:` it must not say: another experiment, or another thing.
TYPED = {
    r"parameters.freeze=[^stem\.,head]": (
        r"""Write 'parameters.freeze=["^stem\.","head"]'""",
    ),  # the shell took quotes
    "lr=0.1": (RATE, "not:+lr"),
    "learning_rate=0.1": (RATE,),
    "optimizer.lr=0.1": (RATE, "not:Did you mean"),
    "epochs=10": ("Write length=10ep.",),
    "max_steps=100": ("Write length=100steps.",),
    "max_epochs=10": ("Write length=10ep.",),
    "trainer.max_epochs=10": ("Write length=10ep.",),
    "max_duration=10ep": ("Write length=10ep: ",),
    "batch_size=1024": (BATCH, "not:base_batch_size"),
    "data.batch_size=1024": (BATCH, "not:base_batch_size"),
    "training.local_batch_size=8": ("batch.max_micro=8 limits the samples of one forward pass", "not:batch.total=8"),
    "per_device_train_batch_size=8": ("batch.max_micro=8", "not:batch.total=8"),
    "--batch-size 1024": (BATCH, "settings have no dashes", "not:There is no key 1024"),
    "--batch_size=1024": (BATCH,),
    "--lr 0.1": (RATE, "not:There is no key 0.1"),
    "--epochs 10": ("Write length=10ep.",),
    "--config my.yaml": ("give --config-dir FOLDER experiment=NAME.", "not:ambiguous"),
    "optimizer=LAMB": ("Did you mean 'optimizer=lamb'?", "not:'optimizer=sgd'"),
    "optimizer=Adam": ("optimizer=adamw optimizer._target_=torch.optim.Adam", "not:Did you mean"),
    "optimizer=rmsprop": ("There are: adamw, lamb, lars, muon, sgd.", "not:Did you mean"),
    "model=ResNet50": ("Did you mean 'model=resnet50'?",),
    "model=resnet34": ("There are: ", "not:Did you mean"),
    "model=vit_b_16": ("write FOLDER/model/NAME.yaml", "not:Did you mean"),
    "data=imagenet": ("Did you mean 'data=image_folder'?",),
    "wandb.entity=me": ("Did you mean 'logger.wandb.entity'?",),
    "wandb.project=mine": ("Did you mean 'logger.wandb.project'?",),
    "wandb=false": ("logger=none",),
    "seed 3": ("Write seed=3.", "not:hydra"),
    "gpus 8": (RANKS,),
    "gpus=8": (RANKS,),
    "devices=8": (RANKS,),
    "num_gpus=8": (RANKS,),
    "nproc=8": (RANKS,),
    "accelerator=gpu": ("CUDA_VISIBLE_DEVICES",),
    "strategy=fsdp": ("Ranks are data-parallel",),
    "grad_accum=4": (ACCUMULATION,),
    "gradient_accumulation_steps=4": (ACCUMULATION,),
    "trainer.accumulate_grad_batches=4": (ACCUMULATION,),
    "fp16=true": ("Write precision=fp16;",),
    "bf16=true": ("Write precision=bf16;",),
    "amp=true": ("precision=bf16 or precision=fp16",),
    "precision=16-mixed": ("Did you mean 'precision=fp16'?",),
    "precision=16": ("Did you mean precision=fp16?",),
    "compile=true": ("Did you mean 'precision.compile'?",),
    "weight_decay=0.1": ("Did you mean 'optimizer.weight_decay'?",),
    "momentum=0.9": ("Did you mean 'optimizer.momentum'?",),
    "optimizer.betas=[0.9,0.99]": ("It comes with optimizer=adamw, optimizer=lamb, optimizer=muon.",),
    "warmup=5": ("schedule.warmup=5ep, 5steps or 5samples",),
    "warmup_steps=500": ("Write schedule.warmup=500steps.",),
    "warmup_ratio=0.1": ("not a share of the run", "not:0.1ep"),
    "scheduler=cosine": ("Write schedule=NAME: constant, cosine, ",),
    "min_lr=1e-5": ("as a share of the peak", "not:end_factor=1e-5"),
    "workers=4": ("Write data.num_workers=4, per rank.",),
    "num_workers=4": ("Did you mean 'data.num_workers'?",),
    "output_dir=out": ("Write run.dir=out ",),
    "--output-dir out": ("Write run.dir=out ",),
    "checkpoint=x": ("Write resume=x ",),
    "ckpt_path=x.pt": ("Write resume=x.pt ",),
    "val_every=1": ("observers.evaluation.every=1ep or 1steps",),
    "log_every=10": ("Write observers.metrics.every=10, in steps.",),
    "save_steps=500": ("observers.checkpoint.every=",),
    "dropout=0.1": ("model.dropout=0.1 of model=gpt", "not:Did you mean"),
    "model.dropout=0.1": ("It comes with model=gpt, model=gpt2, model=mlp.",),
    "gradient_clip_val=1": ("Write clip_norm=1, ",),
    "sync_batchnorm=true": ("batch_norm=exact",),
    "mixup=0.2": ("Did you mean 'data.augment.mixup'?",),
    "data.mixup=0.2": ("Did you mean 'data.augment.mixup'?",),
    "ema=true": ("must be a group of keys. Set one of them, such as ema.",),
    "early_stopping=true": ("Did you mean 'observers.early_stopping'?",),
    "batch=1024": ("such as batch.total",),
    "length=10": ("a length is a number and a unit. Write 30ep, 500steps",),
    "length = 10ep": ("Write length=10ep.",),
    "length= 10ep": ("Write length=10ep.",),
    "lamb": ("Write optimizer=lamb.",),
    "my.yaml": ("give --config-dir FOLDER experiment=my.",),
    "run.name=a=b": ("Write 'run.name=\"a=b\"'.", "not:HYDRA_FULL_ERROR"),
    "optimizer.betas=[0.9, 0.99]": ("Write 'optimizer.betas=[0.9, 0.99]'.", "not:KEY=VALUE"),
    "optimizer.betas=[0.9": ("[ is not closed.",),
    "run.name='x": ("' is not closed.",),
    "seed=${oc.env:X": ("{ is not closed.",),
    "seed=${oc.env:LARGEBATCH_NOT_SET}": ("the environment has no variable LARGEBATCH_NOT_SET.",),
    "run.dir=~/runs": ("Write run.dir=$HOME/runs.",),
    "batch.total=8,192": ("One number: batch.total=8192.",),
    "seed=1,2": ("add --multirun",),
    "run.name=a,": ("a value is missing beside a comma",),
    "model.x=a!": ("Write 'model.x=\"a!\"'.",),
}


@pytest.mark.bad_input("unbalanced braces or quotes")
@pytest.mark.parametrize("typed", TYPED)
def test_the_answer_says_what_to_write(typed: str):
    said = answer(typed.split(" "))
    for expected in TYPED[typed]:
        word, is_wrong = expected.removeprefix("not:"), expected.startswith("not:")
        assert (word in said) is not is_wrong, said
    assert len(said.splitlines()) == 1


def answer(arguments: list[str]) -> str:
    """Without the start of a verb, which costs a hundred times as much; `test_all_errors_...` has that."""
    keys = CommandLine("plan", arguments, "plan").keys
    if found := variable_problems(arguments):
        return as_one(found)
    if wrong := wrong_before_hydra(arguments, keys):
        return as_one([one.text for one in wrong])
    (argument,) = arguments
    key, _, value = argument.partition("=")
    message = f"Could not override '{key}'."
    if key in GROUPS:
        message = f"Could not find '{key}/{value}'\nConfig search path\npath=file://{conf_dir()}"
    elif key in keys():
        return as_one(wrong_values(compose_run(argument), "train"))
    found = remedy(message, keys, arguments, Path(conf_dir()))
    assert found is not None
    assert found.arguments == (argument,)
    return found.text


def test_all_errors_of_a_command_line_are_one_list(capsys: pytest.CaptureFixture[str]):
    """Flags, grammar, a number for a group, a choice, two keys, a value: Hydra would tell one at a time."""
    typed = "seed 3 --lr 0.1 batch=64 optimizer=LAMB epochs=3 observers.metrics.evry=1 clip_norm=-1"
    assert main(["plan", *typed.split()]) == 2
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "largebatch: 7 errors on the command line:"
    assert [line.split(":")[0].removeprefix("  - ") for line in others] == [
        "--lr 0.1", "seed 3", "batch=64", "optimizer=LAMB", "epochs=3", "observers.metrics.evry=1", "clip_norm=-1"
    ]  # fmt: skip


def test_a_file_of_ones_own_counts_in_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: mine.Net\nrate: 0\n", encoding="utf-8")
    assert main(["plan", "lr=1", "--config-dir", str(tmp_path), "model=mine", "model.rat=1", "seed=x"]) == 2
    _, *others = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in others] == ["  - lr=1", "  - model.rat=1", "  - seed=x"]
    assert "Did you mean 'model.rate'?" in others[1]


def test_what_the_sentences_tell_to_write_exists():
    """Every KEY=VALUE and GROUP=CHOICE of every sentence, so that no rename leaves a wrong lead."""
    catalogue = Catalogue((Path(conf_dir()),))
    choices = {group: catalogue.choices(group) for group in catalogue.groups()}
    keys = catalogue.settings("train", {}).keys() | {"model.dropout", "model.NAME", "optimizer.betas", "optimizer.eps"}
    keys |= {"optimizer.clip", "data.path", "data.image_size", "data.context_length", "schedule.gamma"}
    keys |= {"schedule.milestones", "wandb.project"}
    sentences = [*other_tools._SENTENCES.values()]
    sentences += [text for group in other_tools._NEAR_CHOICES.values() for text in group.values()]
    written = {found for text in sentences for found in re.findall(r"(?<![\w-])([a-z][\w.]*)=([\w{}]*)", text)}
    assert len(written) > 60
    for key, value in written:
        if key in choices and value != "NAME":
            assert value in choices[key], f"{key}={value}"
        else:
            assert key in keys or key in choices, key


def test_a_word_of_another_tool_is_never_a_key_of_ours():
    """It would then be refused, or taken for the other thing."""
    top = {key for key in Catalogue((Path(conf_dir()),)).settings("train", {}) if "." not in key}
    words = {word for words in other_tools._SENTENCES for word in words.split()}
    assert words & top == set()
    assert {same for words in other_tools._SAME.values() for same in words.split()} & other_tools._SAME.keys() == set()
