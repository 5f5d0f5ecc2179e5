"""What `verify` says of a model that is another one on every rank: what its experiments show, and no more."""

from __future__ import annotations

import os

from largebatch.distributed.runtime import Runtime
from largebatch.experiments.verify.probe import Probe
from largebatch.experiments.verify.ranks import rank_dependence
from largebatch.run.prepare import prepare
from tests.unit.composing import compose_run

MODELS = {
    "Net": [],
    "RankFactor": ["a model that depends on the rank"],
    "RankSeeded": ["random draws that depend on the rank"],
    "RankSeededNumpy": ["training mode that depends on the rank"],
}


def causes() -> dict[str, list[str]]:
    with Runtime.open(precision="fp64") as runtime:
        found = {}
        for name in MODELS:
            model = [f"model._target_=tests.end_to_end.mutants.{name}", "~model.in_features", "~model.num_outputs"]
            options = ["data=digits", "model=linear", *model, "precision.compute=fp64", "batch.micro=16"]
            prepared = prepare(compose_run(*options), os.environ)
            found[name] = [one.name for one in rank_dependence(Probe(prepared), runtime)]
        return found


def test_a_factor_is_no_draw_and_a_draw_is_named_only_where_one_was_seen(ranks):
    assert ranks(2).run(causes) == [MODELS, MODELS]
