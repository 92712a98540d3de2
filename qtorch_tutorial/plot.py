"""Draw one finding on a given ``ax``: the only module that imports matplotlib.

The color law of the book: warm is float and experiment, cool is integer and counsel.
Markers, hatches and labels differ too, so that every figure reads in black and white.
"""

import itertools
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from qtorch_tutorial.convert import DYNAMIC, FLOAT, FORMS, FUSED, QAT, QAT_FUSED, STATIC
from qtorch_tutorial.measure import Latency

WARM = FLOAT.color
COOL = STATIC.color
COLORS = {form.name: form.color for form in FORMS}
MARKERS = {
    FLOAT.name: "o",
    DYNAMIC.name: "^",
    STATIC.name: "s",
    FUSED.name: "D",
    QAT.name: "P",
    QAT_FUSED.name: "X",
}
HATCHES = {
    FLOAT.name: "",
    DYNAMIC.name: "//",
    STATIC.name: "..",
    FUSED.name: "xx",
    QAT.name: "--",
    QAT_FUSED.name: "++",
}
WARM_TO_COOL = LinearSegmentedColormap.from_list(
    "warm_to_cool", [COOL, "#f7f7f7", WARM]
)
"""From cool (integers win) over white to warm (float wins)."""


def figure(columns: int = 1, *, height: float = 3.0) -> tuple[Figure, Axes]:
    """Make a figure 7.5 inches wide with ``columns`` axes side by side.

    Returns
    -------
    (Figure, Axes)
        An array of Axes if ``columns`` is more than 1.
    """
    fig, axes = plt.subplots(
        1, columns, figsize=(7.5, height), dpi=110, layout="constrained"
    )
    for ax in [axes] if columns == 1 else axes:
        ax.spines[["top", "right"]].set_visible(False)
    return fig, axes


def on_grid(ax: Axes, floats: Tensor, grid: Tensor, *, title: str, unit: str) -> None:
    """Draw values in float and the same values on their grid, one by one.

    Parameters
    ----------
    floats, grid : float tensors, shape (n,)
        The values, and what quantizing and dequantizing makes of them.
    title : str
        The finding.
    unit : str
        Label of the value axis, with its unit.
    """
    places = range(len(floats))
    ax.step(places, grid, where="mid", color=COOL, linewidth=1.5, label="on the grid")
    ax.plot(places, floats, "o", color=WARM, markersize=4, label="float")
    ax.set(title=title, xlabel="index", ylabel=unit)
    ax.legend(frameon=False)


def error_in_steps(ax: Axes, error: Tensor, scale: Tensor, *, title: str) -> None:
    """Draw how often which rounding error occurs, in steps of the grid.

    Parameters
    ----------
    error : float tensor
        Value on the grid minus float value.
    scale : float tensor
        The step; broadcasts against ``error``.
    title : str
        The finding.
    """
    steps = (error / scale).flatten()
    ax.hist(steps.numpy(), bins=41, color=COOL, edgecolor="white", linewidth=0.3)
    for end in (-0.5, 0.5):
        ax.axvline(end, color=WARM, linestyle="--", linewidth=1.2)
    ax.set(title=title, xlabel="error (steps)", ylabel="count")


def against_float(
    ax: Axes,
    floats: Tensor,
    integers: Tensor,
    *,
    ends: tuple[float, float],
    title: str,
    unit: str,
) -> None:
    """Draw each output of an integer layer over the float layer's output.

    Parameters
    ----------
    floats, integers : float tensors, same shape
        Outputs of the float layer, and of the integer layer read back as floats.
    ends : (float, float)
        The least and the greatest value of the output's grid, drawn as walls.
    title : str
        The finding.
    unit : str
        What the outputs are, with their unit.
    """
    ax.axline((0, 0), slope=1, color=WARM, linewidth=1.2, label="exact")
    ax.plot(floats.flatten(), integers.flatten(), ".", color=COOL, markersize=2)
    for end in ends:
        ax.axhline(end, color="gray", linestyle="--", linewidth=1)
    ax.set(title=title, xlabel=f"{unit}, float", ylabel=f"{unit}, integer")


def bars(ax: Axes, values: Mapping[str, float], *, title: str, unit: str) -> None:
    """Draw one bar for each name; a form's bar has the form's color and hatch.

    Parameters
    ----------
    values : mapping of str to float
        A value for each bar; the name of a form gets its color, others are cool.
    title : str
        The finding.
    unit : str
        Label of the value axis, with its unit.
    """
    for name, value in values.items():
        color, hatch = COLORS.get(name, COOL), HATCHES.get(name, "")
        ax.barh(name, value, color=color, hatch=hatch, edgecolor="white")
    ax.invert_yaxis()
    ax.set(title=title, xlabel=unit)


def lines(
    ax: Axes,
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    labels: tuple[str, str],
) -> None:
    """Draw one line for each name over ``x``; a form's line has its color and marker.

    Other names are cool, with a marker and a dash pattern each.

    Parameters
    ----------
    x : sequence of float
    series : mapping of str to sequence of float
    title : str
        The finding.
    labels : (str, str)
        Labels of the two axes, with their units.
    """
    others = itertools.cycle((("v", "-"), ("P", "--"), ("X", ":")))
    for name, y in series.items():
        marker, dashes = (MARKERS[name], "-") if name in MARKERS else next(others)
        color = COLORS.get(name, COOL)
        ax.plot(x, y, dashes, marker=marker, color=color, label=name)
    ax.set(title=title, xlabel=labels[0], ylabel=labels[1])
    ax.legend(frameon=False)


def roofline(
    ax: Axes,
    points: Mapping[str, tuple[float, float]],
    *,
    bandwidth: float,
    rate: float,
    title: str,
) -> None:
    """Draw the two limits of a machine, and where layers stand under them.

    Parameters
    ----------
    points : mapping of str to (float, float)
        Operations per byte, and 10^9 operations per second, of each layer.
    bandwidth, rate : float
        The limits in GB and in 10^9 operations per second.
    title : str
        The finding.
    """
    ridge = rate / bandwidth
    ends = (0.1, ridge, 100 * ridge)
    ax.loglog(ends, [min(rate, bandwidth * x) for x in ends], "k-", label="roof")
    for name, point in points.items():
        marker, color = MARKERS.get(name, "s"), COLORS.get(name, COOL)
        ax.loglog(*point, marker, color=color, markersize=8, label=name)
    labels = ("intensity (operations per byte)", "10^9 operations per second")
    ax.set(title=title, xlabel=labels[0], ylabel=labels[1])
    ax.legend(frameon=False)


def ratios(ax: Axes, times: Mapping[str, Latency], *, title: str) -> None:
    """Draw each candidate's time over the first one's, with its 95 % interval."""
    for name, time in times.items():
        color, marker = COLORS.get(name, COOL), MARKERS.get(name, "s")
        ax.plot([time.low, time.high], [name, name], color=color, linewidth=3)
        ax.plot([time.ratio], [name], marker=marker, color=color, markersize=8)
    ax.axvline(1, color="gray", linewidth=1, linestyle="--")
    ax.invert_yaxis()
    ax.set(title=title, xlabel="time / time of the first (95 % interval)")
    ax.margins(y=0.2)


def trial(axes: Sequence[Axes], table: pd.DataFrame) -> None:
    """Draw accuracy, bytes and time of every form side by side.

    Without an accuracy (random data have none) the agreement with float is drawn.

    Parameters
    ----------
    axes : three Axes
    table : DataFrame
        From :func:`qtorch_tutorial.compare.compare`.
    """
    if table.accuracy.notna().all():
        bars(axes[0], 100 * table.accuracy, title="right answers", unit="accuracy (%)")
    else:
        share = 100 * table.agreement
        bars(axes[0], share, title="answers as float's", unit="agreement (%)")
    bars(axes[1], table.size_bytes / 1000, title="memory", unit="size (kB)")
    bars(axes[2], table.latency_us, title="time of a call", unit="median (µs)")
    for ax in axes[1:]:
        ax.set_yticks([])


def front(ax: Axes, table: pd.DataFrame, *, title: str) -> None:
    """Draw every setting, and the Pareto front: the settings that no other beats.

    Parameters
    ----------
    table : DataFrame
        From :func:`qtorch_tutorial.search.search`; the error is drawn in percent.
    title : str
        The finding.
    """
    x, y = table.size_bytes / 1000, 100 * table.error
    best = table.on_front
    ax.plot(x[~best], y[~best], "o", color="gray", markersize=4, label="beaten")
    ax.plot(x[best], y[best], "s-", color=COOL, label="Pareto front")
    ax.set(title=title, xlabel="size (kB)", ylabel="error (%)")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)


def break_even_map(ax: Axes, grid: pd.DataFrame, form: str, *, title: str) -> None:
    """Draw where ``form`` beats float: a cell for each width and batch.

    A number is the form's time over float's; where the interval contains 1 the cell is
    white and shows an equals sign instead.

    Parameters
    ----------
    grid : DataFrame
        From :func:`qtorch_tutorial.compare.break_even`.
    form : str
        The name of the form.
    title : str
        The finding.
    """
    rows = grid[grid.form == form]
    ratio = rows.pivot(index="batch", columns="width", values="ratio")
    told = rows.pivot(index="batch", columns="width", values="verdict")
    colors = np.where(told == "no difference", 0, np.log2(ratio.to_numpy()))
    ax.imshow(colors, cmap=WARM_TO_COOL, vmin=-3, vmax=3, origin="lower", aspect="auto")
    for i in range(len(ratio.index)):
        for j in range(len(ratio.columns)):
            same = told.iloc[i, j] == "no difference"
            text = "=" if same else f"{ratio.iloc[i, j]:.2g}"
            dark = abs(colors[i, j]) > 1.7
            ax.text(j, i, text, ha="center", va="center", color="w" if dark else "k")
    ax.set_xticks(range(len(ratio.columns)), ratio.columns)
    ax.set_yticks(range(len(ratio.index)), ratio.index)
    ax.spines[:].set_visible(False)
    ax.set(title=title, xlabel="width (features)", ylabel="batch (rows)")
