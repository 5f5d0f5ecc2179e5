"""`largebatch bench verify`: how often `largebatch verify` accuses a sound run, and how often it misses a defect."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from largebatch import conf_dir
from largebatch.experiments.bench.settings import at_least, new_file, one_of, setting, some_of
from largebatch.records.durable_files import write_record

if TYPE_CHECKING:
    from largebatch.distributed.runtime import Runtime
    from largebatch.run.prepare import Prepared

# 22 samples are cut unevenly by 2 and 3 ranks and by micro-batches of 5; rates change from step to step.
COMMON = ("data=synthetic", "batch.total=22", "length=6steps", "schedule=linear", "schedule.warmup=0ep",
          "verify.steps=2", "logger=none")  # fmt: skip
_OWN = "largebatch.experiments.verify.planted"
NETS = {
    "linear": ("model=linear",),
    "dropout": ("model=mlp", "model.hidden=[8,8]", "model.dropout=0.5", "batch.micro=5"),
    "batch norm": ("model=convnet", "model.width=2", "batch.micro=5"),
    "exact batch norm": ("model=convnet", "model.width=2", "batch_norm=exact", "batch.max_micro=5"),
    "odd": ("model=linear", f"model._target_={_OWN}.OddNet", "~model.in_features", "~model.num_outputs",
            "batch.micro=5"),
    "contrastive": ("data=paired_views", "model=two_views", "loss=info_nce"),
}  # fmt: skip
OPTIMIZERS = {
    "SGD": ("optimizer=sgd",),
    "clipped SGD": ("optimizer=sgd", "clip_norm=0.1"),
    "AdamW": ("optimizer=adamw",),
    "AdamW without eps": ("optimizer=adamw", "optimizer.eps=1e-30"),
    "LARS": ("optimizer=lars",),
    "LAMB": ("optimizer=lamb",),
    "Muon": ("optimizer=muon",),
    "Rprop": ("optimizer=sgd", "optimizer._target_=torch.optim.Rprop", "~optimizer.momentum", "~optimizer.nesterov",
              "~optimizer.weight_decay", "parameters.exclude_from_decay=[]"),
}  # fmt: skip
NO_MATRIX = {"linear", "batch norm", "exact batch norm"}  # for Muon


@dataclass(frozen=True)
class Settings:
    """The runs to count."""

    nets: tuple[str, ...] = setting(
        tuple(NETS), some_of(tuple(NETS)), "NAME,...", f"some of {', '.join(NETS)} (default: all)"
    )
    optimizers: tuple[str, ...] = setting(
        tuple(OPTIMIZERS),
        some_of(tuple(OPTIMIZERS)),
        "NAME,...",
        f"some of {', '.join(OPTIMIZERS)} (default: all)",
    )
    seeds: int = setting(5, at_least(1), "N", "runs of each (default: 5)")
    ranks: int = setting(2, at_least(1), "N", "processes of this machine, 1 or more (default: 2)")
    precision: str = setting("fp64", one_of("fp64", "fp32"), "NAME", "fp64 or fp32 (default: fp64)")
    json: str = setting("", new_file, "FILE", "write the outcome of every run there")


@dataclass
class Trial:
    """One run: `sound` is its largest error as a share of its bound, `defects` the same with each defect planted."""

    net: str
    optimizer: str
    seed: int
    sound: float
    undecided: list[str]
    defects: dict[str, float] = field(default_factory=dict)

    @property
    def is_false_alarm(self) -> bool:
        """Whether the sound run was accused."""
        return self.sound > 1


def measure(settings: Settings) -> bool:
    """Print a table of mistakes; False if there is one."""
    from largebatch.experiments.local_ranks import on_local_ranks

    trials = count_all(settings) if settings.ranks == 1 else on_local_ranks(settings.ranks, count_all, settings)
    _print(trials)
    if settings.json:
        write_record(settings.json, [asdict(trial) for trial in trials])
    return not any(trial.is_false_alarm or min(trial.defects.values()) <= 1 for trial in trials)


def count_all(settings: Settings) -> list[Trial]:
    """Every run on the ranks of this job; the same on each of them."""
    return list(_trials(settings))


def _trials(settings: Settings) -> Iterator[Trial]:
    from largebatch.run.parts import open_runtime

    first, _ = _prepared(settings, settings.nets[0], settings.optimizers[0], 0)
    with open_runtime(first) as runtime:
        for net in settings.nets:
            for optimizer in settings.optimizers:
                if optimizer != "Muon" or net not in NO_MATRIX:
                    for seed in range(settings.seeds):
                        yield _trial(runtime, settings, net, optimizer, seed)


def _trial(runtime: Runtime, settings: Settings, net: str, optimizer: str, seed: int) -> Trial:
    from largebatch.experiments.verify import choose_cases, reference_trajectory, rounding_bounds
    from largebatch.experiments.verify.planted import DEFECTS
    from largebatch.experiments.verify.ranks import compare_on

    prepared, steps = _prepared(settings, net, optimizer, seed)
    limits = {"micro": prepared.config.batch.micro, "max_micro": prepared.config.batch.max_micro}
    size = prepared.numbers.plan.global_batch_size
    plans = [case.plan for case in choose_cases(global_batch_size=size, world_sizes=[settings.ranks], **limits)]
    if prepared.config.batch_norm == "exact":
        limits = {"micro": None, "max_micro": None}
    whole = choose_cases(global_batch_size=size, world_sizes=[1], **limits)[0].plan
    reference = reference_trajectory(prepared, whole, num_steps=steps)
    bounds = rounding_bounds(prepared, whole, reference, num_steps=steps)
    sound = max(bounds.share(compare_on(runtime, prepared, plan, reference, steps)) for plan in plans)
    trial = Trial(net, optimizer, seed, sound, list(bounds.undecided))
    for defect in DEFECTS:
        if defect.applies(plans[-1], prepared):
            errors = compare_on(runtime, prepared, plans[-1], reference, steps, defect=defect)
            trial.defects[defect.name] = bounds.share(errors)
    return trial


def _prepared(settings: Settings, net: str, optimizer: str, seed: int) -> tuple[Prepared, int]:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from largebatch.run.config.reading import parse_section
    from largebatch.run.config.schema import VerifyConfig
    from largebatch.run.prepare import prepare

    overrides = [*COMMON, *NETS[net], *OPTIMIZERS[optimizer], f"seed={seed}"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("verify", overrides=overrides)
    options = parse_section(config, "verify", VerifyConfig)
    OmegaConf.update(config, "precision.compute", settings.precision)
    OmegaConf.update(config, "precision.tf32", False)
    return prepare(config, os.environ), options.steps


def _print(trials: Sequence[Trial]) -> None:
    from largebatch.records.trackers.tables import print_table

    rows = []
    for net, optimizer in dict.fromkeys((trial.net, trial.optimizer) for trial in trials):
        these = [trial for trial in trials if (trial.net, trial.optimizer) == (net, optimizer)]
        shares = [share for trial in these for share in trial.defects.values()]
        rows.append(
            (net, optimizer, f"{sum(trial.is_false_alarm for trial in these)} of {len(these)}",
             f"{max(trial.sound for trial in these):.2g}", f"{sum(share <= 1 for share in shares)} of {len(shares)}",
             f"{min(shares):.1e}", str(max(len(trial.undecided) for trial in these)))
        )  # fmt: skip
    header = ("net", "optimizer", "false alarms", "largest share", "missed", "smallest share", "undecided")
    print_table(header, rows, title="error / bound: of sound runs, and with a planted defect")
    for trial in trials:
        missed = [f"missed {name} ({share:.2g})" for name, share in trial.defects.items() if share <= 1]
        alarm = [f"false alarm ({trial.sound:.2g})"] if trial.is_false_alarm else []
        if found := [*alarm, *missed]:
            print(f"{trial.net}, {trial.optimizer}, seed {trial.seed}: {'; '.join(found)}")
