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


def _legend_below(figure, axis):
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def _layer_style(index):
    turn = index // len(COLORS)
    return {"color": COLORS[index % len(COLORS)], "linestyle": LINES[(index + turn) % len(LINES)]}


def _layer_marker(index):
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


# --- Theory -----------------------------------------------------------------------------------


def plot_straight_through(x, curves):
    """Quantizers and the gradients that training sees in their place.

    Parameters
    ----------
    x : ndarray, shape (n,)
    curves : dict
        Name to (forward, gradient), arrays of shape (n,).
    """
    figure, axes = plt.subplots(1, len(curves), figsize=(3.1 * len(curves), 2.8), sharey=True)
    for axis, (name, (forward, gradient)) in zip(axes, curves.items(), strict=True):
        axis.plot(x, forward, color=COLORS[0], label="forward")
        axis.plot(x, gradient, color=COLORS[5], linestyle="--", label="gradient")
        axis.set_title(name, loc="left", fontsize=9)
        axis.set_xlabel("x")
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
        d to (mean, sd) in radians, drawn as a line and a band.
    """
    figure, axes = _grid(len(samples), columns=len(samples), size=(2.4, 2.5))
    for axis, (d, angles) in zip(axes, samples.items(), strict=True):
        degrees = np.degrees(angles)
        axis.hist(degrees, 60, density=True, color=COLORS[4], label="samples")
        if density is not None:
            grid = np.linspace(degrees.min(), degrees.max(), 400)
            line = np.radians(density(np.radians(grid), d))
            axis.plot(grid, line, label="theory", **THEORY)
        if moments is not None:
            mean, sd = np.degrees(moments(d))
            axis.axvspan(mean - sd, mean + sd, color="grey", alpha=0.25, zorder=0, label="± sd")
            axis.axvline(mean, label="theory: mean", **THEORY)
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
    figure, axis = plt.subplots(figsize=(6.4, 3.2))
    edges = np.arange(0, 180.1, 1.0)
    for i, d in enumerate(binarized):
        for angles, line in ((binarized[d], "-"), (random[d], "--")):
            density = np.histogram(np.degrees(angles), edges, density=True)[0]
            label = f"d = {d}" if line == "-" else None
            axis.stairs(density, edges, color=COLORS[i], linestyle=line, label=label)
    limit = np.degrees(geometry.binary_angle())
    axis.axvline(limit, label=f"{limit:.2f}°", **{**THEORY, "linewidth": 0.8})
    axis.set(xlabel="angle (degrees)", ylabel="density (1/degree)", yscale="log", xlim=(0, 180))
    axis.set_xticks(range(0, 181, 45))
    axis.legend(fontsize=7, title="solid: to its own sign\ndashed: to another", title_fontsize=7)
    return figure


def plot_spread(samples):
    """Standard deviation of sampled angles against dimension, with theory and d^(−1/2).

    Parameters
    ----------
    samples : dict
        Dimension d to angles in radians.
    """
    figure, axis = plt.subplots(figsize=(4.4, 3.2))
    d = np.array(list(samples))
    span = np.unique(np.rint(np.geomspace(d.min(), d.max(), 100)))
    theory = np.degrees(geometry.angle_moments(span)[1])
    axis.loglog(span, theory, label="theory", **THEORY)
    limit = np.degrees(np.sqrt((1 - 3 / np.pi) / (1 - 2 / np.pi) / span))
    axis.loglog(span, limit, color="grey", linestyle=":", label="0.352·d$^{-1/2}$ rad")
    spread = [np.degrees(angles.std()) for angles in samples.values()]
    axis.loglog(d, spread, "o", color=COLORS[0], label="samples")
    axis.set(xlabel="dimension d", ylabel="sd of the angle (degrees)")
    axis.legend()
    return figure


def plot_shapes(named):
    """Angle against kurtosis for the generalized Gaussian, with named distributions.

    Parameters
    ----------
    named : dict
        Name to (kurtosis, angle in radians).
    """
    figure, axis = plt.subplots(figsize=(4.4, 3.2))
    kurtosis = np.geomspace(1.8, 9, 200)
    axis.plot(kurtosis, np.degrees(geometry.shape_angle(kurtosis)), **THEORY)
    for i, (name, (x, y)) in enumerate(named.items()):
        axis.plot(x, np.degrees(y), "o", color=COLORS[i])
        axis.annotate(name, (x, np.degrees(y)), textcoords="offset points", xytext=(7, -10))
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
    figure, axes = _grid(len(samples), columns=len(samples), size=(2.7, 2.5))
    edges = np.arange(0, 91, 1.5)
    for axis, (d, angles) in zip(axes, samples.items(), strict=True):
        for part, name, color in zip(
            angles, ("plain", "rotated"), (COLORS[5], COLORS[0]), strict=True
        ):
            axis.hist(np.degrees(part), edges, density=True, alpha=0.7, color=color, label=name)
        axis.axvline(np.degrees(geometry.binary_angle()), label="37.07°", **THEORY)
        axis.set_title(f"d = {d}", loc="left", fontsize=9)
        axis.set_xlabel("angle (degrees)")
    axes[0].set_ylabel("density (1/degree)")
    _legend_below(figure, axes[0])
    return figure


def plot_ternary(samples):
    """Angle and share of zeros of a ternarized Gaussian against the threshold.

    Parameters
    ----------
    samples : dict
        Threshold τ = t/σ to (angle in radians, share of zeros), sampled.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3))
    tau = np.linspace(0, 2, 200)
    left.plot(tau, np.degrees(np.arccos(geometry.ternary_cosine(tau))), label="theory", **THEORY)
    right.plot(tau, geometry.ternary_zero_fraction(tau), label="theory", **THEORY)
    angles, zeros = np.transpose(list(samples.values()))
    left.plot(list(samples), np.degrees(angles), "o", color=COLORS[0], label="samples")
    right.plot(list(samples), zeros, "o", color=COLORS[0], label="samples")
    best = geometry.optimal_ternary_threshold()
    left.axvline(best, color="grey", linestyle=":", label=f"best: τ = {best:.3f}")
    left.set(xlabel="threshold τ = t/σ", ylabel="angle(w, ternary w) (degrees)")
    right.set(xlabel="threshold τ = t/σ", ylabel="share of zeros")
    left.legend(fontsize=7)
    return figure


def plot_bits(levels):
    """Angle against bits per weight: Lloyd–Max quantizers, and the limit for any code.

    Parameters
    ----------
    levels : sequence of int
        Numbers of levels of the quantizers.
    """
    figure, axis = plt.subplots(figsize=(4.8, 3.3))
    bits = np.linspace(0.5, np.log2(max(levels)), 200)
    limit = np.degrees(geometry.rate_distortion_angle(bits))
    axis.semilogy(bits, limit, label="rate–distortion limit", **THEORY)
    angles = np.degrees(np.arccos([geometry.quantizer_cosine(n) for n in levels]))
    axis.semilogy(np.log2(levels), angles, "o", color=COLORS[0], label="Lloyd–Max quantizer")
    for n, angle in zip(levels, angles, strict=True):
        axis.annotate(f"{n}", (np.log2(n), angle), textcoords="offset points", xytext=(5, 4))
    axis.set(xlabel="bits per weight, log$_2$(levels)", ylabel="angle(w, quantized w) (degrees)")
    axis.set_yticks([5, 10, 20, 40], ["5", "10", "20", "40"])
    axis.minorticks_off()
    axis.legend()
    return figure


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
        With `name` and the attribute `which`, a `report.DotProducts`, or None (layer not drawn).
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


def plot_predicted(layers):
    """r of each unit against the r that its weights and the input covariance predict.

    Parameters
    ----------
    layers : sequence of report.LayerMeasurement
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
    layers : sequence of report.LayerMeasurement
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
    layers : sequence of report.LayerMeasurement
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
    layer : report.LayerMeasurement
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


def plot_rotation(correlations):
    """r of the first layer, quantized in several bases.

    Parameters
    ----------
    correlations : dict
        From `report.rotation_correlations`.
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
        From `report.substitution_accuracies`.
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


def plot_thresholds(layers):
    """Angle and share of zeros against the ternary threshold, with the layers as points.

    Parameters
    ----------
    layers : sequence of report.LayerMeasurement
        A binary network's lie at threshold 0.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.3))
    tau = np.linspace(0, max(1.0, *(1.2 * layer.tau for layer in layers)), 300)
    angle = np.degrees(np.arccos(geometry.ternary_cosine(tau)))
    best = geometry.optimal_ternary_threshold()
    left.plot(tau, angle, label="Gaussian theory", **THEORY)
    right.plot(tau, 100 * geometry.ternary_zero_fraction(tau), label="Gaussian theory", **THEORY)
    left.axvline(best, color="grey", linestyle=":", label=f"least angle: t/σ = {best:.3f}")
    for i, layer in enumerate(layers):
        style = {**_layer_marker(i), "linestyle": ""}
        degrees = np.degrees(layer.angles)
        left.errorbar(
            layer.tau, np.nanmean(degrees), np.nanstd(degrees), label=layer.name, capsize=2, **style
        )
        right.plot(layer.tau, 100 * np.mean(layer.wb == 0), label=layer.name, **style)
    left.set(xlabel="threshold t/σ", ylabel="angle(w$^c$, w$^b$) (degrees)")
    right.set(xlabel="threshold t/σ", ylabel="share of zero weights (%)")
    left.legend(fontsize=7, loc="upper right", frameon=True, framealpha=1, edgecolor="none")
    return figure


def plot_angle_history(rows):
    """Angle and r of every layer over the epochs of a training, from before the first step.

    Parameters
    ----------
    rows : sequence of dict
        From `report.read_geometry`.
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
    right.legend(fontsize=7)
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
