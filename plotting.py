"""Figures, drawn from arrays that others computed. Angles come in radians and are drawn in degrees.

Every `plot_` function returns a matplotlib figure.
"""

from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.stats import norm

import geometry
from utils import atomic_path

# Okabe and Ito's palette: told apart by colour-blind readers and in grey print.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C00", "#7F3C8D")
LINES = ("-", "--", "-.", ":")
MARKERS = "os^Dv<>PX*hd"
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
        "pdf.fonttype": 42,
    }
)


def save_figure(figure, folder, name):
    """Write `figure` as PNG and PDF to `folder`/`name`, and return the PNG's path."""
    path = Path(folder) / name
    # Without a date the same figure is the same file.
    for suffix, metadata in ((".pdf", {"CreationDate": None}), (".png", None)):
        with atomic_path(path.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, metadata=metadata)
    return path.with_suffix(".png")


def figure_pixels(figure):
    """Draw `figure` as uint8 pixels, shape (height, width, 4), and close it."""
    figure.canvas.draw()
    pixels = np.array(figure.canvas.buffer_rgba())
    plt.close(figure)
    return pixels


def _grid(count, columns=3, size=(2.9, 2.6)):
    columns = min(count, columns)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False
    )
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, axes.flat[:count]


def _draw_density(axis, values, edges, **style):
    """Histogram that integrates to 1, as one shape: a bar each would take seconds to write."""
    density, edges = np.histogram(values, edges, density=True)
    axis.stairs(density, edges, fill=True, **style)


def _plain_ticks(axis):
    """Numbers like 0.3, 1, 3 along a logarithmic axis, in place of powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _legend_below(figure, axis):
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def _layer_style(index):
    turn = index // len(COLORS)
    return {"color": COLORS[index % len(COLORS)], "linestyle": LINES[(index + turn) % len(LINES)]}


def _layer_marker(index):
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


# --- Theory -----------------------------------------------------------------------------------


def plot_straight_through(x, curves, ramp):
    """Quantizers, the gradients that training sees in their place, and the ramp these belong to.

    Parameters
    ----------
    x : ndarray, shape (n,)
    curves : dict
        Name to (forward, gradient), arrays of shape (n,).
    ramp : ndarray, shape (n,)
        The function whose derivative the gradients are.
    """
    figure, axes = _grid(len(curves), size=(3.4, 2.7))
    for axis, (name, (forward, gradient)) in zip(axes, curves.items(), strict=True):
        axis.plot(x, forward, color=COLORS[0], linewidth=2, label="forward")
        axis.plot(x, ramp, color="black", linestyle=":", label="clip(x, −1, 1)")
        axis.plot(x, gradient, color=COLORS[5], linestyle="--", label="gradient, that of the clip")
        axis.set_title(name, loc="left", fontsize=9)
        axis.set_xlabel("x")
    axes[0].set_ylabel("value")
    _legend_below(figure, axes[0])
    return figure


def plot_angle_samples(samples, density=None, moments=None):
    """Histograms of sampled angles, one panel per dimension, with the theory on top.

    Parameters
    ----------
    samples : dict
        Dimension d to angles in radians.
    density : callable, optional
        (angles, d) to the probability density per radian, drawn as a line.
    moments : callable, optional
        d to (mean, sd) in radians, drawn as the normal density with these and a line at the mean.
    """
    figure, axes = _grid(len(samples), size=(2.4, 2.1))
    for axis, (d, angles) in zip(axes, samples.items(), strict=True):
        degrees = np.degrees(angles)
        _draw_density(axis, degrees, "auto", color=COLORS[4], label="samples")
        grid = np.linspace(degrees.min(), degrees.max(), 400)
        if density is not None:
            line = np.radians(density(np.radians(grid), d))
            axis.plot(grid, line, label="theory", **THEORY)
        if moments is not None:
            mean, sd = np.degrees(moments(d))
            line = norm.pdf(grid, mean, sd)
            axis.plot(grid, line, label="normal with the theory's mean and sd", **THEORY)
            axis.axvline(mean, label="theory: mean", linestyle="--", **THEORY)
        axis.set_title(f"d = {d}", loc="left", fontsize=9)
        axis.set_xlabel("angle (degrees)")
    axes[0].set_ylabel("density (1/degree)")
    _legend_below(figure, axes[0])
    return figure


def plot_angle_ranges(binarized, random):
    """Angles to the own sign and to another vector, over all of [0, π], per dimension.

    Parameters
    ----------
    binarized, random : dict
        Dimension d to angles in radians.
    """
    figure, axes = _grid(len(binarized), size=(2.4, 2.1))
    edges, grid = np.arange(181), np.linspace(0, 180, 1801)
    limit = np.degrees(geometry.binary_angle())
    for axis, d in zip(axes, binarized, strict=True):
        for angles, color, label in (
            (binarized[d], COLORS[0], "with its own sign"),
            (random[d], COLORS[1], "with another vector"),
        ):
            _draw_density(axis, np.degrees(angles), edges, color=color, alpha=0.75, label=label)
        line = np.radians(geometry.angle_density(np.radians(grid), d))
        axis.plot(grid, line, label="theory of the latter", **THEORY)
        axis.axvline(limit, color="black", linestyle=":", label=f"d → ∞: {limit:.2f}°")
        axis.set_title(f"d = {d}", loc="left", fontsize=9)
        axis.set(xlabel="angle (degrees)", xlim=(0, 180), xticks=range(0, 181, 45))
    axes[0].set_ylabel("density (1/degree)")
    _legend_below(figure, axes[0])
    return figure


def plot_spread(samples):
    """Standard deviation of sampled angles against dimension, with theory and d^(−1/2).

    On the left as it is, on the right times √d, with standard errors.

    Parameters
    ----------
    samples : dict
        Dimension d to angles in radians.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3))
    d = np.array(list(samples))
    spread = np.array([np.degrees(angles.std()) for angles in samples.values()])
    error = spread / np.sqrt([2 * len(angles) for angles in samples.values()])
    span = np.unique(np.rint(np.geomspace(d.min(), d.max(), 100)))
    theory = np.degrees(geometry.angle_moments(span)[1])
    limit = np.degrees(np.sqrt((1 - 3 / np.pi) / (1 - 2 / np.pi)))
    for axis, power in ((left, 0), (right, 0.5)):
        axis.plot(span, theory * span**power, label="theory", **THEORY)
        line = limit * span ** (power - 0.5)
        axis.plot(span, line, color=COLORS[5], linestyle=":", label=f"{limit:.2f}°·d$^{{-1/2}}$")
        y, bars = spread * d**power, error * d**power
        axis.errorbar(d, y, bars, fmt="o", markersize=5, color=COLORS[0], label="samples")
        axis.set(xlabel="dimension d", xscale="log")
    left.set(ylabel="sd of the angle (degrees)", yscale="log")
    _plain_ticks(left.yaxis)
    right.set_ylabel("sd of the angle · √d (degrees)")
    left.legend()
    return figure


def plot_shapes(samples):
    """Angle against kurtosis: the generalized Gaussian's curve and sampled distributions.

    Parameters
    ----------
    samples : dict
        Name to (kurtosis, angle in radians), arrays with one entry per vector; their means are
        drawn.
    """
    figure, axis = plt.subplots(figsize=(4.8, 3.3))
    means = {name: np.mean(pair, axis=1) for name, pair in samples.items()}
    kurtosis = np.geomspace(1.8, max(9, *(x for x, _ in means.values())), 200)
    label = "generalized Gaussian, theory"
    axis.plot(kurtosis, np.degrees(geometry.shape_angle(kurtosis)), label=label, **THEORY)
    for i, (name, (x, y)) in enumerate(means.items()):
        y = np.degrees(y)
        axis.plot(x, y, linestyle="", label=name, **_layer_marker(i))
        text = f"{name}: {y:.2f}°"
        axis.annotate(text, (x, y), textcoords="offset points", xytext=(9, -9))
    axis.set(xlabel="kurtosis E w$^4$ / (E w$^2$)$^2$", ylabel="angle(w, sign w) (degrees)")
    axis.set_ylim(bottom=27)
    return figure


def plot_rotated(samples):
    """Angles of plain and of rotated binarization of an anisotropic Gaussian, per dimension.

    Parameters
    ----------
    samples : dict
        Dimension d to (plain, rotated) angles in radians.
    """
    figure, axes = _grid(len(samples), size=(2.4, 2.3))
    edges, limit = np.arange(0, 91, 1.5), np.degrees(geometry.binary_angle())
    for axis, (d, angles) in zip(axes, samples.items(), strict=True):
        for part, name, color in zip(
            angles, ("plain", "rotated"), (COLORS[5], COLORS[0]), strict=True
        ):
            _draw_density(axis, np.degrees(part), edges, alpha=0.7, color=color, label=name)
        axis.axvline(limit, label=f"Gaussian, d → ∞: {limit:.2f}°", **THEORY)
        axis.set_title(f"d = {d}", loc="left", fontsize=9)
        axis.set(xlabel="angle (degrees)", xlim=(0, 90), xticks=range(0, 91, 30))
    axes[0].set_ylabel("density (1/degree)")
    _legend_below(figure, axes[0])
    return figure


def _ternary_axes(widest):
    """Angle and share of zeros against the threshold up to `widest`, by the Gaussian theory."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.3))
    tau = np.linspace(0, widest, 300)
    angle = np.degrees(np.arccos(geometry.ternary_cosine(tau)))
    zeros = 100 * geometry.ternary_zero_fraction(tau)
    best = geometry.optimal_ternary_threshold()
    for axis, line in ((left, angle), (right, zeros)):
        axis.plot(tau, line, label="Gaussian theory", **THEORY)
        label = f"least angle: t/σ = {best:.3f}"
        axis.axvline(best, color="grey", linestyle=":", label=label)
        axis.set_xlabel("threshold t/σ")
    left.set_ylabel("angle(w$^c$, w$^b$) (degrees)")
    right.set_ylabel("share of zero weights (%)")
    return figure, left, right


def plot_ternary(samples, networks):
    """Angle and share of zeros of a ternarized Gaussian against the threshold.

    Parameters
    ----------
    samples : dict
        Threshold τ = t/σ to (angle in radians, share of zeros), sampled.
    networks : dict
        Name of a trained network to one row (τ, angle in radians, share of zeros) per layer, as
        `report.ternary_layers` reads them.
    """
    figure, left, right = _ternary_axes(max(samples))
    sampled = np.column_stack([list(samples), list(samples.values())])
    for i, (name, rows) in enumerate({"samples": sampled, **networks}.items()):
        tau, angles, zeros = np.transpose(rows)
        style = {**_layer_marker(i), "linestyle": ""}
        left.plot(tau, np.degrees(angles), label=name, **style)
        right.plot(tau, 100 * zeros, label=name, **style)
    _legend_below(figure, left)
    return figure


def plot_bits(levels):
    """Angle against bits per weight: Lloyd–Max quantizers, and the limit for any code.

    Parameters
    ----------
    levels : sequence of int
        Numbers of levels of the quantizers.
    """
    figure, axis = plt.subplots(figsize=(4.8, 3.3))
    bits = np.linspace(0, np.log2(max(levels)) + 0.2, 200)
    limit = np.degrees(geometry.rate_distortion_angle(bits))
    axis.semilogy(bits, limit, label="rate–distortion limit", **THEORY)
    angles = np.degrees(np.arccos(geometry.quantizer_cosine(levels)))
    axis.semilogy(np.log2(levels), angles, "o", color=COLORS[0], label="Lloyd–Max quantizer")
    for n, angle in zip(levels, angles, strict=True):
        text = f"{n} levels: {angle:.1f}°"
        axis.annotate(text, (np.log2(n), angle), textcoords="offset points", xytext=(6, 3))
    axis.set(xlabel="bits per weight, log$_2$(levels)", ylabel="angle(w, quantized w) (degrees)")
    axis.set_xlim(0, bits[-1] + 1)
    _plain_ticks(axis.yaxis)
    axis.legend()
    return figure


# --- Trained layers ---------------------------------------------------------------------------


def plot_layer_angles(layers):
    """Distribution over units of angle(w^c, w^b), layer by layer: zoomed, and over [0, π].

    Each layer's histogram is scaled to its own peak and stands on a line of its own, with the
    mean ± sd that Gaussian weights would show below it.

    Parameters
    ----------
    layers : sequence
        With `name`, `fan_in`, `angles` (radians, one per unit; nan is left out) and `theory`
        (mean and sd in radians; a ternary layer's sd is nan and is not drawn), as
        `measure.LayerMeasurement`.
    """
    size = (8.4, 0.4 * len(layers) + 1.3)
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=(3, 2))
    limit = np.degrees(geometry.binary_angle())
    spreads = False
    for row, layer in enumerate(reversed(layers)):
        angles = np.degrees(layer.angles[np.isfinite(layer.angles)])
        heights, edges = np.histogram(angles, "auto")
        heights = row + 0.75 * heights / max(heights.max(), 1)
        mean, sd = np.degrees(layer.theory)
        spreads |= bool(np.isfinite(sd))
        for axis in axes:
            axis.stairs(heights, edges, baseline=row, fill=True, color=COLORS[4])
            theory = axis.errorbar(mean, row - 0.1, xerr=sd, fmt=".", color="black", capsize=2)
    for axis in axes:
        line = axis.axvline(limit, label=f"binary Gaussian, d → ∞: {limit:.2f}°", **THEORY)
        axis.set_xlabel("angle(w$^c$, w$^b$) (degrees)")
    zoomed, whole = axes
    zoomed.set_yticks(
        range(len(layers)), [f"{layer.name}, d = {layer.fan_in}" for layer in reversed(layers)]
    )
    zoomed.set_ylabel("density over units")
    whole.axvline(90, color="grey", linewidth=0.8, linestyle=":")
    whole.annotate("random pair", (93, 0.95), xycoords=("data", "axes fraction"), color="grey")
    whole.set(xlim=(0, 180), xticks=range(0, 181, 45))
    expected = "Gaussian, mean ± sd at this d" if spreads else "Gaussian, mean at this threshold"
    labels = {expected: theory, line.get_label(): line}
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=2)
    return figure


def plot_angle_scaling(layers):
    """Standard deviation of the angles against fan-in d, with the Gaussian d^(−1/2) line.

    Parameters
    ----------
    layers : sequence
        As for `plot_layer_angles`.
    """
    figure, axis = plt.subplots(figsize=(5.6, 3.6))
    d = np.array([layer.fan_in for layer in layers], float)
    span = np.unique(np.rint(np.geomspace(d.min() / 2, d.max() * 2, 200)))
    axis.loglog(
        span, np.degrees(geometry.angle_moments(span)[1]), label="Gaussian theory", **THEORY
    )
    for i, layer in enumerate(layers):
        spread = np.degrees(np.nanstd(layer.angles))
        if spread > 0:  # A single unit has none.
            axis.plot(layer.fan_in, spread, linestyle="", label=layer.name, **_layer_marker(i))
    axis.set(xlabel="fan-in d", ylabel="sd of angle(w$^c$, w$^b$) over units (degrees)")
    _plain_ticks(axis.yaxis)
    figure.legend(loc="outside right center", fontsize=7)
    return figure


def plot_dot_products(layers, which):
    """2-D histograms of dot products before and after quantization, layer by layer.

    Sign changes lie in the shaded quadrants.

    Parameters
    ----------
    layers : sequence
        With `name` and the attribute `which`, a `measure.DotProducts`, or None (layer not drawn).
    which : {'weights_dot', 'activations_dot', 'permuted'}
    """
    labels = {
        "weights_dot": ("A·w$^c$", "A·w$^b$"),
        "activations_dot": ("A$^c$·w$^b$", "A$^b$·w$^b$"),
        "permuted": ("permuted A·w$^c$", "permuted A·w$^b$"),
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
        f"r = {statistics.r:.3f}\nsign changes {statistics.sign_changes:.1%}",
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
        bins = int(np.clip(np.sqrt(w.size), 15, 80))
        _draw_density(axis, w, np.linspace(-limit, limit, bins + 1), color=COLORS[4])
        x = np.linspace(-limit, limit, 400)
        axis.plot(x, norm.pdf(x, 0, deviation), label="Gaussian of the same sd", **THEORY)
        axis.set_title(
            f"{layer.name}: sd {deviation:.3f}, {geometry.saturated_share(w):.2%} at ±1",
            loc="left",
            fontsize=8,
        )
        axis.set(xlabel="latent weight w$^c$", ylabel="density")
    _legend_below(figure, axes[0])
    return figure


def plot_predicted(layers):
    """r of each unit against the r that its weights and the input covariance predict.

    Parameters
    ----------
    layers : sequence of measure.LayerMeasurement
        Layers without a covariance are not drawn.
    """
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.9))
    drawn = [layer for layer in layers if layer.predicted_r is not None]
    for axis in axes:
        for i, layer in enumerate(drawn):
            axis.scatter(
                layer.predicted_r,
                layer.weights_dot.unit_r,
                s=9,
                alpha=0.6,
                label=layer.name,
                **_layer_marker(i),
            )
        low = min(axis.get_xlim()[0], axis.get_ylim()[0])
        axis.plot([low, 1], [low, 1], label="prediction", **THEORY)
        low = low if axis is axes[0] else 0.8
        axis.set(
            xlabel="r predicted from training images' covariance", xlim=(low, 1), ylim=(low, 1)
        )
    axes[0].set_ylabel("r measured on test images, unit by unit")
    axes[1].set_title("from 0.8 to 1", loc="left", fontsize=9)
    axes[0].legend(fontsize=7)
    return figure


def plot_permutation(layers):
    """r of each layer as it is and with its inputs permuted, with the cosine of its angle.

    Means over units away from the border, with the units' standard deviation.

    Parameters
    ----------
    layers : sequence of measure.LayerMeasurement
    """
    figure, axis = plt.subplots(figsize=(5.2, 3.2))
    for attribute, marker, color, shift, label in (
        ("weights_dot", "o", COLORS[0], -0.12, "as is"),
        ("permuted", "s", COLORS[5], 0.12, "inputs permuted"),
    ):
        values = [getattr(layer, attribute).inside_unit_r for layer in layers]
        values = [value[np.isfinite(value)] for value in values]
        means = [value.mean() if len(value) else np.nan for value in values]
        spread = [value.std() if len(value) else np.nan for value in values]
        x = np.arange(len(layers)) + shift
        axis.errorbar(x, means, spread, fmt=marker, color=color, capsize=2, label=label)
    for i, layer in enumerate(layers):
        cosine = np.nanmean(np.cos(layer.angles))
        label = "cosine of the angle" if i == 0 else None
        axis.plot([i - 0.35, i + 0.35], [cosine, cosine], label=label, **THEORY)
    axis.set_xticks(range(len(layers)), [layer.name for layer in layers], rotation=30)
    axis.set_ylabel("r of A·w$^b$ with A·w$^c$")
    axis.legend(fontsize=7)
    return figure


def plot_spectra(layers):
    """Share of the input variance that the first principal axes hold, layer by layer.

    Parameters
    ----------
    layers : sequence of measure.LayerMeasurement
        Layers without a spectrum are not drawn.
    """
    figure, axis = plt.subplots(figsize=(4.6, 3.4))
    for i, layer in enumerate(layer for layer in layers if layer.spectrum is not None):
        shares = np.cumsum(layer.spectrum) / layer.spectrum.sum()
        label = f"{layer.name}, d = {layer.fan_in}"
        axis.plot(np.arange(1, len(shares) + 1), shares, label=label, **_layer_style(i))
    axis.set(
        xlabel="principal axes of the input patches",
        ylabel="share of the variance",
        xscale="log",
        ylim=(0, 1.02),
    )
    axis.legend(fontsize=7)
    return figure


def plot_filters(layer, count=32):
    """Filters of the first layer, latent above binarized, in the colours of the image channels.

    Parameters
    ----------
    layer : measure.LayerMeasurement
        With one or three input channels.
    count : int
        How many of them.
    """
    count = min(count, layer.wc.shape[-1])
    columns = min(16, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        2 * rows, columns, figsize=(0.5 * columns, 1.05 * rows + 0.3), squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for unit in range(count):
        row, column = divmod(unit, columns)
        for offset, kernel in enumerate((layer.wc, layer.wb)):
            pixels = kernel[..., unit] / np.abs(kernel[..., unit]).max(initial=1e-30)
            axes[2 * row + offset, column].imshow(
                (pixels + 1) / 2, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
            )
    figure.suptitle(f"{layer.name}: w$^c$ above its w$^b$", fontsize=9)
    return figure


def plot_counterexample(image, found, label, predicted):
    """An image, the image that gets another label, and where they differ.

    Parameters
    ----------
    image, found : ndarray of uint8, shape (rows, columns, 1 or 3)
    label, predicted : int
        What the network calls each of them.
    """
    figure, axes = _grid(3, size=(1.7, 2.0))
    change = found.astype(int) - image
    pictures = (
        (image, f"{label}"),
        (found, f"{predicted}"),
        ((change + 255) / 510, f"change, at most {np.abs(change).max()}/255"),
    )
    for axis, (picture, title) in zip(axes, pictures, strict=True):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.dtype == float else 255)
        axis.set_title(title, fontsize=8)
        axis.set_axis_off()
    return figure


def plot_rotation(correlations):
    """r of the first layer, quantized in several bases.

    Parameters
    ----------
    correlations : dict
        From `measure.rotation_correlations`.
    """
    figure, axis = plt.subplots(figsize=(5.2, 3))
    names = {"as is": "as is", "random": "random\nrotation", "pca": "principal\naxes", "zca": "ZCA"}
    for i, (what, hatch) in enumerate((("weights", ""), ("patches", "//"), ("both", ".."))):
        x = np.arange(len(names)) + 0.27 * (i - 1)
        heights = [correlations[name][what] for name in names]
        label = {"both": "both quantized"}.get(what, f"{what} quantized")
        bars = axis.bar(x, heights, 0.25, color=COLORS[i], hatch=hatch, label=label)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axis.bar_label(bars, fmt="%.2f", fontsize=7, padding=2, bbox=box)
    cosine = np.cos(geometry.binary_angle())
    axis.axhline(cosine, label=f"uncorrelated inputs: {cosine:.3f}", linestyle="--", **THEORY)
    axis.set_xticks(range(len(names)), names.values())
    axis.set(ylabel="r with A·w$^c$", ylim=(min(0, *axis.get_ylim()), 1.25))
    axis.legend(fontsize=7, ncols=2, loc="upper left")
    return figure


def plot_substitution(accuracies, trained):
    """Test accuracy with latent weights in place of quantized ones.

    Parameters
    ----------
    accuracies : dict
        From `measure.substitution_accuracies`.
    trained : float
        Accuracy of the network as trained.
    """
    figure, axis = plt.subplots(figsize=(6.2, 3))
    for i, (label, hatch) in enumerate((("as it is", ""), ("batch norm re-estimated", "//"))):
        x = np.arange(len(accuracies)) + 0.4 * (i - 0.5)
        heights = [100 * pair[i] for pair in accuracies.values()]
        axis.bar(x, heights, 0.38, color=COLORS[5 * (1 - i)], hatch=hatch, label=label)
    axis.axhline(100 * trained, label=f"as trained: {trained:.2%}", linestyle="--", **THEORY)
    axis.set_xticks(range(len(accuracies)), accuracies, rotation=30)
    axis.set(ylabel="test accuracy (%)", xlabel="layer with w$^c$ in place of w$^b$", ylim=(0, 115))
    axis.set_yticks(range(0, 101, 20))
    axis.legend(fontsize=7, ncols=3, loc="upper left")
    return figure


def plot_thresholds(layers, networks):
    """Angle and share of zeros against the ternary threshold, with the layers as points.

    Parameters
    ----------
    layers : sequence of measure.LayerMeasurement
        A binary network's lie at threshold 0.
    networks : dict
        Trained ternary networks to compare with, in grey; as `plot_ternary` takes them.
    """
    taus = [layer.tau for layer in layers]
    taus += [tau for rows in networks.values() for tau in rows[:, 0]]
    figure, left, right = _ternary_axes(max(1.0, 1.2 * max(taus)))
    for marker, (name, rows) in zip(cycle("x+1234"), networks.items(), strict=False):
        tau, angles, zeros = np.transpose(rows)
        style = {"marker": marker, "linestyle": "", "color": "grey", "markersize": 4}
        left.plot(tau, np.degrees(angles), label=name, **style)
        right.plot(tau, 100 * zeros, label=name, **style)
    for i, layer in enumerate(layers):
        style = {**_layer_marker(i), "linestyle": ""}
        degrees = np.degrees(layer.angles)
        left.errorbar(
            layer.tau, np.nanmean(degrees), np.nanstd(degrees), label=layer.name, capsize=2, **style
        )
        right.plot(layer.tau, 100 * np.mean(layer.wb == 0), label=layer.name, **style)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure


def plot_angle_history(rows):
    """Angle and r of every layer over the epochs of a training, from before the first step.

    Parameters
    ----------
    rows : sequence of dict
        From `geometry_log.read_geometry`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.3))
    for i, name in enumerate(dict.fromkeys(row["layer"] for row in rows)):
        own = [row for row in rows if row["layer"] == name]
        epochs = [row["epochs"] for row in own]
        left.plot(epochs, [row["angle"] for row in own], label=name, **_layer_style(i))
        right.plot(epochs, [row["r"] for row in own], label=name, **_layer_style(i))
    gaussian = np.degrees(geometry.binary_angle())
    for value, text in ((30, "uniform, binary"), (gaussian, "Gaussian, binary")):
        left.axhline(value, color="grey", linewidth=0.8, linestyle=":")
        left.annotate(
            f"{text}: {value:.2f}°",
            (1, value),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=7,
            color="grey",
        )
    left.set(xlabel="epochs of training", ylabel="mean angle(w$^c$, w$^b$) (degrees)")
    right.set(xlabel="epochs of training", ylabel="r of A·w$^b$ with A·w$^c$")
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure


def run_figures(layers, folder, history=()):
    """Write the figures of a trained network to `folder`, as PNG and PDF.

    `history` is what `geometry_log.read_geometry` gives, and without it there is no figure of it.
    """
    figures = {
        "angles": plot_layer_angles(layers),
        "angle_scaling": plot_angle_scaling(layers),
        "weights_dot": plot_dot_products(layers, "weights_dot"),
        "weights": plot_weights(layers),
    }
    if any(layer.activations_dot for layer in layers):
        figures["activations_dot"] = plot_dot_products(layers, "activations_dot")
    if history:
        figures["angle_history"] = plot_angle_history(history)
    for name, figure in figures.items():
        save_figure(figure, folder, name)
        plt.close(figure)
