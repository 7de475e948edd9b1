"""Figures of a survey, drawn from what survey.json holds. Each function returns a figure."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from plotting import COLORS, MARKERS, THEORY

# As many bars stand side by side.
SHOWN = ("sign", "ternary", "lloyd_max_2", "uniform_4", "uniform_8")
# Layers beyond that would be too narrow to read.
WIDEST = 60


def shown(names):
    """The quantizers that are drawn."""
    return [name for name in SHOWN if name in names] or list(names)[: len(SHOWN)]


def _column(layers, name, key):
    values = (layer["quantizers"][name].get(key) for layer in layers)
    return np.array([np.nan if value is None else value for value in values], float)


def _lowest(layers, names):
    columns = [_column(layers, name, key) for name in names for key in ("r", "predicted_r")]
    return np.append(np.concatenate(columns), 1.0)


def plot_layers(layers, names, key, label, theory=None, theory_label=None):
    """Bars of one quantity per layer and quantizer, with a mark where theory puts them.

    Parameters
    ----------
    layers : list of dict
        Of survey.json.
    names : sequence of str
        Quantizers.
    key, label : str
        The quantity, and the axis' label.
    theory, theory_label : str, optional
        The quantity that is drawn as a mark.
    """
    layers = layers[:WIDEST]
    width = 0.8 / len(names)
    figure, axis = plt.subplots(figsize=(max(6, 0.9 + 0.16 * len(layers) * len(names)), 3.2))
    place = np.arange(len(layers))
    for number, name in enumerate(names):
        at = place + (number - (len(names) - 1) / 2) * width
        color = COLORS[number % len(COLORS)]
        axis.bar(at, _column(layers, name, key), 0.9 * width, color=color, label=name)
        if theory:
            mark = {"label": theory_label} if not number else {}
            axis.plot(at, _column(layers, name, theory), "_", color="black", **mark)
    axis.set_xticks(place, [layer["name"] for layer in layers], rotation=60, ha="right", fontsize=7)
    axis.set_ylabel(label)
    if key == "r":  # Where all are close to 1, a bar from 0 would hide the differences.
        axis.set_ylim(bottom=max(0, np.nanmin(_lowest(layers, names)) - 0.05))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def plot_curve(curve, plan, key):
    """Accuracy against bytes: layer after layer in two orders, and the points of the plan.

    Parameters
    ----------
    curve, plan : dict
        Of survey.json.
    key : {'accuracy', 'refitted_accuracy'}
    """
    figure, axis = plt.subplots(figsize=(5.6, 3.6))
    orders = (order for order in ("predicted", "measured") if order in curve)
    for number, order in enumerate(orders):
        points = [(point["bytes"] / 1e3, 100 * point[key]) for point in curve[order]]
        label = f"{curve['quantizer']}, layers in {order} order"
        style = {"color": COLORS[number], "marker": MARKERS[number], "markersize": 3}
        axis.plot(*zip(*points, strict=True), label=label, **style)
    points = [(point["bytes"] / 1e3, 100 * point[key]) for point in plan["tried"]]
    if points:
        axis.plot(*zip(*points, strict=True), ":", color=COLORS[2], label="mixed, one limit on r")
    chosen = plan["bytes"] / 1e3, 100 * plan[key]
    axis.plot(*chosen, "*", color=COLORS[5], markersize=12, label="plan")
    axis.axhline(100 * plan["float_accuracy"], **THEORY, linestyle="--", label="float32")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("kilobytes of all weights")
    axis.set_ylabel("accuracy, %")
    axis.legend(fontsize=7)
    return figure


def plot_plan(layers, plan, bits):
    """Bits of each layer under the plan.

    Parameters
    ----------
    layers, plan
        Of survey.json.
    bits : callable
        Bits per weight of a quantizer's name, or None.
    """
    layers = layers[:WIDEST]
    figure, axis = plt.subplots(figsize=(max(6, 0.9 + 0.3 * len(layers)), 2.8))
    chosen = [plan["quantizers"][layer["name"]] for layer in layers]
    heights = [bits(name) for name in chosen]
    colors = [COLORS[7] if name is None else COLORS[0] for name in chosen]
    axis.bar(range(len(layers)), heights, color=colors)
    for place, (height, name) in enumerate(zip(heights, chosen, strict=True)):
        axis.text(place, height, name or "float32", ha="center", va="bottom", fontsize=6)
    names = [layer["name"] for layer in layers]
    axis.set_xticks(range(len(layers)), names, rotation=60, ha="right", fontsize=7)
    axis.set_yscale("symlog", base=2, linthresh=1)
    axis.set_yticks([1, 2, 4, 8, 32], ["1", "2", "4", "8", "32"])
    axis.set_ylabel("bits per weight")
    return figure


def plot_harm(surveyed, names):
    """Accuracy that is lost against 1 − r as predicted, a point per layer and quantizer."""
    figure, axis = plt.subplots(figsize=(5, 3.6))
    for number, name in enumerate(names):
        harm = np.maximum(1 - _column(surveyed["layers"], name, "predicted_r"), 1e-7)
        lost = 100 * (surveyed["accuracy"] - _column(surveyed["layers"], name, "accuracy"))
        style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number]}
        axis.plot(harm, lost, linestyle="", label=name, **style)
    axis.set_xscale("log")
    axis.set_xlabel("1 − predicted r")
    axis.set_ylabel("points of accuracy lost")
    axis.legend(fontsize=7)
    return figure
