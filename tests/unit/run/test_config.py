"""conf/ and the schema: every choice parses, and everything wrong with a config is in one report."""

from __future__ import annotations

import itertools
import os
import pickle
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict

from largebatch import conf_dir
from largebatch.batch.joint_scaling import JOINT_RULES
from largebatch.optim import LAMB_PRESETS, LARS_PRESETS
from largebatch.run.config.reading import ConfigError, parse_config, public_values
from largebatch.run.config.schema import TrainConfig
from largebatch.run.initial_state import build_optimizer
from tests.unit.composing import GROUPS, compose_choices, compose_run

pytestmark = pytest.mark.quick

# Chosen inside of a choice: which formula optimizer=lars and optimizer=lamb stand for.
PRESETS = {"lars": LARS_PRESETS, "lamb": LAMB_PRESETS}
APART = {"experiment", "debug", *PRESETS}
# What some choices leave to the person.
MISSING = {"num_classes": 10, "vocab_size": 65, "mask_token": 3}
SIZES = {"num_classes": 10, "num_channels": 3, "num_features": 64, "image_size": 32, "vocab_size": 65}


def combinations() -> list[tuple[str, ...]]:
    """Choice i of every group at once, those with fewer choices over again; some models have data of their own kind."""
    single = {group: names for group, names in GROUPS.items() if group not in APART}
    partners = {
        "gpt": "text",
        "hugging_face": "tokens",
        "own": "own",
        "gpt2": "drawn_tokens",
        "bert_large": "masked_text",
        "two_views": "paired_views",
        "two_views_convnet": "drawn_images",
        "linear": "linear_regression",
        "quadratic": "noisy_quadratic",
    }
    others = itertools.cycle(name for name in single["data"] if name not in {*partners.values(), "hf_disk"})
    rows = []
    for number in range(max(map(len, single.values()))):
        row = {group: names[number % len(names)] for group, names in single.items()}
        row["data"] = partners.get(row["model"]) or next(others)
        rows.append(tuple(f"{group}={name}" for group, name in row.items()))
    rows.append(tuple(f"{group}={name}" for group, name in {**row, "model": "gpt", "data": "hf_disk"}.items()))
    return rows


def parse(*overrides: str) -> TrainConfig:
    return parse_config(compose_run(*overrides))


def errors(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(*overrides)
    return caught.value.errors


@pytest.mark.parametrize("choices", combinations(), ids=lambda choices: choices[-1])
def test_every_choice_of_every_group_parses(choices: tuple[str, ...]):
    config = compose_run(*choices)
    for section in (config.data, config.data.train, config.data.validation, config.model, config.loss):
        for key in section:
            if OmegaConf.is_missing(section, key):
                section[key] = MISSING.get(str(key), "X")
    if not isinstance(config.schedule.decay, str):
        config.schedule.decay._target_ = "mine.decay"
    with open_dict(config.data):
        for key, value in SIZES.items():  # of data that a model does not come with
            config.data.setdefault(key, value)
    parsed = parse_config(config)
    chosen = dict(choice.split("=") for choice in choices)
    rate = JOINT_RULES[chosen["scaling"]].lr
    assert (parsed.scaling.rule, parsed.schedule.decay_name) == (rate, chosen["schedule"])
    assert parsed.precision.compute == chosen["precision"]


def test_the_combinations_leave_no_choice_out():
    chosen = {choice for choices in combinations() for choice in choices}
    single = {f"{group}={name}" for group in GROUPS.keys() - APART for name in GROUPS[group]}
    assert chosen == single


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in ("experiment", "debug") for name in GROUPS[group]])
def test_every_experiment_and_debug_file_parses_with_nothing_but_its_data(choice: str):
    config = compose_run(choice)
    if config.data.name in ("cifar10", "text"):
        config.data.path = "X"
    if choice.startswith("debug=short_"):  # the model is that of the recipe's short form
        config.model = OmegaConf.create({"_target_": "torch.nn.Identity"})
    parsed = parse_config(config)
    assert parsed.run.title in (choice.partition("=")[2], f"debug-{choice.partition('=')[2]}")


def test_every_yaml_file_is_a_choice_of_a_group_that_the_run_composes():
    files = {path.relative_to(conf_dir()).as_posix() for path in Path(conf_dir()).rglob("*.yaml")}
    # tests/unit/test_chapter.py and test_study.py
    apart = {
        file
        for file in files
        if file.startswith(
            (
                "experiment/advice/",
                "experiment/attribute/",
                "experiment/study/",
                "experiment/textbook/",
                "advise/",
                "attribute/",
                "study/",
            )
        )
    }
    apart |= {file for file in files if file.startswith("experiment/recipe/")}  # tests/multiprocess/test_recipes.py
    verbs = ("advise", "attribute", "textbook", "find_lr", "find_micro", "measure", "plan", "study", "train", "verify")
    of_verbs = {f"{verb}.yaml" for verb in verbs}
    assert files - apart == of_verbs | {f"{group}/{name}.yaml" for group, names in GROUPS.items() for name in names}
    defaults = Path(conf_dir(), "train.yaml").read_text()
    groups = GROUPS.keys() - PRESETS.keys()
    assert all(f"- {group}: " in defaults or f"- optional {group}: " in defaults for group in groups)
    for name in PRESETS:
        assert f"- /{name}: paper\n" in Path(conf_dir(), "optimizer", f"{name}.yaml").read_text()


def test_a_preset_on_the_command_line_is_that_of_a_program_and_the_class_takes_it():
    for name, presets in PRESETS.items():
        keys = parse(f"optimizer={name}").optimizer.keys()
        for preset, options in presets.items():
            config = parse(f"optimizer={name}", f"{name}={preset}", "model=linear")
            assert options == {key: config.optimizer[key] for key in presets["paper"]}
            assert config.optimizer.keys() == keys
            optimizer = build_optimizer(config, torch.nn.Linear(3, 2))
            assert all({key: group[key] for key in options} == options for group in optimizer.param_groups)


def test_the_preset_of_the_paper_is_the_default_and_an_option_may_be_given_beside():
    for name in PRESETS:
        assert parse(f"optimizer={name}") == parse(f"optimizer={name}", f"{name}=paper")
    lars = parse("experiment=digits_large_lars", "lars=timm")
    assert (lars.optimizer["lr_placement"], lars.scaling.base_lr) == ("outside", 10.0)
    assert parse("optimizer=lars", "optimizer.nesterov=true").optimizer["nesterov"] is True


def test_the_textbook_rate_moves_weights_as_the_papers_does():
    paper, textbook = parse("optimizer=lars"), parse("optimizer=lars", "lars=textbook")
    rates = [run.scaling.base_lr * run.optimizer["trust_coefficient"] for run in (paper, textbook)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)


def test_the_defaults_need_no_argument():
    parsed = parse()
    assert (parsed.batch.total, parsed.seed, parsed.data.name) == (32, 0, "digits")


def test_an_optimizer_brings_its_rate_and_its_rule_and_data_bring_their_loss():
    lamb = parse("optimizer=lamb")
    assert (lamb.scaling.rule, lamb.scaling.base_lr, lamb.scaling.base_batch_size) == ("sqrt", 6.25e-4, 512)
    lars = parse("optimizer=lars")
    assert (lars.scaling.rule, lars.scaling.base_lr, lars.scaling.base_batch_size) == ("linear", 10.0, 4096)
    assert parse("optimizer=lamb", "scaling=linear").scaling.rule == "linear"
    text = parse("data=text", "data.path=X", "data.vocab_size=65")
    assert text.loss["_target_"] == "largebatch.losses.NextToken"
    assert text.model["vocab_size"] == 65


def test_the_large_batch_experiments_differ_from_the_baseline_in_what_they_say():
    baseline, sgd, lars = (parse(f"experiment=digits_{name}") for name in ("baseline", "large_sgd", "large_lars"))
    assert [run.batch.total for run in (baseline, sgd, lars)] == [32, 718, 718]
    for key in ("seed", "length", "model", "data", "loss", "parameters", "precision"):
        assert getattr(sgd, key) == getattr(lars, key) == getattr(baseline, key)
    assert sgd.optimizer == baseline.optimizer != lars.optimizer


def test_full_is_a_batch():
    assert parse("batch=full").batch.total == "full"
    assert parse("batch=sgd").batch.total == 1


FOLDER = (
    "names a folder: 1 to 255 printable bytes, without /, without a blank at either end or a dot at the end, and no "
    "device name of Windows such as NUL. Use letters, digits, - and _; set run.dir for another place."
)
GROUP = "must be a group of keys."
NUMBER = "a batch is a whole number of samples, 1 or more, whole tokens such as 0.5Mitokens (524,288), or `full`."
LENGTH = (
    "a length is a number and a unit. Write 30ep, 500steps, 100000samples or 10Btokens (k, M, G or B: powers of ten; "
    "Ki, Mi, Gi: powers of two)."
)


@pytest.mark.bad_input(
    "a batch that is no number",
    "a batch or a length as a float",
    "a batch of 0 or less",
    "several lengths of a run, or none",
    "a length of 0 or less",
    "a learning rate of 0 or less, NaN or infinity",
    "a scaling rule without its base batch",
    "a norm of 0 or less to clip to",
    "an unknown key that is added with a plus",
    "a value without a default",
    "a variable of the environment that is not set",
    "fp8",
    "checkpoints at no interval, or none to keep",
    "too many loading processes, or too little shared memory",
    "a project that W&B refuses",
    "a seed below 0 or beyond 2^63",
    "a name that is no name of a folder",
    "a number that YAML reads as another one, as 010 and 1:30",
)
@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("batch.total=abc", f"batch.total=abc: {NUMBER}"),
        ("batch.total=64.0", f"batch.total=64.0: {NUMBER} Write 64."),
        ("batch.total=0", f"batch.total=0: {NUMBER}"),
        ("batch.total=-4", f"batch.total=-4: {NUMBER}"),
        ("batch.total=true", f"batch.total=True: {NUMBER}"),
        ("batch.total=null", f"batch.total=None: {NUMBER}"),
        ("batch.micro=0", "batch.micro=0: must be at least 1."),
        ("batch.max_micro=2.5", "batch.max_micro=2.5: must be a whole number."),
        ("seed=1.0", "seed=1.0: must be a whole number. Write 1."),
        ("seed=-1", "seed=-1: must be at least 0."),
        ("seed=9223372036854775808", "seed=9223372036854775808: must be below 9223372036854775808."),
        ("seed=true", "seed=True: must be a whole number."),
        ("length=30", f"length=30: {LENGTH}"),
        ("length=1e3", f"length=1000.0: {LENGTH}"),
        ("length=1:30", f"length=1:30: {LENGTH}"),
        ("length=null", f"length=None: {LENGTH}"),
        ("length=-5steps", f"length=-5steps: {LENGTH}"),
        ("+max_steps=10", "max_steps=10: there is no such key. Write length=10steps."),
        ("+mixup=0.1", "mixup=0.1: there is no such key. Did you mean 'data.augment.mixup'?"),
        ("length=2.5steps", "length=2.5steps: a number of steps is whole; only epochs may be fractions."),
        ("clip_norm=0", "clip_norm=0: must be above 0.0."),
        ("clip_norm=inf", "clip_norm=inf: must be finite."),
        ("scaling.base_lr=-1", "scaling.base_lr=-1: must be above 0.0."),
        ("scaling.base_lr=0", "scaling.base_lr=0: must be above 0.0."),
        ("scaling.base_lr=inf", "scaling.base_lr=inf: must be finite."),
        ("scaling.base_lr=nan", "scaling.base_lr=nan: must be finite."),
        ("scaling.base_lr=.nan", "scaling.base_lr=.nan: must be a number."),
        ("scaling.base_batch_size=null", "scaling.base_batch_size=None: must be a whole number."),
        (
            "scaling.rule=linaer",
            "scaling.rule=linaer: choose one of none, linear, sqrt. Did you mean 'linear'?",
        ),
        (
            "schedule.decay=cosin",
            "schedule.decay=cosin: choose one of constant, linear, cosine, quarter_cosine, step, polynomial, wsd, "
            "restarts, inverse_sqrt. Did you mean 'cosine'?",
        ),
        (
            "schedule.warmup_kind=gradul",
            "schedule.warmup_kind=gradul: choose one of gradual, constant. Did you mean 'gradual'?",
        ),
        ("schedule.warmup_from=one", "schedule.warmup_from=one: must be 'base_lr' or 'zero'."),
        ("schedule.end_factor=1.5", "schedule.end_factor=1.5: must be at most 1.0."),
        ("+schedule.milestones=[5ep,x]", f"schedule.milestones.1=x: {LENGTH}"),
        ("+schedule.milestones=5ep", "schedule.milestones=5ep: must be a list, [a, b]."),
        ("parameters.exclude_from_decay=bias", "parameters.exclude_from_decay=bias: must be a list, [a, b]."),
        ("precision.compute=fp8", "precision.compute=fp8: must be 'auto', 'fp64', 'fp32', 'bf16' or 'fp16'."),
        ("precision.compile=block", "precision.compile=block: must be true, false, or blocks."),
        ("precision.tf32=2", "precision.tf32=2: must be true or false."),
        (
            "precision.activation_checkpointing=1",
            "precision.activation_checkpointing=1: must be true, false, or a regular expression of module names.",
        ),
        ("data.num_workers=-1", "data.num_workers=-1: must be at least 0."),
        ("data.limit=0", "data.limit=0: must be at least 1."),
        ("data.augment.crop_padding=-1", "data.augment.crop_padding=-1: must be at least 0."),
        ("data.augment.flip=1", "data.augment.flip=1: must be true or false."),
        (
            "data.augment=null",
            f"data.augment=None: {GROUP} Set one of them, such as data.augment.crop_padding.",
        ),
        ("data.train=5", f"data.train=5: {GROUP}"),
        ("observers.metrics.every=0", "observers.metrics.every=0: must be at least 1."),
        ("observers.evaluation.every=10", f"observers.evaluation.every=10: {LENGTH}"),
        ("observers.checkpoint.keep=0", "observers.checkpoint.keep=0: must be at least 1."),
        ("observers.stragglers.ratio=1", "observers.stragglers.ratio=1: must be above 1.0."),
        ("observers.recompute.every=0", "observers.recompute.every=0: must be at least 1."),
        ("observers.progress=yes", "observers.progress=yes: must be true or false."),
        ("logger.wandb.mode=on", "logger.wandb.mode=on: must be 'auto', 'online', 'offline' or 'disabled'."),
        ("logger.wandb.project=a/b", r"logger.wandb.project=a/b: must match the regular expression ^[^/\\#?%:]+$."),
        ("logger.wandb.project=''", "logger.wandb.project=: must not be empty."),
        ("logger.wandb.tags=x", "logger.wandb.tags=x: must be a list, [a, b]."),
        ("launcher.num_processes=0", "launcher.num_processes=0: must be at least 1."),
        ("launcher.collective_timeout_s=0", "launcher.collective_timeout_s=0: must be above 0.0."),
        ("run.name=..", f"run.name=..: {FOLDER}"),
        ("run.name=a/b", f"run.name=a/b: {FOLDER}"),
        ("run.name=''", f"run.name=: {FOLDER}"),
        ('run.name="a\tb"', f"run.name=a\tb: {FOLDER}"),
        ("run.name='a '", f"run.name=a : {FOLDER}"),
        ("run.name=a.", f"run.name=a.: {FOLDER}"),
        ("run.name=Nul.txt", f"run.name=Nul.txt: {FOLDER}"),
        (f"run.title={'a' * 256}", f"run.title={'a' * 256}: {FOLDER}"),
        ("run.dir=''", "run.dir=: must be the path of a folder: not empty, and without control characters."),
        (
            "run.root='~/runs'",
            "run.root=~/runs: the shell did not expand ~ here, so it would become a folder of that name. "
            "Write $HOME/ instead.",
        ),
        ("resume=''", "resume=: must be the path of a folder: not empty, and without control characters."),
        (
            "precision.activation_checkpointing=on",
            "precision.activation_checkpointing=on: must be true, false, or a regular expression of module names.",
        ),
        ("run.name=5", "run.name=5: must be text; quote it if it looks like a number."),
        ("resume=null", "resume=None: must be text; quote it if it looks like a number."),
        ("~logger", "logger: is missing. Give logger=VALUE, or set it in the file of its group."),
        (
            "~batch.micro",
            "batch.micro: is missing. Give batch.micro=VALUE, or set it in the file of its group.",
        ),
        # Hydra itself accepts keys that no schema knows, if they are added with a plus.
        ("+sed=1", "sed=1: there is no such key. Did you mean 'seed'?"),
        ("+batch.totl=3", "batch.totl=3: there is no such key. Did you mean 'batch.total'?"),
        ("+data.augment.flop=true", "data.augment.flop=True: there is no such key. Did you mean 'data.augment.flip'?"),
        (
            "+run.foo=1",
            "run.foo=1: there is no such key. Known here: name, title, dir, root, predict_from.",
        ),
        ("data=cifar10", "data.path=???: has no default. Give data.path=VALUE."),
        (
            "run.name=${nowhere}",
            "run.name: Interpolation key 'nowhere' not found. Set the variable or key that it refers to.",
        ),
        (
            "logger.wandb.tags=['${oc.env:LARGEBATCH_UNSET}']",
            "logger.wandb.tags.0: the environment has no variable LARGEBATCH_UNSET. Export it before the start, or "
            "write a default, ${oc.env:LARGEBATCH_UNSET,VALUE}.",
        ),
    ],
)
def test_a_bad_value_is_one_line_with_key_value_rule_and_remedy(override: str, error: str):
    assert errors(override) == [error]


def test_every_error_is_in_one_report():
    wrong = ["seed=a", "batch.total=x", "length=3", "+foo=1", "schedule.decay=cosin", "clip_norm=-1", "~launcher"]
    found = errors(*wrong)
    assert sorted(line.partition("=")[0].partition(":")[0] for line in found) == [
        "batch.total",
        "clip_norm",
        "foo",
        "launcher",
        "length",
        "schedule.decay",
        "seed",
    ]


def test_the_report_counts_its_errors_and_gives_each_a_line():
    with pytest.raises(ConfigError) as one:
        parse("seed=a")
    assert str(one.value) == "1 error in the configuration:\n  - seed=a: must be a whole number."
    with pytest.raises(ConfigError, match=r"^2 errors in the configuration:\n  - .*\n  - .*$"):
        parse("seed=a", "length=3")


@pytest.mark.bad_input("a value without a default")
def test_all_values_without_a_default_are_named_at_once():
    found = {line.partition("=")[0] for line in errors("data=text", "model=hugging_face")}
    assert found == {"data.path", "data.vocab_size", "model.auto_class", "model.name"}


@pytest.mark.bad_input(
    "an unknown key",
    "an unknown choice of a group",
    "a plus before a group that has a choice",
    "a sweep without --multirun",
    "unbalanced braces or quotes",
)
@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (("model=giant",), "Could not find 'model/giant'.*Available options in 'model':.*convnet.*resnet18"),
        (("sed=1",), "Could not override 'sed'"),
        (("optimizer=sgd", "lars=paper"), "Could not override 'lars'. No match in the defaults list"),
        (("optimizer=lars", "lamb=paper"), "Could not override 'lamb'. No match in the defaults list"),
        (("optimizer=lars", "lars=larc"), "Could not find 'lars/larc'.*Available options in 'lars':.*paper.*timm"),
        (("model=linear,mlp",), "Ambiguous value for argument 'model=linear,mlp'"),
        (("+model=mlp",), "Multiple values for model"),
        (("batch.total={3",), "no viable alternative"),
    ],
)
def test_what_hydra_itself_refuses(choices: tuple[str, ...], message: str):
    with pytest.raises(HydraException, match=f"(?s){message}"):
        compose_choices(*choices)


def test_a_float_may_be_written_as_a_whole_number_but_text_stays_text():
    assert parse("scaling.base_lr=1").scaling.base_lr == 1.0
    assert errors("scaling.base_lr='1'") == ["scaling.base_lr=1: must be a number."]


# --- records


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LARGEBATCH_SECRET", "hunter2-7f")
    return "hunter2-7f"


def test_values_of_environment_variables_never_reach_the_records(secret: str):
    config = compose_run(
        "data=cifar10",
        "data.path='${oc.env:LARGEBATCH_SECRET}-set'",  # data.train.path and data.validation.path refer to it
        "run.name='${run.root}-${data.path}'",
        "run.dir='${run.name}'",
        "logger.wandb.group='${oc.decode:${oc.env:LARGEBATCH_SECRET}}'",
        "logger.wandb.tags=[a,'${oc.env:LARGEBATCH_SECRET}','${run.name}']",
        "resume='${oc.env:LARGEBATCH_SECRET,none}'",
    )
    parsed = parse_config(config)
    assert parsed.data.train["path"] == f"{secret}-set", "the run itself gets the value"
    public = public_values(config)
    assert secret not in repr(public)
    assert public["data"]["path"] == public["data"]["train"]["path"] == "${oc.env:LARGEBATCH_SECRET}-set"
    assert public["run"] == {
        "name": "runs-${oc.env:LARGEBATCH_SECRET}-set",
        "title": None,
        "dir": public["run"]["name"],
        "root": "runs",
        "predict_from": "auto",
    }
    assert public["logger"]["wandb"]["tags"] == ["a", "${oc.env:LARGEBATCH_SECRET}", public["run"]["name"]]


def test_everything_else_is_resolved_in_the_records(secret: str):
    config = compose_run("data=synthetic", "model=linear", "run.name='${data.name}_${batch.total}'")
    public = public_values(config)
    assert public["run"]["name"] == "synthetic_32"
    linear = {"_target_": "largebatch.models.Linear", "in_features": 64, "num_outputs": 10}
    assert public["model"] == {"weights": None} | linear
    assert TrainConfig.model_validate(public) == parse_config(config)


def test_a_text_that_only_looks_like_a_variable_is_not_looked_up(secret: str):
    config = compose_run("data=synthetic")
    config.run.name = r"\${oc.env:LARGEBATCH_SECRET}"
    assert public_values(config)["run"]["name"] == "${oc.env:LARGEBATCH_SECRET}"
    config.run.name = r"\\${oc.env:LARGEBATCH_SECRET}"  # a backslash, then the variable
    assert parse_config(config).run.name == "\\" + os.environ["LARGEBATCH_SECRET"]
    assert secret not in repr(public_values(config))


def test_an_error_that_a_worker_sends_says_the_same_here():
    error = ConfigError(["seed=-1: must be 0 or more.", "length=0: must be 1 or more."])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
