"""Figures of a survey, drawn from what survey.json holds. Each function returns a figure."""

from collections.abc import Callable, Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from plotting import COLORS, MARKERS, THEORY

# As many bars stand side by side.
SHOWN = ("sign", "ternary", "lloyd_max_2", "uniform_4", "uniform_8")


def shown(names: Iterable[str]) -> list[str]:
    """The quantizers that are drawn."""
    return [name for name in SHOWN if name in names] or list(names)[: len(SHOWN)]


def _column(layers, name, key):
    values = (layer["quantizers"][name].get(key) for layer in layers)
    return np.array([np.nan if value is None else value for value in values], float)


def _rows(layers, bars):
    """A figure whose rows are layers, from top to bottom, with so many bars in each."""
    height = 0.9 + len(layers) * (0.12 * bars + 0.12)
    figure, axis = plt.subplots(figsize=(7, height), layout="constrained")
    axis.set_yticks(range(len(layers)), [layer["name"] for layer in layers], fontsize=7)
    axis.set_ylim(len(layers) - 0.5, -0.5)
    return figure, axis


def plot_layers(
    layers: list[dict],
    names: Sequence[str],
    key: str,
    label: str,
    of: Callable[[float], float] = lambda v: v,
    log: bool = False,
    theory: str | None = None,
    marks: str | None = None,
) -> Figure:
    """Bars of one quantity per layer and quantizer, with a mark where theory puts them.

    Parameters
    ----------
    layers : list of dict
        Of survey.json.
    names : sequence of str
        Quantizers.
    key, label : str
        The quantity, and the axis' label.
    of : callable
        What is drawn of the quantity.
    log : bool
    theory, marks : str, optional
        The quantity that is drawn as a mark, and what the legend says of it.
    """
    figure, axis = _rows(layers, len(names))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        at = np.arange(len(layers)) + (number - (len(names) - 1) / 2) * width
        color = COLORS[number % len(COLORS)]
        axis.barh(at, of(_column(layers, name, key)), 0.9 * width, color=color, label=name)
        if theory:
            mark = {"label": marks} if not number else {}
            axis.plot(of(_column(layers, name, theory)), at, "|", color="black", **mark)
    if log:
        axis.set_xscale("log")
    axis.set_xlabel(label)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def plot_plan(layers: list[dict], plan: dict) -> Figure:
    """Bits of each layer under the plan of survey.json."""
    figure, axis = _rows(layers, 1)
    for place, layer in enumerate(layers):
        name, bits = plan["quantizers"][layer["name"]], plan["bits"][layer["name"]]
        axis.barh(place, bits, color=COLORS[0] if name else COLORS[7])
        axis.text(bits, place, f" {name or 'float32'}", va="center", fontsize=7)
    axis.set_xscale("symlog", base=2, linthresh=1)
    axis.set_xlim(0, 100)
    axis.set_xticks([1, 2, 3, 4, 8, 32], ["1", "2", "3", "4", "8", "32"])
    axis.set_xlabel("bits per weight")
    return figure


def plot_curve(curve: dict, plan: dict, key: str) -> Figure:
    """Accuracy against bytes: layer after layer in two orders, and the points of the plan.

    Parameters
    ----------
    curve, plan : dict
        Of survey.json.
    key : {'accuracy', 'refitted_accuracy'}
    """
    figure, axis = plt.subplots(figsize=(5.6, 3.6), layout="constrained")

    def line(points, *style, **options):
        pairs = [(point["bytes"] / 1e3, 100 * point[key]) for point in points]
        axis.plot(*zip(*pairs, strict=True), *style, **options)

    for number, order in enumerate(order for order in ("predicted", "measured") if order in curve):
        style = {"color": COLORS[number], "marker": MARKERS[number], "markersize": 3}
        line(curve[order], label=f"{curve['quantizer']}, layers in {order} order", **style)
    for number, order in enumerate(("predicted", "measured")):
        if points := [point for point in plan["tried"] if point["by"] == order]:
            line(points, ":", color=COLORS[number], label=f"mixed, one limit on the {order} harm")
    line([plan], "*", color=COLORS[5], markersize=12, label="plan")
    axis.axhline(100 * plan["float_accuracy"], **THEORY, linestyle="--", label="float32")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("kilobytes of all weights")
    axis.set_ylabel("accuracy, %")
    axis.legend(fontsize=7)
    return figure


def plot_harm(surveys: list[dict], names: Sequence[str]) -> Figure:
    """Accuracy that is lost against 1 − r as predicted, a point per layer and quantizer.

    Parameters
    ----------
    surveys : list of dict
        One panel for each survey.json.
    names : sequence of str
    """
    size = (1 + 3.2 * len(surveys), 3.4)
    figure, axes = plt.subplots(1, len(surveys), figsize=size, squeeze=False, layout="constrained")
    for axis, surveyed in zip(axes[0], surveys, strict=True):
        layers = surveyed["layers"]
        for number, name in enumerate(names):
            harm = np.maximum(1 - _column(layers, name, "predicted_r"), 1e-7)
            lost = 100 * _column(layers, name, "lost")
            style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number]}
            axis.plot(harm, lost, linestyle="", markersize=4, label=name, **style)
        axis.set_xscale("log")
        axis.set_xlabel("1 − predicted r")
        axis.set_title(surveyed["model"] if len(surveys) > 1 else "")
    axes[0, 0].set_ylabel("points of accuracy lost")
    axes[0, 0].legend(fontsize=7)
    return figure
