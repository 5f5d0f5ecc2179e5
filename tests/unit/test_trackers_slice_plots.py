from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from matplotlib.image import imread

from largebatch.records.figures import plot_slices
from largebatch.records.figures.slice_plots import line_figure, plane_figure

POSITIONS = [-1.0, 0.0, 1.0]
BOWL = SimpleNamespace(
    line_positions=POSITIONS, line=[3.0, 1.0, 2.0],
    plane_positions=POSITIONS, plane=[[5.0, 4.0, 6.0], [3.0, 1.0, 2.0], [7.0, 8.0, 9.0]],
)  # fmt: skip


def changed(**values) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(BOWL), **values})


def test_both_pictures_are_written_and_what_was_not_measured_is_left_out(tmp_path: Path):
    paths = plot_slices(BOWL, tmp_path / "new", title="digits, step 3", unit="sample")
    assert [path.name for path in paths] == ["slice_1d.png", "slice_2d.png"]
    assert all(imread(path).std() > 0.05 for path in paths)
    assert plot_slices(changed(line=[], plane=[]), tmp_path, title="", unit="sample") == []
    assert [path.name for path in plot_slices(changed(plane=[]), tmp_path, title="", unit="s")] == ["slice_1d.png"]


def test_the_line_shows_losses_over_distance_with_title_and_units():
    figure = line_figure(BOWL, "costs $3", "token")
    (ax,) = figure.axes
    curve, centre = ax.get_lines()
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == (POSITIONS, BOWL.line)
    assert list(centre.get_xdata()) == [0, 0]
    assert ax.get_xlabel() == "distance along a random direction (1: as long as the filter)"
    assert ax.get_ylabel() == "loss (mean per token)"
    assert ax.get_title() == r"costs \$3"
    assert ax.get_yscale() == "linear"
    assert line_figure(changed(line=[100.0, 1.0, 1e9]), "", "").axes[0].get_yscale() == "log"


def test_the_plane_shows_the_first_direction_from_left_to_right():
    figure = plane_figure(BOWL, "", "sample")
    ax, bar = figure.axes
    (mesh,) = [artist for artist in ax.collections if hasattr(artist, "get_coordinates")]
    assert np.array_equal(np.asarray(mesh.get_array()).reshape(3, 3), BOWL.plane)
    assert mesh.get_coordinates()[0, :, 0].tolist() == [-1.5, -0.5, 0.5, 1.5]  # x changes along a row
    assert ax.get_xlabel().startswith("distance along the first direction")
    assert bar.get_ylabel() == "loss (mean per sample)"


def test_losses_of_many_magnitudes_are_shown_as_logarithms_and_lost_ones_left_white():
    losses = [[1.0, 10.0, 100.0], [1e3, math.inf, math.nan], [1.0, 1.0, 1.0]]
    ax, bar = plane_figure(changed(plane=losses), "", "sample").axes
    (mesh,) = [artist for artist in ax.collections if hasattr(artist, "get_coordinates")]
    shown = np.ma.asarray(mesh.get_array()).reshape(3, 3)
    assert shown[0].tolist() == [0.0, 1.0, 2.0]
    assert shown.mask[1].tolist() == [False, True, True]
    assert bar.get_ylabel() == "log10 of the loss (mean per sample)"


def test_a_flat_plane_and_one_without_a_number_do_not_fail(tmp_path: Path):
    flat = changed(plane=[[1.0] * 3] * 3)
    assert len(plot_slices(flat, tmp_path, title="", unit="sample")) == 2
    lost = changed(line=[math.nan] * 3, plane=[[math.inf] * 3] * 3)
    assert plot_slices(lost, tmp_path, title="", unit="sample") == []
