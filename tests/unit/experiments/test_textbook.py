"""The textbook's experiments: each runs in a shortened form, and its numbers are what theory or a second way says."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from largebatch import conf_dir
from largebatch.__main__ import main
from largebatch.batch.random_keys import stream_key
from largebatch.cli.composition.composing import compose_config
from largebatch.cli.textbook import EXPERIMENTS
from largebatch.data import linear_regression
from largebatch.diagnostics.closed_forms import LeastSquares, NoisyQuadratic
from largebatch.experiments.textbook.bands import band_of_mean
from largebatch.experiments.textbook.convergence_runs import fastest_rate
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.learning_rate import kind_of_path
from largebatch.experiments.textbook.regression import noise_floor
from largebatch.models import Linear
from largebatch.records.figures.figure import from_record
from largebatch.run.config.reading import ConfigError, parse_config, parse_section

SHORT = {
    "gd_variants": ["length=4ep", "data.train.num_samples=60", "data.validation.num_samples=60",
                    "textbook.mini_batch.total=20", "textbook.mini_batch.seeds=2"],
    "accumulation": ["length=2steps", "batch.total=64", "textbook.micro=16", "textbook.ragged=30",
                     "textbook.precisions=[fp32]", "textbook.world_size=1", "data.limit=200",
                     "textbook.normed=['model=convnet','model.width=2']"],
    "convergence": ["textbook.targets=[0.3,0.1]", "textbook.batch_sizes=[4,32]", "textbook.seeds=3",
                    "textbook.full_batch_steps=5", "data.train.num_samples=1024"],
    "learning_rate": ["textbook.rates=[0.1]"],
    "gradient_variance": ["length=1ep", "data.train.num_samples=100", "data.validation.num_samples=100",
                          "textbook.batch_sizes=[1,10,100]", "textbook.replications=3"],
    "unbiasedness": ["length=1ep", "data.train.num_samples=100", "data.validation.num_samples=100",
                     "textbook.batch_sizes=[8,30]", "textbook.draws=200"],
    "quadratic_methods": ["textbook.dimensions=20", "textbook.batch_sizes=[1,8,512]",
                          "textbook.target_loss=0.05", "data.train.num_samples=1024", "textbook.trained.seeds=2"],
    "powers_of_two": ["model=mlp", "model.hidden=[8]", "textbook.powers=[8,16]", "textbook.rounds=6",
                      "textbook.seconds=0.001"],
    "linear_scaling": ["length=2ep", "data.limit=128", "model.hidden=[8]", "textbook.factors=[1,2,4]",
                       "textbook.seeds=1", "textbook.after_steps=[2]", "observers.sharpness.samples=64"],
    "warmup": ["length=3ep", "schedule.warmup=1ep", "data.limit=128", "model.hidden=[8]", "batch.total=64",
               "textbook.base_lrs=[0.05]", "textbook.seeds=1", "observers.evaluation.every=null"],
    "lars": ["length=2ep", "schedule.warmup=0ep", "data.limit=96", "model.hidden=[8]", "textbook.seeds=1",
             "textbook.batch_sizes=[32,full]", "textbook.grid=[1,2]", "~textbook.base_lrs.lars"],
    "noise_and_minima": ["length=2ep", "data.limit=64", "model.hidden=[8]", "textbook.batch_sizes=[32,64]",
                         "observers.sharpness.samples=64", "textbook.seeds=1"],
}  # fmt: skip


class Told(NamedTuple):
    """What a shortened experiment leaves: made once for all tests."""

    record: dict[str, Any]
    folder: Path
    said: str


pytestmark = pytest.mark.usefixtures("in_a_folder")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Told]:
    """`told(name)`: the shortened experiment."""

    @functools.cache
    def made(name: str) -> Told:
        folder = tmp_path_factory.mktemp("textbook") / "out"
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert main(["textbook", name, *SHORT[name], f"run.dir={folder}"]) == 0
        return Told(json.loads((folder / "textbook.json").read_text()), folder, said.getvalue())

    return made


def composed(name: str, *overrides: str) -> tuple[Any, Any]:
    """(config of its runs, settings) of an experiment."""
    config = compose_config([f"experiment=textbook/{name}", *overrides], config_name="textbook")
    module = importlib.import_module(f"largebatch.experiments.textbook.{name}")
    return config, parse_section(config, "textbook", module.Settings)


# --- the verb


def test_every_experiment_has_a_file_a_module_and_a_shortened_form():
    assert EXPERIMENTS.keys() == SHORT.keys()
    assert EXPERIMENTS.keys() == {file.stem for file in Path(conf_dir(), "experiment", "textbook").glob("*.yaml")}


@pytest.mark.parametrize("name", sorted(EXPERIMENTS.keys() - {"accumulation"}))  # which compares formats, each by name
def test_an_experiment_names_its_number_format_because_auto_would_move_its_bands_on_a_gpu(name: str):
    assert composed(name)[0].precision.compute in ("fp32", "fp64")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_parses_and_says_how_it_is_started(name: str):
    config, _ = composed(name)
    assert parse_config(config).run.title == name
    lines = Path(conf_dir(), "experiment", "textbook", f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert f"#   largebatch textbook {name}" in lines


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_shortened_experiment_is_a_table_an_answer_figures_and_runs(name: str, told: Callable[[str], Told]):
    record, folder, said = told(name)
    assert (record["kind"], record["name"]) == ("textbook", name)
    assert "\n".join(["", record["question"], *record["sentences"], ""]) in said
    assert "nan" not in " ".join(record["sentences"])
    assert Path(folder, "page.html").stat().st_size > 4e6
    for table in record["tables"]:
        assert {len(row) for row in table["rows"]} == {len(table["headers"])}
        assert " ".join(table["title"].split()) in " ".join(said.split())
    assert len({figure["name"] for figure in record["figures"]}) == len(record["figures"]) > 0
    for figure in record["figures"]:
        assert from_record(figure).name == figure["name"]
        assert Path(folder, f"{figure['name']}.png").stat().st_size > 5000
    assert len(set(record["runs"])) == len(record["runs"]) > 0
    for run in record["runs"]:
        assert json.loads(Path(folder, run, "summary.json").read_text())["steps"] > 0
    assert record["config"]["textbook"].keys() == composed(name)[1].model_dump().keys()


def test_without_a_name_the_experiments_are_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["textbook"]) == 2
    listing = capsys.readouterr().err
    assert all(f"  textbook {name} " in listing for name in (*EXPERIMENTS, "all"))
    assert main(["textbook", "gd_variant"]) == 2
    assert "Did you mean 'gd_variants'?" in capsys.readouterr().err


def test_wrong_settings_are_all_told_with_the_nearest_key(capsys: pytest.CaptureFixture[str]):
    assert main(["textbook", "gd_variants", "textbook.batch.lr=0", "+textbook.stochastic.rate=1"]) == 2
    said = capsys.readouterr().err
    assert "2 errors" in said
    assert "textbook.batch.lr=0: must be above 0." in said
    assert "textbook.stochastic.rate=1: there is no such key." in said


def test_a_launcher_and_a_folder_that_is_in_use_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    Path("out").mkdir()
    Path("out", "mine.txt").touch()
    assert main(["textbook", "gd_variants", "run.dir=out"]) == 2
    assert "run.dir=out: is not empty" in capsys.readouterr().err
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert main(["textbook", "gd_variants"]) == 2
    assert "WORLD_SIZE=2: an experiment of the textbook" in capsys.readouterr().err
    assert [path.name for path in Path(".").rglob("*")] == ["out", "mine.txt"]


def test_all_makes_every_experiment_and_returns_the_worst_exit_code(monkeypatch: pytest.MonkeyPatch):
    made: list[list[str]] = []
    codes = iter([0, 2, *[1] * len(EXPERIMENTS)])
    monkeypatch.setattr("largebatch.cli.textbook.EXPERIMENTS", {"one": "", "two": "", "three": ""})
    monkeypatch.setattr(
        "largebatch.cli.textbook.run_experiment", lambda name, arguments: made.append([name, *arguments]) or next(codes)
    )
    assert main(["textbook", "all", "seed=1", "run.dir=mine"]) == 2
    assert made == [[name, "seed=1", f"run.dir=mine/{name}"] for name in ("one", "two", "three")]
    assert not Path("mine").exists()  # none of them left a record: there is no page to write


# --- what experiments are made of


def test_a_run_of_an_experiment_changes_what_it_names_and_nothing_else():
    config, _ = composed("gd_variants", "optimizer.momentum=0.5")
    given: list[list[str]] = []

    def compose(choices: Any) -> Any:
        given.append(list(choices))
        return composed("gd_variants", "optimizer.momentum=0.5", *choices)[0]

    experiment = Experiment(config, "out", compose=compose)
    changed = experiment.config_of("batch.total=7", "schedule=cosine", "schedule.end_factor=0.5")
    assert (changed.batch.total, changed.schedule.decay, changed.schedule.end_factor) == (7, "cosine", 0.5)
    assert changed.optimizer.momentum == 0.5
    again = experiment.config_of("schedule=cosine")
    assert (again.batch.total, again.schedule.end_factor, given) == (32, 0.0, [["schedule=cosine"]])
    assert OmegaConf.to_container(experiment.config_of()) == OmegaConf.to_container(config)


def test_a_band_of_logarithms_is_that_of_the_geometric_mean():
    mean, low, high = band_of_mean([[1.0, 2.0], [4.0, 2.0], [2.0, 2.0]], of_logarithms=True)
    assert mean == pytest.approx([2.0, 2.0])
    # log 1, log 4 and log 2: mean log 2, deviation log 2, Student's 97.5 % point with two degrees of freedom 4.302653.
    assert low == pytest.approx([2.0 / 2 ** (4.302653 / 3**0.5), 2.0])
    assert high == pytest.approx([2.0 * 2 ** (4.302653 / 3**0.5), 2.0])
    assert band_of_mean([[0.5], [0.9], [1.0]], within=(0.0, 1.0)).high == [1.0]


@pytest.mark.parametrize(("batch", "lr"), [(5, 0.01), (50, 0.01)])
def test_the_noise_floor_is_where_shuffled_epochs_stay(batch: int, lr: float):
    data = linear_regression(50, 3, "train", noise=0.5)
    task = LeastSquares(data.inputs, data.targets)
    weights, generator, ends = task.minimiser.copy(), np.random.default_rng(0), []
    for _ in range(3000):
        for rows in generator.permutation(50).reshape(-1, batch):
            design = task.design[rows]
            weights -= lr * design.T @ (design @ weights - task.targets[rows]) / batch
        ends.append(task.excess(weights))
    # 3000 ends in 4 coordinates, of which some ten in a row are alike: 4 % of error. Away from the minimiser the noise
    # grows by lr |z|^2/B, 1 %, which the model leaves out. Fresh draws would leave 700 times more.
    assert np.mean(ends) == pytest.approx(noise_floor(task, batch, lr), rel=0.15, abs=1e-25)


def test_batches_that_do_not_fill_the_epoch_have_the_floor_of_fresh_draws():
    data = linear_regression(50, 3, "train", noise=0.5)
    task = LeastSquares(data.inputs, data.targets)
    model = task.near_minimiser()
    moments = model.stationary_variance(lr=0.01, global_batch_size=7)
    assert noise_floor(task, 7, 0.01) == pytest.approx(0.5 * model.curvature @ moments, rel=1e-12)


# --- the experiments


def test_batch_gradient_descent_follows_its_closed_form_and_the_others_make_more_updates(told: Callable[[str], Told]):
    numbers = told("gd_variants").record["numbers"]
    assert numbers["deviation_from_closed_form"] < 1e-13  # float64, values of order 1
    updates = [numbers[name]["updates"] for name in ("batch", "mini_batch", "stochastic")]
    assert updates == [4, 12, 240]
    assert numbers["stochastic"]["final_excess"][0] < numbers["batch"]["final_excess"][0]
    assert numbers["batch"]["expected_late_excess"] == pytest.approx(0, abs=1e-20)
    answer = " ".join(told("gd_variants").record["sentences"])
    assert "of shuffled epochs: one seed cannot tell whether they agree." in answer  # stochastic
    assert "of shuffled epochs: 2 seeds cannot tell whether they agree." in answer  # mini-batch
    assert "disagree" not in answer


def test_a_task_without_closed_forms_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["textbook", "gd_variants", "data=digits"]) == 2
    assert "closed forms of a linear regression" in capsys.readouterr().err


def test_rates_below_at_and_above_the_limit_do_what_the_closed_form_says(told: Callable[[str], Told]):
    runs = told("learning_rate").record["numbers"]["runs"]
    kinds = {(one["momentum"], round(one["lr"], 3)): one["kind"] for one in runs}
    plain = {0.1: "converges", 1.9: "oscillates", 2.0: "oscillates", 2.1: "diverges"}
    heavy = {0.1: "oscillates", 3.61: "oscillates", 3.8: "oscillates", 3.99: "diverges"}
    assert kinds == {(0.0, lr): kind for lr, kind in plain.items()} | {(0.9, lr): kind for lr, kind in heavy.items()}
    assert all(one["kind"] == one["expected"] for one in runs)
    assert max(one["deviation_from_closed_form"] for one in runs) < 1e-12


def test_a_path_is_classed_by_what_it_does():
    steps = np.arange(50)[:, None]
    for factor, kind in ((0.9, "converges"), (-0.9, "oscillates"), (-1.0, "oscillates"), (1.1, "diverges")):
        path = float(factor) ** steps
        assert kind_of_path(path, path[:, 0] ** 2) == kind
    path[-1] = np.nan
    assert kind_of_path(path, path[:, 0]) == "diverges"


def test_the_variance_of_an_experiment_is_that_of_the_closed_form(told: Callable[[str], Told]):
    numbers = told("gradient_variance").record["numbers"]
    assert numbers["num_samples"] == 100
    data = linear_regression(100, 10, "train", noise=0.1)
    torch.manual_seed(stream_key(0, "initialisation"))
    model = Linear(10, 1)
    weights = torch.cat([part.detach().reshape(-1) for part in model.parameters()]).double().numpy()
    noise = LeastSquares(data.inputs, data.targets).gradient_noise(weights)
    start, end = numbers["ends"].values()
    assert list(numbers["ends"]) == ["step 0", "step 3"]
    assert start["covariance_trace"] == pytest.approx(noise.covariance_trace, rel=1e-9)
    assert start["with_replacement"]["theory"] == pytest.approx([noise.covariance_trace / b for b in (1, 10, 100)])
    assert end["covariance_trace"] < start["covariance_trace"]
    for one in (start, end):
        assert one["without_replacement"]["variance"][-1] == pytest.approx(0, abs=1e-20)
        slope = one["with_replacement"]["slope"]
        assert slope["low"] < slope["value"] < slope["high"]


def test_batches_that_do_not_nest_or_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str]):
    small = ["data.train.num_samples=100", "textbook.batch_sizes=[1,10,25]", "textbook.samples=101"]
    assert main(["textbook", "gradient_variance", *small]) == 2
    said = capsys.readouterr().err
    assert "2 errors" in said
    assert "textbook.batch_sizes=[1, 10, 25]: a batch of 25 is not" in said
    assert "textbook.samples=101: the training set has 100" in said


def test_splits_of_a_batch_differ_by_rounding_and_batch_norm_needs_the_whole_batch(told: Callable[[str], Told]):
    found = {(one["model"], one["what"]): one for one in told("accumulation").record["numbers"]["comparisons"]}
    for split in ("4 x 16 / at once", "4 x 16, ordered sum / at once", "unequal, 30 at most / at once"):
        assert found["plain", split]["first_step_in_eps"] < 4  # a handful of roundings of numbers below the largest
        assert 0 < found["plain", split]["distance"][-1] < 1e-6
    assert found["plain", "4 x 16 / itself again"]["distance"] == [0, 0, 0]
    ghost, exact = (found["batch norm", f"4 x 16, statistics of {of} / at once"] for of in ("each", "all"))
    assert ghost["distance"][1] > 1e-5
    assert exact["distance"][1] < 1e-14


def test_a_split_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["textbook", "accumulation", "textbook.micro=96"]) == 2
    assert "textbook.micro=96: batch.total=256 is no multiple of it" in capsys.readouterr().err


def test_steps_to_a_target_are_compared_with_the_closed_form(told: Callable[[str], Told]):
    numbers = told("convergence").record["numbers"]
    assert numbers["full_batch"]["deviation_from_closed_form"] < 1e-12
    task = NoisyQuadratic(np.repeat([1.0, 0.5, 0.25], 16), np.repeat([1.0, 0.5, 0.25], 16))
    assert [(one["global_batch_size"], one["target"]) for one in numbers["descents"]] == [
        (4, 0.3), (4, 0.1), (32, 0.3), (32, 0.1)
    ]  # fmt: skip
    for one in numbers["descents"]:
        moments = task.second_moments(
            np.ones(48), lr=one["lr"], num_steps=one["expected_steps"], global_batch_size=one["global_batch_size"]
        )
        losses = 0.5 * moments @ task.curvature / task.loss(np.ones(48))
        assert losses[-1] <= one["target"] < losses[-2]
        assert one["expected_loss"] == pytest.approx(losses[-1], rel=1e-12)
        loss = one["loss_after_expected_steps"]
        assert loss["low"] < loss["value"] < loss["high"]


def test_the_fastest_rate_needs_no_more_steps_than_any_other():
    task, start = NoisyQuadratic(np.array([1.0, 0.2]), np.array([1.0, 0.2])), np.ones(2)
    lr, steps = fastest_rate(task, start, target=0.05, global_batch_size=4)
    others = [task.steps_to_target(0.05, start, lr=factor * lr, global_batch_size=4) for factor in (0.5, 0.9, 1.1, 2)]
    assert all(other is None or other >= steps for other in others)
    with pytest.raises(ConfigError, match="no rate reaches a loss of 1e-09"):
        fastest_rate(task, start, target=1e-9, global_batch_size=1)


def test_targets_above_the_start_and_batches_of_everything_are_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["textbook", "convergence", "textbook.targets=[2.0,0.1]"]) == 2
    assert "textbook.targets.0=2.0: must be below 1" in capsys.readouterr().err
    assert main(["textbook", "convergence", "textbook.batch_sizes=[1,16384]"]) == 2
    said = capsys.readouterr().err
    assert "textbook.batch_sizes=16384: the set has 16384 samples" in said


def test_hydra_composes_inside_of_itself_and_its_state_is_put_back():
    before = compose_config(["seed=3"])
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert compose_config(["seed=3"]) == before
        assert GlobalHydra.instance().hydra is outer
    assert not GlobalHydra.instance().is_initialized()
