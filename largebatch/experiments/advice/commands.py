"""The commands that advice prints: of the planned run, on as many processes, each key once."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from largebatch.experiments.advice.assessment import Assessment
from largebatch.experiments.advice.planned import Planned
from largebatch.experiments.advice.questions import NOISE, QUESTIONS

ADVISE = "largebatch advise {run}"
STUDY = "largebatch study {run} study.target.value=VALUE run.dir=runs/study"
NOISE_COMMAND = next(one.answered_by for one in QUESTIONS if one.key == NOISE)
BRANCHED = "advise.critical_batch=true"
_SWEEP, _SEEDS = "--multirun", "seed=0,1,2"


def command_for(template: str, planned: Planned, sizes: Sequence[int] = ()) -> str:
    """A command for the planned run, as a shell takes it.

    What the template sets takes the place of what was typed. On several processes it begins with torchrun; a sweep,
    which a launcher refuses, becomes a loop of the shell; a plan is told their number.

    Args:
        template: a command of `largebatch` with `{run}`, and `{sizes}` where it sweeps the batch.
        planned: the run.
        sizes: batch sizes of a sweep.
    """
    ranks = planned.world_size
    if ranks > 1:
        template = _on_ranks(template, ranks)
    swept = ",".join(map(str, sizes))
    keys = [one.partition("=")[0] for one in shlex.split(template.replace(";", " ")) if "=" in one]
    text = " ".join(template.format(run=planned.command(without=keys), sizes=swept).split())
    return text.replace("SIZES", " ".join(map(str, sizes)))


def _on_ranks(template: str, ranks: int) -> str:
    if template.startswith("largebatch plan"):
        return f"{template} launcher.num_processes={ranks}"
    launcher = f"torchrun --standalone --nproc-per-node {ranks} -m"
    _, _, rest = template.partition("largebatch ")
    if _SWEEP not in rest:
        return f"{launcher} largebatch {rest}"
    one = rest.replace(f" {_SWEEP}", "").replace("{sizes}", "$batch").replace(_SEEDS, "seed=$seed")
    return f"for batch in SIZES; do for seed in 0 1 2; do {launcher} largebatch {one}; done; done"


def goes_on(planned: Planned, more: str = "") -> str:
    """`largebatch advise` in the folder of this advice, or in a new one, with another setting."""
    where = f" run.dir={shlex.quote(planned.folder)}" if planned.folder else ""
    return command_for(f"{ADVISE}{where} {more}", planned)


def sharper(found: Assessment) -> str:
    """The command that would tell the critical batch, or tell it better than what is known."""
    planned, tried = found.planned, found.evidence.of("critical_batch")
    if not found.critical:
        return command_for(NOISE_COMMAND if found.group.runs else ADVISE, planned)
    return goes_on(planned, BRANCHED) if found.critical[0].is_noise and not tried else command_for(STUDY, planned)
