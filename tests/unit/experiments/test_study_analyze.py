"""`largebatch study analyze`: a CSV file in, S_min, E_min and B_crit out, and only what it supports."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from largebatch.__main__ import main
from largebatch.diagnostics.critical_batch.steps_to_target import StepsToTarget
from largebatch.diagnostics.intervals import Interval
from largebatch.experiments.study import StudyPoint, TableError, analyse, read_points
from largebatch.experiments.study.figures import study_figures
from largebatch.experiments.study.study_result import study_result
from largebatch.records.figures.figure import from_record

pytestmark = pytest.mark.usefixtures("in_a_folder")

SIZES = (8, 16, 32, 64, 128, 256, 512)


def write(text: str) -> Path:
    path = Path("steps.csv")
    path.write_text(text)
    return path


def point(size: int, steps: float, *, optimizer: str = "sgd", **more: object) -> StudyPoint:
    return StudyPoint(optimizer, StepsToTarget(size, (steps,)), (steps,), **more)


def curve(s_min: float, b_crit: float, *, optimizer: str = "sgd", **more: object) -> list[StudyPoint]:
    return [point(size, s_min * (1 + b_crit / size), optimizer=optimizer, **more) for size in SIZES]


def test_a_file_becomes_tables_conclusions_a_record_and_a_picture(capsys: pytest.CaptureFixture[str]):
    rows = [
        f"{name},{seed},{size},{steps * (1 + b_crit / size) * (1 + 0.01 * seed)},no"
        for name, steps, b_crit in (("sgd", 100, 60), ("lars", 50, 200))
        for size in SIZES
        for seed in (0, 1, -1)
    ]
    write("\n".join(["optimizer,seed,batch_size,steps,censored", "lars,0,1024,55,yes", *rows]))
    assert main(["study", "analyze", "steps.csv", "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert "SGD: B_crit is 60 (95 %: 60 to 60) samples" in said
    assert "LARS: the median did not reach the target at batch 1,024. It counts as a lower bound." in said
    assert "LARS has a larger B_crit than SGD: their intervals do not overlap." in said
    assert "B_crit in samples: LARS 200 (95 %: 2" in said
    assert "SGD: supported: predicts each left-out batch size within 0 %, 0 % in the root mean square." in said
    written = json.loads(Path("out/study.json").read_text())
    record = written["numbers"]
    assert (written["kind"], record["unit"], record["optimizers"]) == ("study", "samples", ["lars", "sgd"])
    lars, sgd = record["fits"]
    assert sgd["b_crit"]["value"] == pytest.approx(60, rel=1e-3)
    assert lars["s_min"]["value"] == pytest.approx(50, rel=1e-3)
    assert len(sgd["curve"]["steps"]) == len(sgd["curve"]["batch_size"])
    first, hidden = record["points"][0], record["points"][7]
    assert first["median_steps"] == pytest.approx(50 * 26)
    assert first["low"] < first["median_steps"] < first["high"]
    assert (hidden["steps"], hidden["median_steps"], hidden["censored"], hidden["censored_at"]) == (
        [None], None, True, [55.0],
    )  # fmt: skip
    steps, samples = (from_record(figure) for figure in written["figures"])
    assert [line.label for line in steps.lines][2:] == ["LARS", "at least: the median did not reach the target", "SGD"]
    assert samples.lines[2].y[0] == pytest.approx(8 * steps.lines[2].y[0])
    assert Path("out/study.png").stat().st_size > 10_000


def test_batch_sizes_and_steps_are_enough(capsys: pytest.CaptureFixture[str]):
    write("steps, batch_size, machine\n" + "".join(f"{100 * (1 + 50 / size)}, {size}, a\n" for size in SIZES))
    points = read_points(Path("steps.csv"))
    assert [one.batch_size for one in points] == list(SIZES)
    assert {one.optimizer for one in points} == {"all runs"}
    assert analyse(points).fits["all runs"].b_crit.value == pytest.approx(50, rel=1e-3)


def test_columns_without_a_meaning_are_told(capsys: pytest.CaptureFixture[str]):
    write("batch_size,steps,run,reached\n" + "".join(f"{size},{10_000 // size},{size},no\n" for size in SIZES))
    assert main(["study", "analyze", "steps.csv", "--out", "out"]) == 0
    assert "steps.csv: not read: run, reached. Columns with a meaning: batch_size, steps" in capsys.readouterr().out


def test_medians_of_a_published_table_are_weighted_by_their_runs():
    rows = [(size, 100 * (1 + 50 / size) * (1.1 if size == 64 else 1)) for size in SIZES]
    write("batch_size,steps,runs\n" + "".join(f"{size},{steps},{99 if size == 64 else 1}\n" for size, steps in rows))
    (fit,) = analyse(read_points(Path("steps.csv"))).fits.values()
    assert abs(dict(zip(fit.misfit.batch_sizes, fit.misfit.residuals, strict=True))[64]) < 0.02
    assert fit.points[3].num_replicates == 99


def test_few_seeds_are_told_beside_their_median(capsys: pytest.CaptureFixture[str]):
    rows = [(size, seed) for place, size in enumerate((8, 16, 32, 64)) for seed in range(place)]
    write("batch_size,steps,seed\n" + "".join(f"{size},{1000 // size + seed},{seed}\n" for size, seed in rows))
    assert main(["study", "analyze", "steps.csv", "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert "1 seed: no interval" in said
    assert "2 seeds: no interval" in said
    assert "15 to 17 (75%, the range)" in said
    point = json.loads(Path("out/study.json").read_text())["numbers"]["points"][-1]
    assert (point["low"], point["high"], point["level"], point["num_runs"]) == (15, 17, 0.75, 3)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "line 1 has the columns none: batch_size and steps must be among them"),
        ("batch,steps\n1,2\n", "line 1 has the columns batch, steps: batch_size must be among them"),
        ("batch_size,steps\n", "has no rows below its first line"),
        ("batch_size,steps\n8,0\n", "line 2: steps=0: must be a number above 0. For a run that missed the target give"),
        ("batch_size,steps\n8,\n", "line 2: steps=nothing: must be a number above 0"),
        ("batch_size,steps\n8,nan\n", "line 2: steps=nan: must be a number above 0"),
        ("batch_size,steps\n8.5,10\n", "line 2: batch_size=8.5: must be a whole number of samples"),
        ("batch_size,steps\n8,10,3\n", "line 2: has another number of cells than the first line"),
        ("batch_size,steps\n8\n", "line 2: has another number of cells than the first line"),
        ("batch_size,steps,censored\n8,10,maybe\n", "line 2: censored=maybe: must be true"),
        ("batch_size,steps,seed\n8,10,1\n\n8,11,1\n", "line 4: seed=1: line 2 has it at this batch size too"),
        ("batch_size,steps,runs\n8,10,20\n8,11,5\n", "line 3: runs=5: line 2 has this batch size too"),
        ("batch_size,steps,steps\n8,10,3\n", "columns steps twice. Keep one."),
        ("batch_size;steps\n8;10\n", "batch_size and steps must be among them. Separate cells with commas."),
        ("batch_size,steps,Censored\n8,10,true\n", "Censored, which is not read. Did you mean censored"),
        ("batch_size,steps,censord\n8,10,true\n", "censord, which is not read. Did you mean censored"),
        ("batch_size,steps,optimizer\n8,10,\n", "line 2: optimizer=nothing: the table has a column of names"),
        ("batch_size,steps,runs\n8,10,2.5\n", "line 2: runs=2.5: must be a whole number"),
    ],
)
def test_a_bad_table_is_refused_with_the_line_the_value_and_the_rule(text: str, error: str):
    with pytest.raises(TableError, match=error):
        read_points(write(text))


def test_all_bad_lines_are_told_at_once_up_to_ten():
    with pytest.raises(TableError) as caught:
        read_points(write("batch_size,steps\n" + "8,x\n" * 12))
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "... and 2 more lines"


def test_wrong_input_ends_with_two(capsys: pytest.CaptureFixture[str]):
    assert main(["study", "analyze", "none.csv"]) == 2
    assert main(["study", "analyze"]) == 2
    write("batch_size,steps\n8,x\n")
    assert main(["study", "analyze", "steps.csv"]) == 2
    assert "largebatch study analyze: steps.csv: line 2: steps=x" in capsys.readouterr().err


def test_an_unsupported_critical_batch_is_no_conclusion_but_its_lower_bound_may_separate_two():
    analysis = analyse([*curve(100, 60), *curve(1, 5000, optimizer="lars")])
    assert not analysis.fits["lars"].supported
    doubt = "LARS: the evidence does not support a value of B_crit"
    assert any(line.startswith(doubt) for line in analysis.conclusions)
    assert analysis.conclusions[-1] == "LARS has a larger B_crit than SGD: their intervals do not overlap."


def test_fits_are_compared_although_a_test_remarks_misfit_and_doubted_where_the_misfit_is_large():
    def scattered(name: str, b_crit: float, scatter: tuple[float, ...]) -> list[StudyPoint]:
        steps = [50 * (1 + b_crit / size) * factor for size, factor in zip(SIZES, scatter, strict=True)]
        seeds = [tuple(one * wobble for wobble in (0.999, 1.0, 1.001)) for one in steps]
        return [StudyPoint(name, StepsToTarget(size, row), row) for size, row in zip(SIZES, seeds, strict=True)]

    small = (1.03, 0.97, 1.02, 0.98, 1.03, 0.97, 1.0)
    analysis = analyse([*scattered("sgd", 20, small), *scattered("lars", 200, small)])
    assert all(fit.rejected and fit.supported for fit in analysis.fits.values())
    apart = "LARS has a larger B_crit than SGD: their intervals do not overlap."
    assert analysis.conclusions[-1] == apart
    large = (1.0, 1.0, 1.0, 1.6, 1.0, 1.0, 1.0)
    doubted = analyse([*scattered("sgd", 3, small), *scattered("lars", 300, large)])
    assert doubted.conclusions[-1] == f"{apart} Do not rely on that: the curve of LARS misses its points by too much."


def test_optimizers_with_the_same_curve_are_not_told_apart():
    noisy = [point(size, 100 * (1 + 60 / size) * (1.1 if size in (16, 128) else 0.97)) for size in SIZES]
    analysis = analyse([*noisy, *curve(100, 66, optimizer="lars")])
    assert analysis.conclusions[-1] == "B_crit of LARS and SGD shows no clear difference: their intervals overlap."


def test_the_noise_scale_of_the_runs_is_set_beside_the_critical_batch():
    points = curve(100, 50, noise_scale=Interval(100.0, 80.0, 130.0))
    said = "SGD: the noise scale of the tuned runs ends at 100 to 100 samples, over 7 batch sizes."
    assert f"{said} Its geometric mean is 2 times B_crit." in analyse(points).conclusions
    alone = analyse(points[:2])
    assert any(line.endswith("There is no B_crit to compare it with.") for line in alone.conclusions)


def test_a_study_says_which_noise_scale_is_nearer_to_the_critical_batch_and_only_what_intervals_decide():
    far, near = Interval(400.0, 350.0, 450.0), Interval(60.0, 50.0, 75.0)
    decide = "The intervals decide for the optimizer's geometry each time: here it predicted better."

    def verdict(*scales: tuple[Interval, Interval]) -> str:
        names = ("adamw", "lamb", "muon")
        points = curve(100, 50)  # SGD's geometry is the Euclidean one, so it takes no part
        for name, (euclidean, own) in zip(names, scales, strict=False):
            points += curve(50, 50, optimizer=name, noise_scale=euclidean, optimizer_noise_scale=own)
        record = study_result(analyse(points), title="t").numbers
        assert [one["optimizer"] for one in record.get("noise_scales", [])] == list(names[: len(scales)])
        return next((one for one in analyse(points).conclusions if one.startswith("Noise scale as a prediction")), "")

    assert verdict() == ""
    both = verdict((far, near), (far, near))
    assert "over 2 optimizers: the Euclidean one misses by a factor of 8, the one in the optimizer's geometry" in both
    assert "by 1.2 (geometric means), and the latter is nearer for AdamW, LAMB." in both
    assert both.endswith(decide)
    assert verdict((near, far), (near, far)).endswith("the optimizer's geometry did not predict better.")
    assert "decide 2 of 2, 1 for the optimizer's geometry: this evidence cannot tell" in verdict(
        (far, near), (near, far)
    )
    assert "decide 0 of 1" in verdict((far, Interval(380.0, 340.0, 420.0))), "their intervals overlap"
    wide = Interval(60.0, 2.0, 340.0)  # with the other its mean may lie below B_crit or above
    assert "decide 0 of 1" in verdict((far, wide))


def test_a_setting_at_the_border_of_its_range_is_a_conclusion():
    points = [*curve(100, 50)[1:], point(8, 725, border=("lr: at the upper border",))]
    assert "SGD, batch 8: lr: at the upper border" in analyse(points).conclusions


def test_a_study_of_two_batch_sizes_draws_points_without_a_curve():
    figures = study_figures(analyse(curve(100, 50)[:2]))
    assert [line.style for line in figures[0].lines] == ["points"]


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        (1, "1 seed: no interval."),
        (2, "2 seeds: no interval."),
        (3, "ranges of seeds do not overlap."),
        (6, "intervals do not overlap."),
    ],
)
def test_who_needs_the_fewest_steps_is_said_first_and_whether_the_seeds_tell(seeds: int, words: str):
    def of(name: str, steps: float, size: int) -> StudyPoint:
        rows = tuple(steps * (1 + 0.01 * seed) for seed in range(seeds))
        return StudyPoint(name, StepsToTarget(size, rows), rows)

    points = [of("sgd", 3000 / size, size) for size in (8, 16, 32)] + [
        of("lars", 8000 / size, size) for size in (8, 16)
    ]
    who, largest, smallest, *_ = analyse(points).conclusions
    assert who == "SGD needs the fewest steps to the target at all 2 batch sizes."
    assert re.fullmatch(rf"At batch 16 SGD needs 1[89]\d steps to the target, LARS 5\d\d; {words}", largest)
    assert smallest.startswith("At batch 8 SGD needs 3")
    close = [of("sgd", 100, 8), of("lars", 100.5, 8)]
    assert seeds < 3 or "overlap: no clear difference." in analyse(close).conclusions[1]
    assert not any("fewest steps to the target" in line for line in analyse(points[:3]).conclusions)


def test_who_wins_changes_with_the_batch_and_a_bound_never_wins():
    def of(name: str, size: int, reached: tuple[float, ...], censored: tuple[float, ...] = ()) -> StudyPoint:
        return StudyPoint(name, StepsToTarget(size, reached, censored), ())

    points = [of("lamb", 16, (50, 53, 54)), of("sgd", 16, (70, 71, 72)), of("lars", 16, (170, 190, 200)),
              of("lamb", 48, (20, 23, 30)), of("sgd", 48, (60, 66, 68)),
              of("lamb", 1296, (14, 14, 15)), of("sgd", 1296, (10, 11, 12)), of("lars", 1296, (), (9, 9, 9)),
              of("lamb", 2000, (), (5, 5, 5)), of("sgd", 2000, (), (5, 5, 5))]  # fmt: skip
    who, largest, smallest, *_ = analyse(points).conclusions
    assert who == "Fewest steps to the target: LAMB at batch 16 to 48, SGD at batch 1,296."
    # LARS may need one step more than its 9: its bound does not tell it from SGD.
    assert largest == (
        "At batch 1,296 SGD needs 11 steps to the target, LAMB 14, LARS more than 9; ranges of seeds do not overlap "
        "with LAMB's; ranges of seeds overlap with LARS's: no clear difference there."
    )
    assert smallest.startswith("At batch 16 LAMB needs 53 steps to the target, SGD 71, LARS 190; ranges of seeds")


def test_the_table_of_few_steps_agrees_with_its_samples():
    """A crossing between two evaluations is no whole step: 5 steps of 512 would not be 2,708 samples."""
    Path("steps.csv").write_text("batch_size,steps\n512,5.29\n128,8\n32,16\n", encoding="utf-8")
    rows = study_result(analyse(read_points(Path("steps.csv"))), title="t").tables[0].rows
    assert {(row[1], row[2], row[4]) for row in rows} == {
        ("32", "16", "512"), ("128", "8", "1,024"), ("512", "5.29", "2,708")
    }  # fmt: skip
