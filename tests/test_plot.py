"""plot: each function draws what its name says, on the ax it is given."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from qtorch_tutorial import plot
from qtorch_tutorial.convert import FORMS
from qtorch_tutorial.measure import Latency


@pytest.fixture
def ax():
    fig, ax = plot.figure()
    yield ax
    plt.close(fig)


def texts(ax):
    return [t.get_text() for t in ax.texts]


def test_every_form_has_a_color_a_marker_and_a_hatch_of_its_own():
    for table in (plot.COLORS, plot.MARKERS, plot.HATCHES):
        assert set(table) == {form.name for form in FORMS}
        assert len(set(table.values())) == len(FORMS)


def test_warm_is_red_and_cool_is_blue():
    red, green, blue = plt.matplotlib.colors.to_rgb(plot.WARM)
    assert red > max(green, blue)
    red, green, blue = plt.matplotlib.colors.to_rgb(plot.COOL)
    assert red < min(green, blue)


def test_on_grid_draws_floats_warm_and_integers_cool(ax):
    x = torch.tensor([0.1, 0.26, 0.4])
    plot.on_grid(ax, x, x.round(decimals=1), title="t", unit="w")
    grid, floats = ax.lines
    assert (grid.get_color(), floats.get_color()) == (plot.COOL, plot.WARM)
    assert floats.get_ydata().tolist() == x.tolist()
    assert (ax.get_title(), ax.get_ylabel()) == ("t", "w")


def test_the_error_is_drawn_in_steps_with_its_bound(ax):
    plot.error_in_steps(ax, torch.tensor([0.1, -0.2]), torch.tensor(0.5), title="t")
    edges = [patch.get_x() for patch in ax.patches]
    assert min(edges) == pytest.approx(-0.4)
    assert [line.get_xdata()[0] for line in ax.lines] == [-0.5, 0.5]


def test_outputs_are_drawn_over_float_between_the_walls_of_the_grid(ax):
    y = torch.tensor([[-3.0, 0.0], [1.0, 9.0]])
    plot.against_float(ax, y, y.clamp(-2, 5), ends=(-2, 5), title="t", unit="score")
    exact, points, *walls = ax.lines
    assert (exact.get_color(), points.get_color()) == (plot.WARM, plot.COOL)
    assert points.get_xdata().tolist() == [-3, 0, 1, 9]
    assert points.get_ydata().tolist() == [-2, 0, 1, 5]
    assert [wall.get_ydata()[0] for wall in walls] == [-2, 5]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("score, float", "score, integer")


def test_a_bar_for_each_name_from_the_top_down(ax):
    plot.bars(ax, {"float": 4.0, "other": 1.0}, title="t", unit="kB")
    assert [bar.get_width() for bar in ax.patches] == [4.0, 1.0]
    assert ax.yaxis_inverted()
    assert ax.get_xlabel() == "kB"


def test_a_line_for_each_name(ax):
    plot.lines(ax, [1, 2], {"static": [3, 4]}, title="t", labels=("x (V)", "y (A)"))
    (line,) = ax.lines
    assert line.get_color() == plot.COLORS["static"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x (V)", "y (A)")


def test_lines_that_are_no_form_differ_without_their_color(ax):
    series = {"one": [1], "static": [2], "other": [3]}
    plot.lines(ax, [0], series, title="t", labels=("x", "y"))
    one, static, other = ax.lines
    assert (static.get_marker(), static.get_linestyle()) == ("s", "-")
    assert one.get_linestyle() != other.get_linestyle()
    assert len({line.get_marker() for line in ax.lines}) == 3


def test_a_roof_rises_with_the_bandwidth_and_ends_at_the_rate(ax):
    points = {"float": (0.5, 4.0), "other": (2.0, 9.0)}
    plot.roofline(ax, points, bandwidth=10.0, rate=80.0, title="t")
    roof, layer, other = ax.lines
    assert list(roof.get_xdata()) == [0.1, 8, 800]
    assert list(roof.get_ydata()) == [1, 80, 80]
    assert (*layer.get_xdata(), *layer.get_ydata()) == (0.5, 4)
    assert (layer.get_color(), other.get_color()) == (plot.WARM, plot.COOL)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_a_ratio_is_drawn_with_its_interval(ax):
    plot.ratios(ax, {"dynamic": Latency(1.0, 0.1, 0.5, 0.4, 0.7)}, title="t")
    interval, point, one = ax.lines
    assert list(interval.get_xdata()) == [0.4, 0.7]
    assert list(point.get_xdata()) == [0.5]
    assert one.get_xdata()[0] == 1


def test_the_trial_has_three_panels():
    fig, axes = plot.figure(3)
    table = pd.DataFrame(
        {"accuracy": [0.9], "size_bytes": [5000], "latency_us": [7.0]}, index=["float"]
    )
    plot.trial(axes, table)
    assert [ax.patches[0].get_width() for ax in axes] == [90.0, 5.0, 7.0]
    plt.close(fig)


def test_a_trial_without_an_accuracy_draws_the_agreement():
    fig, axes = plot.figure(3)
    rows = {"accuracy": float("nan"), "agreement": 0.75, "size_bytes": 1, "ratio": 1}
    plot.trial(axes, pd.DataFrame(rows | {"latency_us": 7.0}, index=["float"]))
    assert axes[0].patches[0].get_width() == 75
    assert axes[0].get_title() == "answers as float's"
    plt.close(fig)


def test_the_front_is_a_line_through_the_best_settings(ax):
    table = pd.DataFrame(
        {
            "size_bytes": [1000, 2000, 3000],
            "error": [0.5, 0.6, 0.25],
            "on_front": [True, False, True],
        }
    )
    plot.front(ax, table, title="t")
    beaten, best = ax.lines
    assert (list(beaten.get_xdata()), list(beaten.get_ydata())) == ([2], [60])
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([1, 3], [50, 25])
    assert (beaten.get_linestyle(), best.get_linestyle()) == ("None", "-")
    assert best.get_color() == plot.COOL


def test_the_map_writes_the_ratio_or_an_equals_sign(ax):
    grid = pd.DataFrame(
        {
            "width": [64, 256, 64, 256],
            "batch": [1, 1, 4, 4],
            "form": "dynamic",
            "ratio": [4.0, 0.25, 1.01, 0.5],
            "verdict": ["slower", "faster", "no difference", "faster"],
        }
    )
    plot.break_even_map(ax, grid, "dynamic", title="t")
    assert texts(ax) == ["4", "0.25", "=", "0.5"]
    assert ax.images[0].get_array().tolist() == [
        [2, -2],
        [0, -1],  # no difference takes no side
    ]
