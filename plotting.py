"""Figures, drawn from arrays that others computed. Angles come in radians and are drawn in degrees.

Every `plot_` function returns a matplotlib figure. `layers` are `measure.LayerMeasurement`s, or
objects with the attributes that are drawn. `samples` are dicts from a dimension d to angles.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.stats import norm

import geometry
from files import atomic_path

# Okabe and Ito's palette: told apart by colour-blind readers and in grey print.
COLORS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"),
    *("#D55E00", "#8C8C00", "#7F3C8D", "#8B4513", "#777777"),
)
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


def save_figure(figure: Figure, folder: str | os.PathLike, name: str) -> Path:
    """Write `figure` as PNG and PDF to `folder`/`name`, and return the PNG's path."""
    path = Path(folder) / name
    # Without a date the same figure is the same file.
    for suffix, metadata in ((".pdf", {"CreationDate": None}), (".png", None)):
        with atomic_path(path.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, metadata=metadata)
    return path.with_suffix(".png")


def grid(
    count: int, columns: int = 3, size: tuple[float, float] = (2.9, 2.6)
) -> tuple[Figure, np.ndarray]:
    """A figure of `count` axes, `size` inches each, and these axes."""
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


def legend_below(figure: Figure, axis: Axes) -> None:
    """Draw the legend of `axis` below the whole figure."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def layer_style(index: int) -> dict[str, str]:
    """Colour and line of the layer with this index, told apart from the others'."""
    turn = index // len(COLORS)
    return {"color": COLORS[index % len(COLORS)], "linestyle": LINES[(index + turn) % len(LINES)]}


def _layer_marker(index):
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


# --- Theory -----------------------------------------------------------------------------------


def plot_straight_through(
    x: np.ndarray, curves: dict[str, tuple[np.ndarray, np.ndarray]], ramp: np.ndarray
) -> Figure:
    """Quantizers, the gradients that training sees in their place, and the ramp these belong to.

    Parameters
    ----------
    x, ramp : ndarray, shape (n,)
        The gradients are the derivative of the ramp.
    curves : dict
        Name to (forward, gradient), arrays of shape (n,).
    """
    figure, axes = grid(len(curves), size=(3.4, 2.7))
    for axis, (name, (forward, gradient)) in zip(axes, curves.items(), strict=True):
        axis.plot(x, forward, color=COLORS[0], linewidth=2, label="forward")
        axis.plot(x, ramp, color="black", linestyle=":", label="clip(x, −1, 1)")
        axis.plot(x, gradient, color=COLORS[5], linestyle="--", label="gradient, that of the clip")
        axis.set_title(name, loc="left", fontsize=9)
        axis.set_xlabel("x")
    axes[0].set_ylabel("value")
    legend_below(figure, axes[0])
    return figure


def plot_angle_samples(
    samples: dict[int, np.ndarray],
    density: Callable[[np.ndarray, int], np.ndarray] | None = None,
    moments: Callable[[int], tuple[float, float]] | None = None,
) -> Figure:
    """Histograms of sampled angles, one panel per dimension, with the theory on top.

    Parameters
    ----------
    samples : dict
    density : callable, optional
        (angles, d) to the probability density per radian, drawn as a line.
    moments : callable, optional
        d to (mean, sd) in radians, drawn as the normal density with these and a line at the mean.
    """
    figure, axes = grid(len(samples), size=(2.4, 2.1))
    for axis, (d, angles) in zip(axes, samples.items(), strict=True):
        degrees = np.degrees(angles)
        _draw_density(axis, degrees, "auto", color=COLORS[4], label="samples")
        x = np.linspace(degrees.min(), degrees.max(), 400)
        if density is not None:
            line = np.radians(density(np.radians(x), d))
            axis.plot(x, line, label="theory", **THEORY)
        if moments is not None:
            mean, sd = np.degrees(moments(d))
            line = norm.pdf(x, mean, sd)
            axis.plot(x, line, label="normal with the theory's mean and sd", **THEORY)
            axis.axvline(mean, label="theory: mean", linestyle="--", **THEORY)
        axis.set_title(f"d = {d}", loc="left", fontsize=9)
        axis.set_xlabel("angle (degrees)")
    axes[0].set_ylabel("density (1/degree)")
    legend_below(figure, axes[0])
    return figure


def plot_angle_ranges(binarized: dict[int, np.ndarray], random: dict[int, np.ndarray]) -> Figure:
    """Angles to the own sign and to another vector (samples), over all of [0, π], per dimension."""
    figure, axes = grid(len(binarized), size=(2.4, 2.1))
    edges, x = np.arange(181), np.linspace(0, 180, 1801)
    limit = np.degrees(geometry.binary_angle())
    for axis, d in zip(axes, binarized, strict=True):
        for angles, color, label in (
            (binarized[d], COLORS[0], "with its own sign"),
            (random[d], COLORS[1], "with another vector"),
        ):
            _draw_density(axis, np.degrees(angles), edges, color=color, alpha=0.75, label=label)
        line = np.radians(geometry.angle_density(np.radians(x), d))
        axis.plot(x, line, label="theory of the latter", **THEORY)
        axis.axvline(limit, color="black", linestyle=":", label=f"d → ∞: {limit:.2f}°")
        axis.set_title(f"d = {d}", loc="left", fontsize=9)
        axis.set(xlabel="angle (degrees)", xlim=(0, 180), xticks=range(0, 181, 45))
    axes[0].set_ylabel("density (1/degree)")
    legend_below(figure, axes[0])
    return figure


def plot_spread(samples: dict[int, np.ndarray]) -> Figure:
    """Standard deviation of sampled angles against dimension, with theory and d^(−1/2).

    On the left as it is, on the right times √d, with standard errors.
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


def plot_shapes(samples: dict[str, tuple]) -> Figure:
    """Angle against kurtosis: the generalized Gaussian's curve, and means of sampled distributions.

    Parameters
    ----------
    samples : dict
        Name to (kurtosis, angle in radians), arrays with one entry per vector.
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


def plot_rotated(samples: dict[int, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Angles of plain and of rotated binarization of an anisotropic Gaussian: pairs of samples."""
    figure, axes = grid(len(samples), size=(2.4, 2.3))
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
    legend_below(figure, axes[0])
    return figure


def plot_ternary(
    samples: dict[float, tuple[float, float]], networks: dict[str, np.ndarray]
) -> Figure:
    """Ternary weights against their threshold: angle, share of zeros, distance to the theory.

    Parameters
    ----------
    samples : dict
        Threshold τ = t/σ to (angle in radians, share of zeros) of sampled Gaussian vectors.
    networks : dict
        Name of a trained network to one row (τ, angle in radians, share of zeros) per layer, as
        `report.ternary_layers` reads them.
    """
    figure, (left, right, rows) = plt.subplots(1, 3, figsize=(11, 3.3), width_ratios=(1, 1, 1.2))
    trained = np.concatenate([*networks.values(), np.empty((0, 3))])
    tau = np.linspace(0, max(1.0, *samples, *(1.2 * trained[:, 0])), 300)
    best = geometry.optimal_ternary_threshold()
    sampled = np.array([(tau, *pair) for tau, pair in samples.items()]).reshape(-1, 3)
    for axis, column, theory, label in (
        (left, 1, np.degrees(np.arccos(geometry.ternary_cosine(tau))), "angle (degrees)"),
        (right, 2, 100 * geometry.ternary_zero_fraction(tau), "share of zero weights (%)"),
    ):
        scale = np.degrees(1) if column == 1 else 100
        axis.plot(tau, theory, label="Gaussian, theory", **THEORY)
        axis.axvline(best, color="grey", linestyle=":", label=f"least angle: t/σ = {best:.3f}")
        for points, name, style in (
            (sampled, "Gaussian, sampled", {"marker": "o", "color": COLORS[0]}),
            (trained, "layers of trained networks", {"marker": ".", "color": COLORS[5]}),
        ):
            if len(points):
                x, y = points[:, 0], scale * points[:, column]
                axis.plot(x, y, linestyle="", label=name, **style)
        axis.set(xlabel="threshold t/σ", ylabel=label)
    for row, points in enumerate(networks.values()):
        off = np.degrees(points[:, 1] - np.arccos(geometry.ternary_cosine(points[:, 0])))
        rows.plot(off, np.full(len(off), row), "o", color=COLORS[5], alpha=0.6, markersize=4)
    rows.axvline(0, **THEORY)
    rows.set_yticks(range(len(networks)), networks, fontsize=7)
    rows.set(
        xlabel="angle above the Gaussian theory (degrees)", ylim=(max(len(networks), 1) - 0.5, -0.5)
    )
    legend_below(figure, left)
    return figure


def plot_bits(levels: Sequence[int]) -> Figure:
    """Angle against bits per weight: Lloyd–Max quantizers of `levels`, and the limit of codes."""
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


def plot_layer_angles(layers: Sequence[object]) -> Figure:
    """Distribution over units of angle(w^c, w^b), layer by layer: zoomed, and over [0, π].

    Each layer's histogram is scaled to its own peak. Below it stands the mean ± sd of Gaussian
    weights. For many dimensions and the sign this is 37.07°, drawn unless all layers are ternary.
    """
    size = (8.4, 0.4 * len(layers) + 1.3)
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=(3, 2))
    binary = any(np.isfinite(layer.theory[1]) for layer in layers)
    for row, layer in enumerate(reversed(layers)):
        angles = np.degrees(layer.angles[np.isfinite(layer.angles)])
        heights, edges = np.histogram(angles, "auto")
        heights = row + 0.75 * heights / max(heights.max(), 1)
        mean, sd = np.degrees(layer.theory)
        for axis in axes:
            axis.stairs(heights, edges, baseline=row, fill=True, color=COLORS[4])
            theory = axis.errorbar(mean, row - 0.1, xerr=sd, fmt=".", color="black", capsize=2)
    labels = {f"Gaussian, mean{' ± sd at this d' if binary else ' at this threshold'}": theory}
    limit = np.degrees(geometry.binary_angle())
    for axis in axes:
        if binary:
            label = f"binary Gaussian, d → ∞: {limit:.2f}°"
            labels[label] = axis.axvline(limit, label=label, **THEORY)
        axis.set_xlabel("angle(w$^c$, w$^b$) (degrees)")
    zoomed, whole = axes
    zoomed.set_yticks(
        range(len(layers)), [f"{layer.name}, d = {layer.fan_in}" for layer in reversed(layers)]
    )
    zoomed.set_ylabel("density over units")
    whole.axvline(90, color="grey", linewidth=0.8, linestyle=":")
    whole.annotate("random pair", (93, 0.95), xycoords=("data", "axes fraction"), color="grey")
    whole.set(xlim=(0, 180), xticks=range(0, 181, 45))
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=2)
    return figure


def plot_angle_scaling(layers: Sequence[object]) -> Figure:
    """Standard deviation of the angles against fan-in d; that of the cosines over the i.i.d. one.

    Power laws are fitted to the convolutional layers, with the first one and without it. Bars are
    standard errors. Layers whose units do not differ are left out.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6))
    layers = [layer for layer in layers if np.nanstd(layer.angles) > 0]
    d = np.array([layer.fan_in for layer in layers], float)
    sd = np.degrees([np.nanstd(layer.angles) for layer in layers])
    relative = np.array([1 / np.sqrt(2 * len(layer.angles)) for layer in layers])
    low, high = (d.min() / 2, d.max() * 2) if len(d) else (1, 10)
    span = np.unique(np.rint(np.geomspace(low, high, 200)))
    left.plot(span, np.degrees(geometry.angle_moments(span)[1]), label="Gaussian", **THEORY)
    convs = np.array([layer.convolutional for layer in layers], bool)
    inner = convs & np.array([not layer.first for layer in layers], bool)
    for kept, name, color in ((convs, "all conv", COLORS[5]), (inner, "without conv_1", COLORS[0])):
        if len(np.unique(d[kept])) > 1:
            power = geometry.scaling_exponent(d[kept], sd[kept])
            middle = np.exp(np.log(sd[kept]).mean() - power * np.log(d[kept]).mean())
            ends = np.array([d[kept].min(), d[kept].max()])
            label = f"fit, {name}: d$^{{{power:.2f}}}$".replace("-", "−")
            left.plot(ends, middle * ends**power, "--", color=color, label=label)
    for i, layer in enumerate(layers):
        style = {**_layer_marker(i), "linestyle": "", "capsize": 2}
        left.errorbar(d[i], sd[i], sd[i] * relative[i], label=layer.name, **style)
        right.errorbar(i, layer.spread_ratio, layer.spread_ratio * relative[i], **style)
    factor = geometry.SPREAD_FACTOR
    right.axhspan(1 / factor, factor, color="grey", alpha=0.2, label=f"within a factor {factor}")
    right.axhline(1, label="independent weights", **THEORY)
    left.set(xlabel="fan-in d", ylabel="sd of angle(w$^c$, w$^b$) over units (degrees)")
    left.set(xscale="log", yscale="log")
    _plain_ticks(left.yaxis)
    right.set_xticks(range(len(layers)), [layer.name for layer in layers], rotation=30)
    right.set(xlabel="layer", ylabel="sd of the cosine / that of i.i.d. weights")
    right.legend(loc="best", fontsize=7)
    left.legend(fontsize=7, ncols=2, loc="lower left")
    return figure


def plot_dot_products(layers: Sequence[object], which: str) -> Figure:
    """2-D histograms of dot products before and after quantization, layer by layer.

    Sign changes lie in the shaded quadrants. The line is the regression of y on x. Colours are
    shares of a layer's pairs, on one scale for all layers.

    Parameters
    ----------
    layers : sequence
    which : {'weights_dot', 'activations_dot', 'permuted'}
        The attribute that is drawn, a `measure.DotProducts`.
    """
    labels = {
        "weights_dot": ("A·w$^c$", "A·w$^b$"),
        "activations_dot": ("A$^c$·w$^b$", "A$^b$·w$^b$"),
        "permuted": ("permuted A·w$^c$", "permuted A·w$^b$"),
    }[which]
    layers = [layer for layer in layers if getattr(layer, which) is not None]
    pairs = [getattr(layer, which) for layer in layers]
    shares = [np.ma.masked_equal(one.histogram.T / one.histogram.sum(), 0) for one in pairs]
    norm_of_all = LogNorm(min(map(np.min, shares)), max(map(np.max, shares)))
    figure, axes = grid(len(layers))
    for layer, axis, one, share in zip(layers, axes, pairs, shares, strict=True):
        image = _draw_pairs(axis, one, share, norm_of_all)
        title = f"{layer.name}: r = {one.r:.3f}, slope {one.slope:.2f}"
        axis.set_title(f"{title}\nsign changes {one.sign_changes:.1%}", loc="left", fontsize=8)
        axis.set(xlabel=labels[0], ylabel=labels[1])
    figure.colorbar(image, ax=list(axes), label="share of the layer's pairs", shrink=0.6, pad=0.02)
    return figure


def _draw_pairs(axis, pairs, share, colors):
    left, right, bottom, top = pairs.extent
    image = axis.imshow(
        share, origin="lower", extent=pairs.extent, aspect="auto", cmap="viridis", norm=colors
    )
    x, y = (
        np.linspace(*ends, n + 1)
        for ends, n in zip(((left, right), (bottom, top)), pairs.histogram.shape, strict=True)
    )
    weights = [pairs.histogram.sum(axis=1), pairs.histogram.sum(axis=0)]
    middles = [(edges[1:] + edges[:-1]) / 2 for edges in (x, y)]
    mean_x, mean_y = (np.average(m, weights=w) for m, w in zip(middles, weights, strict=True))
    ends = np.array([left, right])
    axis.plot(ends, mean_y + pairs.slope * (ends - mean_x), color=COLORS[5], linewidth=1)
    for x0, y0, width, height in ((left, 0, -left, top), (0, bottom, right, -bottom)):
        axis.add_patch(plt.Rectangle((x0, y0), width, height, color="grey", alpha=0.25, zorder=0))
    axis.axhline(0, color="grey", linewidth=0.6)
    axis.axvline(0, color="grey", linewidth=0.6)
    # Only as far as there are pairs, and to zero.
    for edges, counts, limit in zip((x, y), weights, (axis.set_xlim, axis.set_ylim), strict=True):
        filled = np.flatnonzero(counts)
        limit(min(edges[filled[0]], 0), max(edges[filled[-1] + 1], 0))
    return image


def plot_weights(layers: Sequence[object]) -> Figure:
    """Distribution of the latent weights, layer by layer, with the share that sits at ±1."""
    figure, axes = grid(len(layers))
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
    legend_below(figure, axes[0])
    return figure


def plot_predicted(layers: Sequence[object]) -> Figure:
    """r of each unit against the r that its weights and the input covariance predict."""
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


def plot_permutation(layers: Sequence[object]) -> Figure:
    """r of each layer as it is and with its inputs permuted, with the cosine of its angle.

    Means over units away from the border, with the units' standard deviation.
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


def plot_spectra(layers: Sequence[object]) -> Figure:
    """Share of the input variance that the first principal axes hold, layer by layer."""
    figure, axis = plt.subplots(figsize=(4.6, 3.4))
    for i, layer in enumerate(layer for layer in layers if layer.spectrum is not None):
        shares = np.cumsum(layer.spectrum) / layer.spectrum.sum()
        label = f"{layer.name}, d = {layer.fan_in}"
        axis.plot(np.arange(1, len(shares) + 1), shares, label=label, **layer_style(i))
    axis.set(
        xlabel="principal axes of the input patches",
        ylabel="share of the variance",
        xscale="log",
        ylim=(0, 1.02),
    )
    axis.legend(fontsize=7)
    return figure


def plot_filters(layer: object, count: int = 32) -> Figure:
    """Filters of the first layer, latent above binarized, in the colours of the image channels.

    `count` of them, from the lowest to the highest r of their dot products, which stands above
    each. The layer has one or three input channels.
    """
    r = layer.weights_dot.unit_r
    order = np.argsort(r)[: np.isfinite(r).sum() or None]
    units = order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)]
    columns = min(16, len(units))
    rows = -(-len(units) // columns)
    figure, axes = plt.subplots(
        2 * rows, columns, figsize=(0.55 * columns, 1.3 * rows + 0.4), squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for place, unit in enumerate(units):
        row, column = divmod(place, columns)
        axes[2 * row, column].set_title(f"{r[unit]:.2f}".replace("-", "−"), fontsize=7)
        for offset, kernel in enumerate((layer.wc, layer.wb)):
            pixels = kernel[..., unit] / np.abs(kernel[..., unit]).max(initial=1e-30)
            axes[2 * row + offset, column].imshow(
                (pixels + 1) / 2, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
            )
    figure.suptitle(f"{layer.name}: r of the unit, w$^c$, w$^b$", fontsize=9)
    return figure


def plot_rotation(correlations: dict[str, dict[str, float]]) -> Figure:
    """r of the first layer in several bases, from `experiments.rotation_correlations`."""
    figure, axis = plt.subplots(figsize=(5.6, 3.2))
    names = {"as is": "as is", "random": "random\nrotation", "pca": "principal\naxes", "zca": "ZCA"}
    cosine = np.cos(geometry.binary_angle())
    axis.axhline(cosine, label=f"uncorrelated inputs: {cosine:.3f}", zorder=0, **THEORY)
    for i, what in enumerate(("weights", "patches", "both")):
        heights = [correlations[name][what] for name in names]
        x = np.arange(len(names)) + 0.27 * (i - 1)
        bars = axis.bar(x, heights, 0.25, color=COLORS[(0, 4, 1)[i]], label=f"{what} quantized")
        # Inside the bars, where no line can cross them.
        color = "white" if i == 0 else "black"
        axis.bar_label(bars, fmt="%.2f", fontsize=7, label_type="center", color=color)
    axis.set_xticks(range(len(names)), names.values())
    axis.set(ylabel="pooled r with A·w$^c$", ylim=(min(0, *axis.get_ylim()), 1))
    figure.legend(fontsize=7, ncols=2, loc="outside lower center")
    return figure


def plot_substitution(accuracies: dict[str, tuple[float, float]], images: int) -> Figure:
    """Test accuracy with latent weights in place of quantized ones, a row a layer.

    Parameters
    ----------
    accuracies : dict
        From `experiments.substitution_accuracies`: 'none' is the network as trained.
    images : int
        Test images, which give the sampling error.
    """
    size = (8.4, 0.28 * len(accuracies) + 1.2)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True)
    rows, (as_it_is, refitted) = np.arange(len(accuracies)), np.transpose([*accuracies.values()])
    trained = as_it_is[list(accuracies).index("none")]
    error = 100 * np.sqrt(refitted * (1 - refitted) / images)
    left.barh(rows, 100 * as_it_is, 0.7, color=COLORS[4])
    right.errorbar(100 * refitted, rows, xerr=error, fmt="o", color=COLORS[0], capsize=2)
    for row, accuracy in enumerate(refitted):
        right.annotate(
            f"{accuracy:.2%}",
            (1.02, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=7,
        )
    for axis in (left, right):
        axis.axvline(100 * trained, label=f"as trained: {trained:.2%}", **THEORY)
    left.set_yticks(rows, accuracies)
    left.set(xlabel="test accuracy (%), batch norm as it is", xlim=(0, 100))
    left.set_ylabel("w$^c$ in place of w$^b$ in")
    left.invert_yaxis()
    right.set_xlabel("test accuracy (%), batch norm re-estimated")
    legend_below(figure, right)
    return figure


def plot_angle_history(rows: Sequence[dict]) -> Figure:
    """Angle and r of every layer over the epochs of a training, from `geometry_log.read_geometry`.

    r is drawn twice: from 0.85 on, and over its whole range.
    """
    figure, axes = plt.subplot_mosaic([["angle", "high"], ["angle", "r"]], figsize=(8.8, 4.2))
    for i, name in enumerate(dict.fromkeys(row["layer"] for row in rows)):
        own = [row for row in rows if row["layer"] == name]
        epochs = [row["epochs"] for row in own]
        for key, axis in axes.items():
            values = [row["angle" if key == "angle" else "r"] for row in own]
            axis.plot(epochs, values, label=name, **layer_style(i))
    start = np.median([row["angle"] for row in rows if row["epochs"] == rows[0]["epochs"]])
    gaussian = np.degrees(geometry.binary_angle())
    # Of the sign: other quantizers do not start at the angle of uniform weights with it.
    references = ((30, "uniform"), (gaussian, "Gaussian")) if abs(start - 30) < 2 else ()
    for reference, text in references:
        axes["angle"].axhline(reference, color="grey", linewidth=0.8, linestyle=":")
        # Beside the axis, where no layer is drawn.
        axes["angle"].annotate(
            f"{text}\n{reference:.2f}°",
            (1.01, reference),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=7,
            color="grey",
        )
    axes["angle"].set_ylabel("mean angle(w$^c$, w$^b$) (degrees)")
    axes["high"].set(ylabel="r, from 0.85", ylim=(0.85, 1))
    axes["r"].set_ylabel("pooled r of A·w$^b$ with A·w$^c$")
    for axis in axes.values():
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("epochs of training")
    labels = axes["angle"].get_legend_handles_labels()
    figure.legend(*labels, loc="outside right center", fontsize=7)
    return figure


# --- All of them ------------------------------------------------------------------------------


def run_figures(
    layers: Sequence[object],
    folder: str | os.PathLike,
    history: Sequence[dict] = (),
    rotation: dict | None = None,
    substitution: dict | None = None,
    images: int | None = None,
) -> None:
    """Write the figures of a network to `folder`, as PNG and PDF: those that it has data for.

    `history` is from `geometry_log.read_geometry`, `rotation` and `substitution` from
    `experiments`; `images` counts the test images of the latter.
    """
    for name, figure in _figures(layers, history, rotation, substitution, images):
        save_figure(figure, folder, name)
        plt.close(figure)


def _figures(layers, history, rotation, substitution, images):
    yield "angles", plot_layer_angles(layers)
    yield "angle_scaling", plot_angle_scaling(layers)
    yield "weights", plot_weights(layers)
    for which in ("weights_dot", "activations_dot", "permuted"):
        if any(getattr(layer, which) is not None for layer in layers):
            yield which, plot_dot_products(layers, which)
    if all(layer.permuted is not None for layer in layers):
        yield "permutation", plot_permutation(layers)
    if any(layer.predicted_r is not None for layer in layers):
        yield "predicted", plot_predicted(layers)
        yield "spectra", plot_spectra(layers)
    if rotation and layers[0].wc.shape[2] in (1, 3):
        yield "filters", plot_filters(layers[0])
    if rotation:
        yield "rotation", plot_rotation(rotation)
    if substitution:
        yield "substitution", plot_substitution(substitution, images)
    if history:
        yield "angle_history", plot_angle_history(history)
