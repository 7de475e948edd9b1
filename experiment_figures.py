"""Figures of the experiments: controls, flips, other networks, verification.

Every function returns a matplotlib figure of arrays that others computed.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import geometry
from plotting import COLORS, MARKERS, THEORY, grid, layer_style, legend_below


def plot_counterexample(image: np.ndarray, found: np.ndarray, label: int, predicted: int) -> Figure:
    """An image, the image that gets another label, and where they differ.

    Parameters
    ----------
    image, found : ndarray of uint8, shape (rows, columns, 1 or 3)
    label, predicted : int
        What the network calls each of them.
    """
    figure, axes = grid(3, size=(1.7, 2.0))
    change = found.astype(int) - image
    most = np.abs(change).max()
    pictures = (
        (image, f"{label}"),
        (found, f"{predicted}"),
        ((change / most + 1) / 2, f"change, at most {most}/255"),
    )
    for axis, (picture, title) in zip(axes, pictures, strict=True):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.dtype == float else 255)
        axis.set_title(title, fontsize=8)
        axis.set_axis_off()
    return figure


def plot_drift(
    edges: np.ndarray, layers: dict[str, dict[str, np.ndarray]], least: int = 100
) -> Figure:
    """Mean change per step of a latent weight's distance from the threshold, by that distance.

    Parameters
    ----------
    edges : ndarray, shape (cells + 1,)
        From `flips.drift_distances`.
    layers : dict
        From `flips.read_flips`.
    least : int
        Weights and steps that a cell must be a mean of, to be drawn.
    """
    figure, axis = plt.subplots(figsize=(6.2, 3.2))
    for index, (name, found) in enumerate(layers.items()):
        # A gap where there are too few, no line across it.
        drift = np.where(found["drift_count"] >= least, found["drift"], np.nan)
        middle = (edges[1:] + edges[:-1]) / 2
        axis.plot(middle, drift, label=name, marker=".", **layer_style(index))
    axis.axhline(0, **THEORY)
    axis.set_xscale("log")
    # Near the threshold the drift is a hundred times smaller than far from it.
    axis.set_yscale("symlog", linthresh=1e-6)
    axis.set_xlabel("distance from the threshold")
    axis.set_ylabel("drift per step\n(positive: away from it)")
    legend_below(figure, axis)
    return figure


def plot_controls(controls: dict[str, dict[str, tuple[float, float]]]) -> Figure:
    """Angle and r of each layer of a trained network, and of its controls: four bars a layer.

    Parameters
    ----------
    controls : dict
        From `experiments.control_measurements`.
    """
    titles = {
        "trained": "trained",
        "untrained": "not trained",
        "float": "trained as floats, binarized after",
        "shuffled": "trained, weights of each unit shuffled",
    }
    names = list(controls["trained"])
    figure, axes = plt.subplots(2, 1, figsize=(1.0 + 0.8 * len(names), 4.6), sharex=True)
    width, places = 0.8 / len(controls), np.arange(len(names))
    for index, (control, layers) in enumerate(controls.items()):
        values = np.array([layers[name] for name in names])
        left = places + (index - (len(controls) - 1) / 2) * width
        style = {"width": width, "color": COLORS[index], "label": titles[control]}
        axes[0].bar(left, np.degrees(values[:, 0]), **style)
        axes[1].bar(left, values[:, 1], **style)
    axes[0].axhline(np.degrees(geometry.binary_angle()), **THEORY)
    axes[0].set_ylabel("mean angle (°)")
    axes[1].set_ylabel("r of A·w$^c$ with A·w$^b$")
    axes[1].axhline(np.cos(geometry.binary_angle()), **THEORY)
    axes[1].set_xticks(places, names)
    axes[0].set_title("Black: Gaussian weights, 37.07°, and its cosine", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def plot_verified(rows: Sequence[dict]) -> Figure:
    """Verified accuracy of each network against ε, below its attacked accuracy.

    The truth lies in the band between them: what is undecided is in it. Bars are one sampling
    error.

    Parameters
    ----------
    rows : sequence of dict
        With `network`, `epsilon`, `images`, and the shares `natural`, `attacked` and `verified`;
        see `tools.robustness`.
    """
    figure, axis = plt.subplots(figsize=(5.4, 3.4))
    for number, network in enumerate(dict.fromkeys(row["network"] for row in rows)):
        own = sorted((row for row in rows if row["network"] == network), key=lambda r: r["epsilon"])
        color = COLORS[number % len(COLORS)]
        first = own[0]
        # Within no change the natural accuracy is both.
        values = [(0.0, first["natural"], first["natural"], first["images"])]
        values += [(r["epsilon"], r["verified"], r["attacked"], r["images"]) for r in own]
        epsilon, verified, attacked, images = np.array(values, float).T
        axis.fill_between(epsilon, 100 * verified, 100 * attacked, color=color, alpha=0.2)
        error = 100 * np.sqrt(verified * (1 - verified) / images)
        style = {"color": color, "marker": MARKERS[number % len(MARKERS)], "capsize": 2}
        axis.errorbar(epsilon, 100 * verified, yerr=error, label=network, **style)
    axis.set(xlabel="ε, on the scale of pixels from 0 to 1", ylabel="verified accuracy (%)")
    axis.set(xlim=(0, None), ylim=(0, 101))
    legend_below(figure, axis)
    return figure


def plot_over_time(panels: dict[str, dict[str, tuple[Sequence[int], np.ndarray]]]) -> Figure:
    """r at each time step of recurrent networks: lines are means over seeds, bands their range.

    Parameters
    ----------
    panels : dict
        By title a dict of (steps, values): by kind of network the time steps, shape (steps,), and
        r, shape (seeds, steps).
    """
    figure, axes = grid(len(panels), columns=2, size=(3.6, 2.7))
    kinds = list(dict.fromkeys(kind for lines in panels.values() for kind in lines))
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for kind, (steps, values) in lines.items():
            style = layer_style(kinds.index(kind))
            axis.plot(steps, np.mean(values, axis=0), label=kind, **style)
            band = np.min(values, axis=0), np.max(values, axis=0)
            axis.fill_between(steps, *band, color=style["color"], alpha=0.2, linewidth=0)
        axis.set_title(title, loc="left", fontsize=9)
        axis.set(xlabel="time step", ylabel="r")
        axis.xaxis.get_major_locator().set_params(integer=True)
    legend_below(figure, axes[0])
    return figure


def plot_causes(arms: dict[str, np.ndarray], images: int) -> Figure:
    """Validation accuracy and r of trainings against the angle of their weights, a mark a run.

    Bars are one sampling error. The curve is the cosine of the angle.

    Parameters
    ----------
    arms : dict
        From `tools.arms.geometry_by_arm`.
    images : int
        Validation images.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2))
    for index, (arm, runs) in enumerate(arms.items()):
        angle, r, accuracy = runs.T
        style = {"color": COLORS[index], "marker": MARKERS[index], "linestyle": ""}
        error = 100 * np.sqrt(accuracy * (1 - accuracy) / images)
        left.errorbar(angle, 100 * accuracy, yerr=error, label=arm, **style)
        right.plot(angle, r, **style)
    angles = np.linspace(*right.get_xlim(), 100)
    right.plot(angles, np.cos(np.radians(angles)), **THEORY)
    right.set_title("Black: cosine of the angle", fontsize=9)
    left.set_ylabel("validation accuracy (%)")
    right.set_ylabel("r of A·w$^c$ with A·w$^b$")
    for axis in (left, right):
        axis.set_xlabel("mean angle (°)")
        axis.locator_params(axis="x", nbins=6)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def plot_flips(arms: dict[str, tuple[list[int], list[list[float]]]]) -> Figure:
    """Share of weights that flip in each epoch: lines are means over seeds, bands their range.

    Parameters
    ----------
    arms : dict
        From `tools.arms.flips_by_arm`.
    """
    figure, axis = plt.subplots(figsize=(5.6, 3.2))
    for index, (arm, (epochs, values)) in enumerate(arms.items()):
        style = layer_style(index)
        axis.plot(epochs, 100 * np.mean(values, axis=0), label=arm, **style)
        band = 100 * np.min(values, axis=0), 100 * np.max(values, axis=0)
        axis.fill_between(epochs, *band, color=style["color"], alpha=0.2, linewidth=0)
    axis.set(xlabel="epochs", ylabel="weights changed by the epoch (%)", ylim=(0, None))
    axis.xaxis.get_major_locator().set_params(integer=True)
    legend_below(figure, axis)
    return figure


def plot_energy(rows: Sequence[dict]) -> Figure:
    """Bytes that one image moves, and the energy of its operations, network by network.

    Parameters
    ----------
    rows : sequence of dict
        As `tools.energy` writes them, numbers as numbers.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.4))
    names = [row["network"] for row in rows]
    places = np.arange(len(rows))
    for shift, part, hatch in ((-0.2, "weights", ""), (0.2, "activations", "//")):
        values = [row[f"bytes of {part}"] / 1e6 for row in rows]
        bars = left.barh(places + shift, values, 0.38, label=part, hatch=hatch, edgecolor="white")
        left.bar_label(bars, fmt=_short, padding=2, fontsize=7)
    bars = right.barh(places, [row["µJ computing"] for row in rows], 0.5, color=COLORS[2])
    right.bar_label(bars, fmt=_short, padding=2, fontsize=7)
    for axis, label in ((left, "MB moved"), (right, "energy of the operations (µJ)")):
        axis.set(xscale="log", xlabel=label, yticks=places, yticklabels=names)
        axis.invert_yaxis()
        axis.margins(x=0.15)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def _short(value):
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
