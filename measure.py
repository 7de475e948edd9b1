"""Measure a trained network's geometry: angles, dot products and weights, layer by layer.

`measure_layers` is the quick look that training prints, `measure_network` the whole measurement.
Both stream over the images: memory does not grow with their number, and results do not depend on
the batch size.
"""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

import geometry
from bnn import INFERENCE_BATCH, WHITENING_FLOOR, Activations, layers_accuracy, refit_layers, scaled
from utils import atomic_path

# isort: split
import keras
import numpy as np
from tqdm import tqdm

# Images that fix the histograms' extents: the first ones, so that no batch size changes them.
PILOT_IMAGES = 50
HISTOGRAM_BINS = 60
# Test images whose activations are permuted together.
PERMUTED_IMAGES = 500
# Covariances come from so many training images and patches of each, at random positions: all
# positions of a wide layer would cost more than the rest of the measurement.
COVARIANCE_IMAGES = 2000
COVARIANCE_POSITIONS = 32
# A covariance of a larger fan-in, and the work on it, would not stay under 2 GB.
WIDEST_COVARIANCE = 5000
# Training images on which batch-norm statistics are re-estimated.
REFIT_IMAGES = 2000


# --- What is measured -------------------------------------------------------------------------


@dataclass
class DotProducts:
    """Paired dot products of one layer.

    Attributes
    ----------
    r, slope, sign_changes : float
        Pearson correlation, slope of the regression of y on x, share of pairs with x·y < 0, all
        pooled over units, positions and images.
    inside_r : float
        r without the positions at the border, which zero padding reaches; nan if there are no
        others.
    unit_r, inside_unit_r : ndarray, shape (units,)
        r of each unit, with and without the border.
    extent : (float, float, float, float)
        x from, x to, y from, y to, of the histogram.
    histogram : ndarray of integers, shape (bins, bins)
        Pairs per cell, x along the first axis.
    """

    r: float
    inside_r: float
    slope: float
    sign_changes: float
    unit_r: np.ndarray = field(repr=False)
    inside_unit_r: np.ndarray = field(repr=False)
    extent: tuple = field(repr=False)
    histogram: np.ndarray = field(repr=False)


@dataclass
class LayerMeasurement:
    """The geometry of one layer.

    Attributes
    ----------
    name : str
    fan_in : int
        d, the length of a unit's weight vector.
    convolutional : bool
    wc, wb : ndarray, shape (…, units)
        Latent and quantized weights, in the basis in which they are quantized.
    threshold : float
        Of the ternary weight quantizer, absolute; 0 for a binary one.
    quantized, quantized_input : bool
        Are its weights, and the activations that it sees?
    positions : int
        Dot products of a unit per image, before pooling.
    weight_bits : {1, 2, 32}
        A binary, a ternary or any other weight.
    weights_dot : DotProducts
        A·w^c (x) against A·w^b (y).
    activations_dot : DotProducts or None
        A^c·w^b (x) against A^b·w^b (y); None in the first layer, whose input is not quantized.
    permuted : DotProducts or None
        As `weights_dot`, with all entries of the layer's input permuted together.
    spectrum : ndarray, shape (d,), or None
        Eigenvalues of the input patches' covariance, greatest first.
    predicted_r : ndarray, shape (units,), or None
        r of each unit that this covariance, of training images, predicts for `weights_dot`.
    deflated_r : ndarray, shape (units,), or None
        As `predicted_r`, had the first principal axis no variance; of the first layer only.
    entries : DotProducts or None
        A^c (x) against A^b (y) themselves, entry by entry; None in the first layer.
    textured : ndarray, shape (3,), or None
        Share of the positions whose patch of A^c is not the same all over, as that of an empty
        background is; pooled r of the entries and of the dot products at these alone. None where
        the input is not quantized, and in fully connected layers.
    """

    name: str
    fan_in: int
    convolutional: bool
    wc: np.ndarray = field(repr=False)
    wb: np.ndarray = field(repr=False)
    threshold: float
    quantized: bool
    quantized_input: bool
    positions: int = 1
    weight_bits: int = 32
    weights_dot: DotProducts = None
    activations_dot: DotProducts = None
    permuted: DotProducts = None
    spectrum: np.ndarray = field(default=None, repr=False)
    predicted_r: np.ndarray = field(default=None, repr=False)
    deflated_r: np.ndarray = field(default=None, repr=False)
    entries: DotProducts = None
    textured: np.ndarray = field(default=None, repr=False)

    @property
    def angles(self):
        """Angle(w^c, w^b) of each unit in radians, shape (units,)."""
        return geometry.unit_angles(self.wc, self.wb)

    @property
    def tau(self):
        """Threshold over the standard deviation of the latent weights, t/σ."""
        return self.threshold / self.wc.std()

    @property
    def sd_over_initial(self):
        """Standard deviation of the latent weights over that of the published initialization."""
        return self.wc.std() / geometry.glorot_sd(self.wc.shape)

    @property
    def kurtosis(self):
        """Mean over units of each unit's own: pooling would mix scales."""
        return np.nanmean(geometry.unit_kurtosis(self.wc))

    @property
    def shape_angle(self):
        """The angle in radians that the kurtosis alone predicts."""
        return geometry.shape_angle(self.kurtosis, self.tau)

    @property
    def peaked_angle(self):
        """`geometry.peaked_shape_angle`: of kurtosis and peak together, and the peak."""
        return geometry.peaked_shape_angle(self.kurtosis, self.near_threshold, self.tau)

    @property
    def near_threshold(self):
        """The share of weights near the quantizer's threshold, zero for the sign."""
        return geometry.near_threshold_share(self.wc, self.threshold)

    @property
    def spread_ratio(self):
        """Spread of the units' cosines over that of units drawn from one pool.

        By `geometry.iid_cosine_sd`; a ternary layer's weights are dealt out to its units anew.
        """
        spread = np.nanstd(np.cos(self.angles))
        if self.threshold == 0:
            return spread / geometry.iid_cosine_sd(self.wc, self.fan_in)
        order = np.random.default_rng(0).permutation(self.wc.size)
        dealt = (w.ravel()[order].reshape(self.fan_in, -1) for w in (self.wc, self.wb))
        return spread / np.nanstd(np.cos(geometry.unit_angles(*dealt)))

    @property
    def shares(self):
        """Shares of negative, zero and positive quantized weights."""
        return [float(np.mean(np.sign(self.wb) == sign)) for sign in (-1, 0, 1)]

    @property
    def theory(self):
        """Mean angle in radians of Gaussian weights, and its standard deviation for this fan-in.

        Ternary quantizers have a closed form only for many dimensions: their deviation is nan.
        """
        if self.threshold == 0:
            return geometry.angle_moments(self.fan_in)
        return np.arccos(geometry.ternary_cosine(self.tau)), np.nan


class _PairCounter:
    """Statistics of one layer's pairs, away from the border and at it."""

    def __init__(self, x, y, border):
        extent = (*_range(x), *_range(y))
        self.border = border if x.ndim == 4 else 0
        self.inside, self.edge = (
            geometry.DotProductStatistics(x.shape[-1], extent, HISTOGRAM_BINS) for _ in range(2)
        )

    def update(self, x, y):
        if self.border:
            (x, x_edge), (y, y_edge) = (geometry.split_border(v, self.border) for v in (x, y))
            self.edge.update(x_edge, y_edge)
        self.inside.update(x, y)

    def result(self):
        inside_r, inside_unit_r = self.inside.correlation(), self.inside.unit_correlations()
        pairs = self.edge.merge(self.inside)
        return DotProducts(
            r=float(pairs.correlation()),
            inside_r=float(inside_r),
            slope=float(pairs.slope()),
            sign_changes=float(pairs.sign_changes()),
            unit_r=pairs.unit_correlations(),
            inside_unit_r=inside_unit_r,
            extent=pairs.extent,
            histogram=pairs.histogram,
        )


def _range(values):
    # A little more than the extremes of the pilot images: next to nothing lies outside.
    limit = 1.05 * float(np.abs(values).max()) or 1.0
    if np.array_equal(values[:1], np.rint(values[:1])):
        # Dot products of ±1 vectors move in steps of 2: cells of an even width hold as many of
        # their values each, where others would draw stripes.
        limit = HISTOGRAM_BINS * np.ceil(limit / HISTOGRAM_BINS)
    return -limit, limit


# --- Measurement ------------------------------------------------------------------------------


def measure_layers(network, x, batch_size=INFERENCE_BATCH, progress=False):
    """Measure angles and dot products of every layer of a network.

    Parameters
    ----------
    network : bnn.BinaryNeuralNetwork
    x : ndarray, shape (n, height, width, channels)
        Images as `network.predict` takes them.
    batch_size : int
        Images at a time; changes memory and speed, not the result.
    progress : bool
        Draw a progress bar?

    Returns
    -------
    list of LayerMeasurement
        From the first layer to the output.
    """
    layers = network.model.quantized_layers
    counters = [{} for _ in layers]
    for counter, pairs in zip(counters, _all_pairs(network, x[:PILOT_IMAGES]), strict=True):
        for which, (a, b) in pairs:
            counter[which] = _PairCounter(a, b, network.network_params.filter_size // 2)
    with tqdm(total=len(x), desc="dot products", unit="image", disable=not progress) as bar:
        for images in _batches(x, batch_size):
            for counter, pairs in zip(counters, _all_pairs(network, images), strict=True):
                for which, (a, b) in pairs:
                    counter[which].update(a, b)
            bar.update(len(images))
    measured = layer_weights(network)
    for result, counter in zip(measured, counters, strict=True):
        for which, pairs in counter.items():
            setattr(result, which, pairs.result())
    return measured


def measure_network(network, x, x_train, batch_size=INFERENCE_BATCH, progress=False):
    """Measure everything that the paper's claims about a trained network need.

    Parameters
    ----------
    network : bnn.BinaryNeuralNetwork
    x, x_train : ndarray, shape (n, height, width, channels)
        Test images, on which dot products are measured (the first `PERMUTED_IMAGES` of them also
        with permuted activations, and without empty background), and training images, the first
        `COVARIANCE_IMAGES` of which give the covariances.
    batch_size, progress
        As for `measure_layers`.

    Returns
    -------
    list of LayerMeasurement
    """
    measured = measure_layers(network, x, batch_size, progress)
    _measure_permuted(network, measured, x[:PERMUTED_IMAGES], batch_size, progress)
    _measure_textured(network, measured, x[:PERMUTED_IMAGES], batch_size)
    _measure_covariances(network, measured, x_train[:COVARIANCE_IMAGES], batch_size, progress)
    return measured


def _batches(x, size):
    return (x[start : start + size] for start in range(0, len(x), size))


def layer_weights(network):
    """A `LayerMeasurement` of every layer, weights only: no image is needed for those."""
    layers, shape = network.model.quantized_layers, (None, *network.in_dim)
    quantized_inputs = (False, *(layer.activation_quantizer != "clip" for layer in layers[:-1]))
    measured = []
    for layer, quantized_input in zip(layers, quantized_inputs, strict=True):
        result = _weights_of(layer)
        result.quantized_input = quantized_input
        if result.convolutional:
            result.positions = math.prod(shape[1:3])
            shape = layer.compute_output_shape(shape)
        measured.append(result)
    return measured


def _weights_of(layer):
    coordinates = layer.coordinates(layer.latent_kernel)
    wc = keras.ops.convert_to_numpy(coordinates)
    ternary = layer.weight_quantizer == "ternary"
    # In another basis the kernel itself is no longer of −1, 0 and 1.
    plain = getattr(layer, "basis", None) is None
    return LayerMeasurement(
        name=layer.name,
        fan_in=wc[..., 0].size,
        convolutional=wc.ndim == 4,
        wc=wc,
        wb=keras.ops.convert_to_numpy(layer.quantized_coordinates()),
        threshold=float(layer.weight_threshold(coordinates)) if ternary else 0.0,
        quantized=layer.weight_quantizer != "clip",
        quantized_input=False,
        weight_bits={"binary": 1, "ternary": 2}.get(layer.weight_quantizer, 32) if plain else 32,
    )


def _all_pairs(network, images):
    """Layer by layer, the names of its pairs of dot products with the pairs themselves."""
    for layer, inputs, unquantized in network.model.layer_inputs(
        keras.ops.convert_to_tensor(images)
    ):
        first = layer is network.model.quantized_layers[0]
        yield _pairs(layer, inputs, None if first else unquantized)


def _pairs(layer, inputs, unquantized=None):
    wb = layer.quantized_kernel()
    quantized = _dot(layer, inputs, wb)
    yield "weights_dot", (_dot(layer, inputs, layer.continuous_kernel()), quantized)
    if unquantized is not None:
        yield "activations_dot", (_dot(layer, unquantized, wb), quantized)
        yield "entries", tuple(map(keras.ops.convert_to_numpy, (unquantized, inputs)))


def _dot(layer, inputs, kernel):
    return keras.ops.convert_to_numpy(layer.dot_products(inputs, kernel))


def _measure_permuted(network, measured, x, batch_size, progress):
    """One layer at a time, as the permutation takes all its inputs at once."""
    rng = np.random.default_rng(0)
    inputs = x
    layers = network.model.quantized_layers
    for layer, result in tqdm(
        list(zip(layers, measured, strict=True)), desc="permuted", disable=not progress
    ):
        if not result.convolutional:
            inputs = inputs.reshape(len(inputs), -1)
        permuted = inputs.ravel()
        permuted = rng.permutation(permuted).reshape(inputs.shape)
        counter = None
        for images in (permuted[:PILOT_IMAGES], *_batches(permuted, batch_size)):
            ((_, (a, b)),) = _pairs(layer, _as_input(images))
            if counter is None:
                counter = _PairCounter(a, b, network.network_params.filter_size // 2)
            else:
                counter.update(a, b)
        result.permuted = counter.result()
        if layer is not layers[-1]:
            inputs = np.concatenate(
                [
                    _compact(keras.ops.convert_to_numpy(layer(_as_input(images))))
                    for images in _batches(inputs, batch_size)
                ]
            )


def _compact(activations):
    """−1, 0, 1 as bytes; what is no such number stays what it is."""
    small = activations.astype(np.int8)
    return small if np.array_equal(small, activations) else activations


def _as_input(activations):
    return activations if activations.dtype == np.uint8 else activations.astype(np.float32)


def _measure_textured(network, measured, x, batch_size):
    size = network.network_params.filter_size
    statistics = {
        result.name: [geometry.DotProductStatistics(n) for n in result.wb.shape[-2:]]
        for result in measured
        if result.convolutional and result.quantized_input
    }
    positions = dict.fromkeys(statistics, 0)
    for images in _batches(x, batch_size):
        for layer, *inputs in network.model.layer_inputs(keras.ops.convert_to_tensor(images)):
            if layer.name in statistics:
                kept = _changes(inputs[1], size)
                wb = layer.quantized_kernel()
                dots = (_dot(layer, values, wb) for values in inputs)
                entries = map(keras.ops.convert_to_numpy, inputs)
                for pairs, (b, c) in zip(statistics[layer.name], (entries, dots), strict=True):
                    pairs.update(c[kept], b[kept])
                positions[layer.name] += kept.size
    for result in measured:
        if result.name in statistics:
            entries, dots = statistics[result.name]
            share = entries.count / positions[result.name]
            result.textured = np.array([share, entries.correlation(), dots.correlation()])


def _changes(x, size):
    """Where the patch about a position is not the same all over, shape (images, height, width)."""
    highest, lowest = (
        sign * keras.ops.max_pool(sign * x, size, strides=1, padding="same") for sign in (1, -1)
    )
    # Equal patches may differ by rounding.
    return keras.ops.convert_to_numpy(keras.ops.max(highest - lowest, axis=-1) > 1e-3)


def _measure_covariances(network, measured, x, batch_size, progress):
    covariances = [
        geometry.PatchCovariance(result.fan_in) if result.fan_in <= WIDEST_COVARIANCE else None
        for result in measured
    ]
    size = network.network_params.filter_size
    with tqdm(total=len(x), desc="covariances", unit="image", disable=not progress) as bar:
        for start in range(0, len(x), batch_size):
            images = x[start : start + batch_size]
            inputs = network.model.layer_inputs(keras.ops.convert_to_tensor(images))
            for covariance, (_, activations, _) in zip(covariances, inputs, strict=True):
                if covariance is not None:
                    activations = keras.ops.convert_to_numpy(activations)
                    covariance.update(_sampled_patches(scaled(activations), size, start))
            bar.update(len(images))
    layers = network.model.quantized_layers
    for layer, result in tqdm(
        list(zip(layers, measured, strict=True)), desc="spectra", disable=not progress
    ):
        # A wide layer's takes 170 MB, and each copy as much again: none is kept for longer.
        covariance = covariances.pop(0)
        if covariance is not None:
            covariance = covariance.covariance
            kernels = layer.continuous_kernel(), layer.quantized_kernel()
            result.predicted_r = geometry.predicted_correlation(*kernels, covariance)
            result.spectrum = geometry.variance_spectrum(covariance)[0]
            if layer is layers[0]:
                axis = geometry.principal_axes(covariance)[0]
                covariance -= result.spectrum[0] * np.outer(axis, axis)
                result.deflated_r = geometry.predicted_correlation(*kernels, covariance)


def _sampled_patches(x, size, first):
    """Patches of each image at random positions, shape (images, positions, size·size·channels).

    The positions of an image follow from its number, counted from `first`, so that they do not
    depend on the batch. What a fully connected layer sees is one patch.
    """
    if x.ndim == 2:
        return x
    count, height, width, _ = x.shape
    positions = np.stack(
        [
            np.random.default_rng(number).random((2, COVARIANCE_POSITIONS))
            for number in range(first, first + count)
        ],
        axis=1,
    )
    row, column = (
        (place * length).astype(int)[:, :, None, None]
        for place, length in zip(positions, (height, width), strict=True)
    )
    around = ((size - 1) // 2, size // 2)
    padded = np.pad(x, ((0, 0), around, around, (0, 0)))
    tap = np.arange(size)
    image = np.arange(count)[:, None, None, None]
    patches = padded[image, row + tap[:, None], column + tap]
    return patches.reshape(count, COVARIANCE_POSITIONS, -1)


# --- The first layer in other bases -----------------------------------------------------------


def rotation_correlations(network, x, x_train):
    """r of the first layer's dot products when it is quantized in another basis.

    Parameters
    ----------
    network : bnn.BinaryNeuralNetwork
        With a convolutional first layer.
    x, x_train : ndarray, shape (n, height, width, channels)
        Test images, whose patches are multiplied (`COVARIANCE_POSITIONS` of each of the first
        `COVARIANCE_IMAGES`), and training images, which give principal axes and whitening.

    Returns
    -------
    dict
        By basis ('as is', 'random', 'pca', 'zca') a dict of r by what is quantized there
        ('weights', 'patches', 'both'), each against the dot products of nothing quantized.
        Patches are whitened as (x − mean)Z and multiplied with the latent weights as they are.
    """
    layer = network.model.quantized_layers[0]
    statistics = network.first_patches(x_train)
    covariance, d = statistics.covariance, statistics.d
    patches = _sampled_patches(scaled(x[:COVARIANCE_IMAGES]), network.network_params.filter_size, 0)
    patches = patches.reshape(-1, d)
    w = layer.latent_kernel.numpy().reshape(d, -1)
    whitening = geometry.whitening(covariance, WHITENING_FLOOR * np.diag(covariance).mean())
    threshold = _weights_of(layer).threshold
    results = {"as is": _quantized_correlations(patches, w, threshold)}
    for name, rotation in (
        ("random", geometry.random_rotation(d, 0)),
        ("pca", geometry.principal_axes(covariance)),
    ):
        rotated = patches @ rotation.T, rotation @ w
        results[name] = _quantized_correlations(*rotated, threshold)
    whitened = (patches - statistics.mean) @ whitening
    return results | {"zca": _quantized_correlations(whitened, w, threshold)}


def _quantized_correlations(patches, w, threshold):
    def theta(values):
        if threshold == 0:
            return np.where(values >= 0, 1.0, -1.0)
        return np.sign(values) * (np.abs(values) > threshold)

    exact = patches @ w
    quantized = {
        "weights": patches @ theta(w),
        "patches": theta(patches) @ w,
        "both": theta(patches) @ theta(w),
    }
    return {
        name: float(geometry.DotProductStatistics(w.shape[1]).update(exact, dots).correlation())
        for name, dots in quantized.items()
    }


# --- Latent weights in place of quantized ones ------------------------------------------------


def substitution_accuracies(network, x_train, x, y, progress=False):
    """Accuracy with the latent weights of one layer, or all, in place of the quantized ones.

    Latent weights are smaller than ±1, which batch norm's statistics know nothing of: each network
    is measured as it is and with the statistics re-estimated on training images, from the
    substituted layer on. The layers below it are left alone and computed once.

    Parameters
    ----------
    network : bnn.BinaryNeuralNetwork
    x_train, x : ndarray, shape (n, height, width, channels)
        Training images, the first `REFIT_IMAGES` of which re-estimate the statistics, and test
        images.
    y : ndarray of integers, shape (n,)
        Labels of `x`.
    progress : bool
        Draw a progress bar?

    Returns
    -------
    dict
        Of (accuracy as it is, accuracy re-estimated), by what is substituted: 'none', the control,
        each quantized layer's name, and 'all'.
    """
    names = [
        layer.name for layer in network.model.quantized_layers if layer.weight_quantizer != "clip"
    ]
    experiments = [("none", 0, [])]
    for start, layer in enumerate(network.model.quantized_layers):
        if layer.name in names:
            experiments.append((layer.name, start, [layer.name]))
    experiments.insert(1, ("all", 0, names))
    below, inputs = 0, [Activations(x_train[:REFIT_IMAGES]), Activations(x)]
    accuracies = {}
    for name, start, substitute in tqdm(experiments, desc="substitution", disable=not progress):
        while below < start:
            inputs = [images.through(network.model.quantized_layers[below]) for images in inputs]
            below += 1
        layers = network.with_weights(substitute).model.quantized_layers[start:]
        as_it_is = layers_accuracy(layers, inputs[1], y)
        refit_layers(layers, inputs[0])
        accuracies[name] = as_it_is, layers_accuracy(layers, inputs[1], y)
    return accuracies


# --- Tables -----------------------------------------------------------------------------------


def format_table(measured):
    """The layers' geometry and cost as two plain-text tables, angles in degrees."""
    return f"{_geometry_table(measured)}\n\n{cost_table(measured)}"


def _geometry_table(measured):
    row = "{:<8}{:>7}  {:>16}  {:>16}  {:>6}  {:>8}".format
    lines = [row("layer", "d", "angle(wc, wb)", "Gaussian theory", "r", "|w| = 1")]
    for layer in measured:
        angles = np.degrees(layer.angles)
        lines.append(
            row(
                layer.name,
                layer.fan_in,
                _spread(np.nanmean(angles), np.nanstd(angles)),
                _spread(*np.degrees(layer.theory)),
                f"{layer.weights_dot.r:.3f}",
                f"{geometry.saturated_share(layer.wc):.2%}",
            )
        )
    return "\n".join(lines)


def cost_table(measured):
    """What the layers hold and compute, as a plain-text table with the sums in its last line.

    Multiply-adds are those of one image. On bits are those of a quantized layer whose input is
    quantized too; the first layer's, on pixels, are not. Packed, a ternary weight takes two bits,
    and one that is not packed its float32.
    """
    rows = []
    for layer in measured:
        weights = layer.wc.size
        on_bits = layer.quantized_input and layer.weight_bits < 32
        products = weights * layer.positions
        packed = math.ceil(weights * layer.weight_bits / 8)
        rows.append((weights, on_bits * products, (not on_bits) * products, 4 * weights, packed))
    row = "{:<8}{:>10}  {:>19}  {:>19}  {:>13}  {:>12}".format
    bits = 2 if any(layer.weight_bits == 2 for layer in measured) else 1
    kinds = (f"{kind} multiply-adds" for kind in (f"{bits}-bit", "float"))
    lines = [row("layer", "weights", *kinds, "float32 bytes", "packed bytes")]
    names = (layer.name for layer in measured)
    for name, figures in zip((*names, "sum"), (*rows, np.sum(rows, axis=0)), strict=True):
        lines.append(row(name, *(f"{figure:,}" for figure in figures)))
    return "\n".join(lines)


def _spread(mean, deviation):
    return f"{mean:.2f}°" if np.isnan(deviation) else f"{mean:.2f}° ± {deviation:.2f}°"


# --- During training --------------------------------------------------------------------------


class GeometryLog(keras.callbacks.Callback):
    """Record every layer's geometry before the first epoch and after each.

    The file has a row per layer and number of finished epochs, angles in degrees; see
    `read_geometry`. A training that is resumed goes on with it.

    Parameters
    ----------
    network : bnn.BinaryNeuralNetwork
        The one in training.
    x : ndarray, shape (n, height, width, channels)
        Images on which r is measured: a hundred or two will do.
    path : path-like
        The CSV file.
    """

    COLUMNS = ("epochs", "layer", "angle", "angle_sd", "kurtosis", "r")

    def __init__(self, network, x, path):
        super().__init__()
        self.network, self.x, self.path = network, x, Path(path)
        self._rows = None

    def on_epoch_begin(self, epoch, logs=None):
        if self._rows is None:
            # A resumed training keeps what it had recorded before it was cut off.
            earlier = read_geometry(self.path) if epoch else []
            self._rows = [row for row in earlier if row["epochs"] < epoch]
            self._record(epoch)

    def on_epoch_end(self, epoch, logs=None):
        self._record(epoch + 1)

    def _record(self, epochs):
        for layer in measure_layers(self.network, self.x):
            angles = np.degrees(layer.angles)
            values = np.nanmean(angles), np.nanstd(angles), layer.kurtosis, layer.weights_dot.r
            row = (epochs, layer.name, *(round(float(value), 4) for value in values))
            self._rows.append(dict(zip(self.COLUMNS, row, strict=True)))
        with (
            atomic_path(self.path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.COLUMNS)
            writer.writeheader()
            writer.writerows(self._rows)


def read_geometry(path):
    """What a `GeometryLog` has recorded, a dict per row; nothing where there is no file."""
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    whole = {"epochs": int, "layer": str}
    return [{name: whole.get(name, float)(text) for name, text in row.items()} for row in rows]
