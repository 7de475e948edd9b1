"""Figures, drawn from arrays that others computed. Angles come in radians and are drawn in degrees.

Every function returns a matplotlib figure.
"""

import matplotlib.pyplot as plt
import numpy as np

import geometry
from utils import atomic_path

# Okabe and Ito's palette: told apart by colour-blind readers and in grey print.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C00", "#7F3C8D")
LINES = ("-", "--", "-.", ":")
THEORY = {"color": "black", "linewidth": 1.2}

plt.rcParams.update(
    {
        "figure.dpi": 110,
        "savefig.dpi": 150,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }
)


def save_figure(figure, folder, name):
    """Write `figure` as PNG and PDF to `folder`/`name`, and return the PNG's path."""
    for suffix in (".pdf", ".png"):
        with atomic_path((folder / name).with_suffix(suffix)) as temporary:
            figure.savefig(temporary)
    return (folder / name).with_suffix(".png")


def _grid(count, columns=3, size=(2.9, 2.6)):
    columns = min(count, columns)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False
    )
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, axes.flat[:count]


def _layer_style(index):
    return {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index % len(LINES)]}


# --- Trained layers ---------------------------------------------------------------------------


def plot_layer_angles(layers):
    """Distribution over units of angle(w^c, w^b), layer by layer: zoomed, and over [0, π].

    Parameters
    ----------
    layers : sequence
        With `name`, `fan_in` and `angles` (radians, one per unit), as `report.LayerMeasurement`.
    """
    figure, (zoomed, whole) = plt.subplots(1, 2, figsize=(9, 3.4))
    angles = [np.degrees(layer.angles[np.isfinite(layer.angles)]) for layer in layers]
    gaussian = np.degrees(geometry.binary_angle())
    low, high = min(map(np.min, angles)), max(map(np.max, angles))
    low, high = min(low, gaussian) - 1, max(high, gaussian) + 1
    for axis, edges in ((zoomed, np.linspace(low, high, 100)), (whole, np.arange(0, 180.5, 1))):
        for i, (layer, values) in enumerate(zip(layers, angles, strict=True)):
            density = np.histogram(values, edges)[0] / len(values) / np.diff(edges)
            label = f"{layer.name}, d = {layer.fan_in}"
            axis.stairs(density, edges, label=label, linewidth=1.2, **_layer_style(i))
        axis.axvline(gaussian, label=f"Gaussian: {gaussian:.2f}°", **THEORY)
        axis.set(xlabel="angle(w$^c$, w$^b$) (degrees)", xlim=edges[[0, -1]])
    zoomed.set_ylabel("density over units (1/degree)")
    whole.axvline(90, color="grey", linewidth=0.8, linestyle=":")
    whole.annotate(
        "random\npair", (90, 0.9), xycoords=("data", "axes fraction"), ha="left", color="grey"
    )
    whole.set_xticks(range(0, 181, 45))
    whole.legend(fontsize=7)
    return figure


def plot_angle_scaling(layers):
    """Standard deviation of the angles against fan-in d, with the Gaussian d^(−1/2) line.

    Parameters
    ----------
    layers : sequence
        As for `plot_layer_angles`; also `convolutional`.
    """
    figure, axis = plt.subplots(figsize=(4.6, 3.4))
    d = np.array([layer.fan_in for layer in layers], float)
    span = np.unique(np.rint(np.geomspace(d.min() / 2, d.max() * 2, 200)))
    axis.loglog(
        span, np.degrees(geometry.angle_moments(span)[1]), label="Gaussian theory", **THEORY
    )
    for conv, marker, label in ((True, "o", "convolutional"), (False, "s", "fully connected")):
        chosen = [layer for layer in layers if layer.convolutional is conv]
        axis.loglog(
            [layer.fan_in for layer in chosen],
            [np.degrees(np.nanstd(layer.angles)) for layer in chosen],
            marker,
            color=COLORS[0 if conv else 5],
            label=label,
        )
    for layer in layers:
        axis.annotate(
            layer.name,
            (layer.fan_in, np.degrees(np.nanstd(layer.angles))),
            textcoords="offset points",
            xytext=(6, 3),
            fontsize=7,
        )
    axis.set(xlabel="fan-in d", ylabel="sd of angle(w$^c$, w$^b$) over units (degrees)")
    axis.legend()
    return figure


def plot_dot_products(layers, which):
    """2-D histograms of dot products before and after quantization, layer by layer.

    Sign changes lie in the shaded quadrants.

    Parameters
    ----------
    layers : sequence
        With `name` and the attribute `which`, a `geometry.DotProductStatistics` with a histogram
        or None (layer not drawn).
    which : {'weights_dot', 'activations_dot'}
    """
    labels = {
        "weights_dot": ("A·w$^c$", "A·w$^b$"),
        "activations_dot": ("A$^c$·w$^b$", "A$^b$·w$^b$"),
    }[which]
    layers = [layer for layer in layers if getattr(layer, which) is not None]
    figure, axes = _grid(len(layers))
    for layer, axis in zip(layers, axes, strict=True):
        _draw_pairs(axis, getattr(layer, which))
        axis.set_title(layer.name, loc="left", fontsize=9)
    for axis in axes:
        axis.set(xlabel=labels[0], ylabel=labels[1])
    return figure


def _draw_pairs(axis, statistics):
    left, right, bottom, top = statistics.extent
    counts = np.ma.masked_equal(statistics.histogram.T, 0)
    axis.imshow(
        counts, origin="lower", extent=statistics.extent, aspect="auto", cmap="viridis", norm="log"
    )
    for x0, y0, width, height in ((left, 0, -left, top), (0, bottom, right, -bottom)):
        axis.add_patch(plt.Rectangle((x0, y0), width, height, color="grey", alpha=0.25, zorder=0))
    axis.axhline(0, color="grey", linewidth=0.6)
    axis.axvline(0, color="grey", linewidth=0.6)
    axis.text(
        0.03,
        0.97,
        f"r = {statistics.correlation():.3f}\nsign changes {statistics.sign_changes():.1%}",
        transform=axis.transAxes,
        va="top",
        fontsize=8,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
    )


def plot_weights(layers):
    """Distribution of the latent weights, layer by layer, with the share that sits at ±1.

    Parameters
    ----------
    layers : sequence
        With `name` and `wc`, the latent weights.
    """
    figure, axes = _grid(len(layers))
    for layer, axis in zip(layers, axes, strict=True):
        w, deviation = layer.wc.ravel(), layer.wc.std()
        limit = min(1.0, np.abs(w).max())
        axis.hist(w, np.linspace(-limit, limit, 81), density=True, color=COLORS[4])
        x = np.linspace(-limit, limit, 400)
        gaussian = np.exp(-0.5 * (x / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))
        axis.plot(x, gaussian, label="Gaussian of\nthe same sd", **THEORY)
        axis.set_title(
            f"{layer.name}: sd {deviation:.3f}, {geometry.saturated_share(w):.2%} at ±1",
            loc="left",
            fontsize=8,
        )
        axis.set(xlabel="latent weight w$^c$", ylabel="density")
    axes[0].legend(fontsize=7)
    return figure


def run_figures(layers, folder):
    """Write the figures of a trained network to `folder`, as PNG and PDF."""
    figures = {
        "angles": plot_layer_angles(layers),
        "angle_scaling": plot_angle_scaling(layers),
        "weights_dot": plot_dot_products(layers, "weights_dot"),
        "activations_dot": plot_dot_products(layers, "activations_dot"),
        "weights": plot_weights(layers),
    }
    for name, figure in figures.items():
        save_figure(figure, folder, name)
        plt.close(figure)
