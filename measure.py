"""Measure the geometry of a network, layer by layer: angles, dot products and weights.

`measure_layers` is the quick look that training prints, on any Keras model; `measure_network` is
the whole measurement. Both stream over the images: memory does not grow with their number, and
results do not depend on the batch size.
"""

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import geometry
import walk
from bnn import BinaryNeuralNetwork, scaled
from fast.store import Store
from graph_ops import Clip, Quantizer, RotatedConv2D, Sign, Ternary
from stream import INFERENCE_BATCH
from utils import require

# isort: split
import keras
import numpy as np
from tabulate import tabulate
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
# Floats that the activations of one batch may take: half a gigabyte.
BATCH_FLOATS = 2**27
# Products are counted in bits where there are so many batches: compiling has to pay.
COUNTED_BATCHES = 5
# Values of feature maps that are split at a time: what stays in the cache is copied sooner.
SPLIT = 2**18


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
        The layer's; with the kernel's after a dot where a layer has several.
    fan_in : int
        d, the length of a unit's weight vector.
    window : walk.Window or None
        The patches that a convolution of images multiplies.
    first : bool
        Do the layer's inputs come from the model's without another product between them?
    wc, wb : ndarray, shape (…, units)
        Latent and quantized weights, in the basis in which they are quantized.
    threshold : float
        Of the ternary weight quantizer, absolute; 0 for any other.
    quantized, quantized_input : bool
        Does the layer quantize its weights, and its inputs? If not its weights, `wb` are those of
        the quantizer that the measurement was asked for.
    positions : int
        Dot products of a unit per image, over all time steps.
    weight_bits : int
        Bits of a quantized weight, 32 for a float.
    weights_dot : DotProducts
        A·w^c (x) against A·w^b (y).
    activations_dot : DotProducts or None
        A^c·w^b (x) against A^b·w^b (y); None where the layer has no input quantizer.
    permuted : DotProducts or None
        As `weights_dot`, with all entries of the layer's input permuted together, over images
        and, in a recurrent layer, time steps.
    spectrum : ndarray, shape (d,), or None
        Eigenvalues of the input patches' covariance, greatest first.
    predicted_r : ndarray, shape (units,), or None
        r of each unit that this covariance, of training images, predicts for `weights_dot`.
    deflated_r : ndarray, shape (units,), or None
        As `predicted_r`, had the first principal axis no variance; of the first layer only.
    entries : DotProducts or None
        A^c (x) against A^b (y) themselves, entry by entry; None where the layer has no input
        quantizer.
    textured : ndarray, shape (3,), or None
        Share of the positions whose patch of A^c is not the same all over, as that of an empty
        background is; pooled r of the entries and of the dot products at these alone. None where
        the input is not quantized, and in fully connected layers.
    """

    name: str
    fan_in: int
    window: walk.Window | None
    first: bool
    wc: np.ndarray = field(repr=False)
    wb: np.ndarray = field(repr=False)
    threshold: float
    quantized: bool
    quantized_input: bool
    positions: int = 1
    weight_bits: int = 32
    weights_dot: DotProducts | None = None
    activations_dot: DotProducts | None = None
    permuted: DotProducts | None = None
    spectrum: np.ndarray | None = field(default=None, repr=False)
    predicted_r: np.ndarray | None = field(default=None, repr=False)
    deflated_r: np.ndarray | None = field(default=None, repr=False)
    entries: DotProducts | None = None
    textured: np.ndarray | None = field(default=None, repr=False)

    @property
    def convolutional(self) -> bool:
        return self.window is not None

    @property
    def angles(self) -> np.ndarray:
        """Angle(w^c, w^b) of each unit in radians, shape (units,)."""
        return geometry.unit_angles(self.wc, self.wb)

    @property
    def sign_agreement(self) -> float:
        """Share of the weights w^b with the sign of w^c: 1 unless something stands for w^c."""
        return float(np.mean(np.sign(self.wc) == np.sign(self.wb)))

    @property
    def tau(self) -> float:
        """Threshold over the standard deviation of the latent weights, t/σ."""
        return self.threshold / self.wc.std()

    @property
    def sd_over_initial(self) -> float:
        """Standard deviation of the latent weights over that of the published initialization."""
        return self.wc.std() / geometry.glorot_sd(self.wc.shape)

    @property
    def kurtosis(self) -> float:
        """Mean over units of each unit's own: pooling would mix scales."""
        return np.nanmean(geometry.unit_kurtosis(self.wc))

    @property
    def shape_angle(self) -> float:
        """The angle in radians that the kurtosis alone predicts."""
        return geometry.shape_angle(self.kurtosis, self.tau)

    @property
    def peaked_angle(self) -> tuple[float, float]:
        """`geometry.peaked_shape_angle`: of kurtosis and peak together, and the peak."""
        return geometry.peaked_shape_angle(self.kurtosis, self.near_threshold, self.tau)

    @property
    def near_threshold(self) -> float:
        """The share of weights near the quantizer's threshold, zero for the sign."""
        return geometry.near_threshold_share(self.wc, self.threshold)

    @property
    def spread_ratio(self) -> float:
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
    def shares(self) -> list[float]:
        """Shares of negative, zero and positive quantized weights."""
        return [float(np.mean(np.sign(self.wb) == sign)) for sign in (-1, 0, 1)]

    @property
    def theory(self) -> tuple[float, float]:
        """Mean angle in radians of Gaussian weights, and its standard deviation for this fan-in.

        Ternary quantizers have a closed form only for many dimensions: their deviation is nan.
        """
        if self.threshold == 0:
            return geometry.angle_moments(self.fan_in)
        return np.arccos(geometry.ternary_cosine(self.tau)), np.nan


class _PairCounter:
    """Statistics of one layer's pairs, away from the border and at it."""

    def __init__(self, pilot, border):
        units, extent = pilot.units, (*pilot.range(0), *pilot.range(1))
        self.border = border if pilot.images else 0
        self.inside, self.edge = (
            geometry.DotProductStatistics(units, extent, HISTOGRAM_BINS) for _ in range(2)
        )

    def update(self, x, y):
        if not self.border:
            self.inside.update(x, y)
            return
        images = max(1, SPLIT // x[0].size)
        for start in range(0, len(x), images):
            parts = (geometry.split_border(v[start : start + images], self.border) for v in (x, y))
            for statistics, *pair in zip((self.inside, self.edge), *parts, strict=True):
                statistics.update(*pair)

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


class _Beside:
    """Runs functions on another core, in order, while the caller makes the next one's arguments."""

    def __enter__(self):
        self._pool, self._running = ThreadPoolExecutor(1), None
        return self

    def submit(self, function, *args):
        # One at a time: arguments that wait would fill the memory.
        self._wait()
        self._running = self._pool.submit(function, *args)

    def _wait(self):
        if self._running is not None:
            self._running.result()

    def __exit__(self, *error):
        with self._pool:
            self._wait()


class _Pilot:
    """What the first images tell of a layer's pairs: how far they reach."""

    def __init__(self, x, y):
        self.units, self.images = x.shape[-1], x.ndim == 4
        # Dot products of ±1 vectors, by the first image.
        self._whole = [np.array_equal(v[:1], np.rint(v[:1])) for v in (x, y)]
        self._largest = [0.0, 0.0]

    def update(self, *pair):
        self._largest = [
            max(limit, float(np.abs(values).max()))
            for limit, values in zip(self._largest, pair, strict=True)
        ]

    def range(self, axis):
        # A little more than the extremes of the first images: next to nothing lies outside.
        limit = 1.05 * self._largest[axis] or 1.0
        if self._whole[axis]:
            # They move in steps of 2: cells of an even width hold as many of their values each,
            # where others would draw stripes.
            limit = HISTOGRAM_BINS * np.ceil(limit / HISTOGRAM_BINS)
        return -limit, limit


# --- Measurement ------------------------------------------------------------------------------


def measure_layers(
    model: BinaryNeuralNetwork | keras.Model,
    x: np.ndarray,
    batch_size: int = INFERENCE_BATCH,
    progress: bool = False,
    quantizer: Quantizer = Sign(),  # noqa: B008
    latent: dict[str, np.ndarray] | None = None,
) -> list[LayerMeasurement]:
    """Measure angles and dot products of every product of a network.

    Parameters
    ----------
    model : bnn.BinaryNeuralNetwork or keras.Model
        Any Keras model: functional, sequential or subclassed, with shortcuts or recurrent layers.
    x : ndarray, shape (n, ...)
        Images, or whatever the model takes.
    batch_size : int
        Images at a time, at most; changes memory and speed, not the result.
    progress : bool
        Draw a progress bar?
    quantizer : graph_ops.Quantizer
        Against which weights are measured in a layer that does not quantize them.
    latent : dict, optional
        Arrays by the name of the product that stand for w^c in place of its latent weights. By
        default those of `momentum_of` for a network that Bop has trained, none for any other.

    Returns
    -------
    list of LayerMeasurement
        One per product, in the order in which the model forms them first.

    Raises
    ------
    ValueError
        If it is not known how a layer of the model multiplies.
    """
    latent = _stand_ins(model) if latent is None else latent
    require(len(x) > 0, "there is not a single image")
    model = _keras_model(model, x)
    measured, floats = _probed(model, x, quantizer, latent)
    by_name = {layer.name: layer for layer in measured}
    batch_size = max(1, min(batch_size, BATCH_FLOATS // floats))
    pilots, counters = {}, {}

    def look(product):
        for which, pair in _pairs(product, quantizer, by_name[product.name].wc):
            key = product.name, which
            if key not in pilots:
                pilots[key] = _Pilot(*pair)
            pilots[key].update(*pair)

    def count(product):
        for which, pair in _pairs(product, quantizer, by_name[product.name].wc):
            statistics.submit(counters[product.name, which].update, *pair)

    _visit_batches(model, x[:PILOT_IMAGES], batch_size, look)
    borders = {layer.name: layer.window.border if layer.window else 0 for layer in measured}
    for (name, which), pilot in pilots.items():
        counters[name, which] = _PairCounter(pilot, borders[name])
    with _Beside() as statistics:
        _visit_batches(model, x, batch_size, count, "dot products", progress)
    for (name, which), counter in counters.items():
        setattr(by_name[name], which, counter.result())
    return measured


def measure_network(
    network: BinaryNeuralNetwork | keras.Model,
    x: np.ndarray,
    x_train: np.ndarray,
    batch_size: int = INFERENCE_BATCH,
    progress: bool = False,
    quantizer: Quantizer = Sign(),  # noqa: B008
) -> list[LayerMeasurement]:
    """Measure everything that the paper's claims about a trained network need.

    Parameters
    ----------
    network : bnn.BinaryNeuralNetwork or keras.Model
    x, x_train : ndarray, shape (n, height, width, channels)
        Test images, on which dot products are measured (the first `PERMUTED_IMAGES` of them also
        with permuted activations, and without empty background), and training images, the first
        `COVARIANCE_IMAGES` of which give the covariances.
    batch_size, progress, quantizer
        As for `measure_layers`.

    Returns
    -------
    list of LayerMeasurement
    """
    measured = measure_layers(network, x, batch_size, progress, quantizer)
    model = _keras_model(network, x)
    by_name = {layer.name: layer for layer in measured}
    _measure_permuted(model, by_name, x[:PERMUTED_IMAGES], batch_size, progress)
    _measure_textured(model, by_name, x[:PERMUTED_IMAGES], batch_size, progress)
    x_train = x_train[:COVARIANCE_IMAGES]
    _measure_covariances(model, by_name, x_train, quantizer, batch_size, progress)
    return measured


def layer_weights(
    network: BinaryNeuralNetwork,
    quantizer: Quantizer = Sign(),  # noqa: B008
) -> list[LayerMeasurement]:
    """A `LayerMeasurement` of every layer of a `BinaryNeuralNetwork`, of its weights only."""
    x = np.zeros((1, *network.in_dim), np.uint8)
    return _probed(network.model, x, quantizer, _stand_ins(network))[0]


def momentum_of(network: BinaryNeuralNetwork) -> dict[str, np.ndarray]:
    """−m of a network whose training kept averages of gradients, an array by its layer's name.

    Where there are no latent weights, as with Bop, it is what comes closest: latent weights under
    plain gradient descent are −1 times a sum of gradients.
    """
    return {name: -average for name, average in network.gradient_averages.items()}


def _stand_ins(network):
    own = isinstance(network, BinaryNeuralNetwork)
    return momentum_of(network) if own and network.training_params.optimizer == "bop" else {}


def _keras_model(model, x):
    return model.model_for(x) if isinstance(model, BinaryNeuralNetwork) else model


def _visit_batches(model, x, size, visitor, description=None, progress=False):
    for _, images, counted in _batches(x, size, description, progress):
        walk.visit(model, images, visitor, counted=counted)


def _batches(x, size, description, progress):
    """The number of the first image of each batch, the batch, and whether to count its products."""
    with tqdm(total=len(x), desc=description, unit="image", disable=not progress) as bar:
        for start in range(0, len(x), size):
            images = x[start : start + size]
            yield start, images, len(images) == size and len(x) >= COUNTED_BATCHES * size
            bar.update(len(images))


def _probed(model, x, quantizer, latent):
    """Every layer's weights, and how many floats its activations take, from a single image."""
    first, measured, floats = walk.first_products(model, x), {}, 0

    def look(product):
        nonlocal floats
        outputs = math.prod(_quantized_products(product, quantizer).shape)
        floats += math.prod(product.inputs.shape) + outputs
        if product.name not in measured:
            measured[product.name] = _weights_of(
                product, quantizer, product.name in first, latent.get(product.name)
            )
            measured[product.name].positions = 0
        result = measured[product.name]
        result.positions += outputs // result.wc.shape[-1]

    walk.visit(model, x[:1], look)
    return list(measured.values()), floats


def _weights_of(product, quantizer, first, latent):
    own = product.kernel_quantizer
    wc = keras.ops.convert_to_numpy(product.kernel if latent is None else latent)
    # In another basis the kernel itself is no longer of −1, 0 and 1.
    plain = not isinstance(product.layer, RotatedConv2D)
    return LayerMeasurement(
        name=product.name,
        fan_in=wc[..., 0].size,
        window=product.window,
        first=first,
        wc=wc,
        wb=keras.ops.convert_to_numpy(_quantized_kernel(product, quantizer)),
        threshold=float(own.threshold(wc)) if isinstance(own, Ternary) else 0.0,
        quantized=own is not None,
        quantized_input=product.input_quantizer not in (None, Clip()),
        weight_bits=own.bits if own is not None and plain else 32,
    )


def _quantized_kernel(product, quantizer):
    if product.kernel_quantizer is None:
        return quantizer(product.kernel)
    return product.quantized_kernel


def _quantized_products(product, quantizer):
    """A^b·w^b, which the layer itself may have returned."""
    if product.outputs is not None and product.kernel_quantizer is not None:
        return product.outputs
    return product.dot(product.quantized_inputs, _quantized_kernel(product, quantizer))


def _pairs(product, quantizer, wc):
    """The names of a product's pairs of dot products, with the pairs themselves."""
    inputs, unquantized = product.quantized_inputs, product.inputs
    wb = _quantized_kernel(product, quantizer)
    quantized = np.asarray(_quantized_products(product, quantizer))
    yield "weights_dot", (_dot(product, inputs, wc), quantized)
    if product.input_quantizer is not None:
        yield "activations_dot", (_dot(product, unquantized, wb), quantized)
        yield "entries", tuple(map(np.asarray, (unquantized, inputs)))


def _dot(product, inputs, kernel):
    return np.asarray(product.dot(inputs, kernel))


# --- Permuted, textured, covariances ----------------------------------------------------------


def _measure_permuted(model, measured, x, batch_size, progress):
    """One product at a time, as the permutation takes all its inputs at once."""
    stores, products = {}, {}

    def collect(product):
        inputs = np.asarray(product.quantized_inputs)
        stores.setdefault(product.name, Store()).append(inputs)
        products.setdefault(product.name, product)

    _visit_batches(model, x, batch_size, collect, "activations", progress)
    rng = np.random.default_rng(0)
    for name, result in tqdm(measured.items(), desc="permuted", disable=not progress):
        inputs = stores.pop(name).joined()
        permuted = rng.permutation(inputs.ravel()).reshape(inputs.shape)
        result.permuted = _permuted_pairs(products[name], result, permuted, batch_size)


def _permuted_pairs(product, result, inputs, batch_size):
    def pair(rows):
        rows = rows if rows.dtype == np.uint8 else rows.astype(np.float32)
        return _dot(product, rows, result.wc), _dot(product, rows, result.wb)

    pilot = _Pilot(*pair(inputs[:PILOT_IMAGES]))
    pilot.update(*pair(inputs[:PILOT_IMAGES]))
    counter = _PairCounter(pilot, result.window.border if result.window else 0)
    for start in range(0, len(inputs), batch_size):
        counter.update(*pair(inputs[start : start + batch_size]))
    return counter.result()


def _measure_textured(model, measured, x, batch_size, progress):
    statistics = {
        name: [geometry.DotProductStatistics(n) for n in result.wb.shape[-2:]]
        for name, result in measured.items()
        if result.quantized_input and result.window and result.window.is_plain
    }
    positions = dict.fromkeys(statistics, 0)

    def count(product):
        if product.name not in statistics:
            return
        kept = _changes(product.inputs, product.window.size)
        pairs = (product.inputs, product.quantized_inputs)
        entries = map(np.asarray, pairs)
        dots = (_dot(product, values, product.quantized_kernel) for values in pairs)
        for pair, (c, b) in zip(statistics[product.name], (entries, dots), strict=True):
            pair.update(c[kept], b[kept])
        positions[product.name] += kept.size

    _visit_batches(model, x, batch_size, count, "textured", progress)
    for name, (entries, dots) in statistics.items():
        share = entries.count / positions[name]
        values = [share, entries.correlation(), dots.correlation()]
        measured[name].textured = np.array(values)


def _changes(x, size):
    """Where the patch about a position is not the same all over, shape (images, height, width)."""
    highest, lowest = (
        sign * keras.ops.max_pool(sign * x, size, strides=1, padding="same") for sign in (1, -1)
    )
    # Equal patches may differ by rounding.
    return np.asarray(keras.ops.max(highest - lowest, axis=-1) > 1e-3)


def _measure_covariances(model, measured, x, quantizer, batch_size, progress):
    covariances, kernels = {}, {}

    def collect(first, product):
        inputs = scaled(np.asarray(product.quantized_inputs))
        result = measured[product.name]
        if result.fan_in > WIDEST_COVARIANCE or not (
            product.window or inputs.shape[-1] == result.fan_in
        ):
            return
        if product.name not in covariances:
            covariances[product.name] = geometry.PatchCovariance(result.fan_in)
            applied = getattr(product.layer, "kernel_of", lambda kernel: kernel)
            both = result.wc, _quantized_kernel(product, quantizer)
            kernels[product.name] = tuple(map(applied, both))
        covariances[product.name].update(sampled_patches(inputs, product.window, first))

    for first, images, counted in _batches(x, batch_size, "covariances", progress):
        walk.visit(model, images, functools.partial(collect, first), counted=counted)
    for name in tqdm(list(covariances), desc="spectra", disable=not progress):
        # A wide layer's takes 170 MB, and each copy as much again: none is kept for longer.
        covariance, result = covariances.pop(name).covariance, measured[name]
        result.predicted_r = geometry.predicted_correlation(*kernels[name], covariance)
        result.spectrum = geometry.variance_spectrum(covariance)[0]
        if result.first:
            axis = geometry.principal_axes(covariance)[0]
            covariance -= result.spectrum[0] * np.outer(axis, axis)
            result.deflated_r = geometry.predicted_correlation(*kernels[name], covariance)


def sampled_patches(x: np.ndarray, window: walk.Window | None, first: int) -> np.ndarray:
    """Patches of each image at random positions.

    Parameters
    ----------
    x : ndarray, shape (images, height, width, channels)
        Without a window, shape (..., d): each row is a patch.
    window : walk.Window or None
    first : int
        Number of the first image: an image's positions follow from its number, and do not depend
        on the batch.

    Returns
    -------
    ndarray, shape (images, positions, size·size·channels)
    """
    if window is None:
        return x.reshape(-1, x.shape[-1])
    count, *sizes, _ = x.shape
    lengths, padding = zip(*window.outputs_and_padding(sizes), strict=True)
    positions = np.stack(
        [
            np.random.default_rng(number).random((2, COVARIANCE_POSITIONS))
            for number in range(first, first + count)
        ],
        axis=1,
    )
    row, column = (
        (place * length).astype(int)[:, :, None, None] * stride
        for place, length, stride in zip(positions, lengths, window.strides, strict=True)
    )
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    taps = [np.arange(size) * rate for size, rate in zip(window.size, window.dilation, strict=True)]
    image = np.arange(count)[:, None, None, None]
    patches = padded[image, row + taps[0][:, None], column + taps[1]]
    return patches.reshape(count, COVARIANCE_POSITIONS, -1)


# --- Tables -----------------------------------------------------------------------------------


def format_table(measured: Sequence[LayerMeasurement]) -> str:
    """The layers' geometry and cost as two plain-text tables, angles in degrees."""
    return f"{_geometry_table(measured)}\n\n{cost_table(measured)}"


def _geometry_table(measured):
    rows = [
        (
            layer.name,
            layer.fan_in,
            _spread(np.nanmean(layer.angles), np.nanstd(layer.angles)),
            _spread(*layer.theory),
            f"{layer.weights_dot.r:.3f}",
            f"{geometry.saturated_share(layer.wc):.2%}",
        )
        for layer in measured
    ]
    return _table(("layer", "d", "angle(wc, wb)", "Gaussian theory", "r", "|w| = 1"), rows)


def cost_table(measured: Sequence[LayerMeasurement]) -> str:
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
    bits = 2 if any(layer.weight_bits == 2 for layer in measured) else 1
    kinds = (f"{kind} multiply-adds" for kind in (f"{bits}-bit", "float"))
    names = (*(layer.name for layer in measured), "sum")
    named = zip(names, (*rows, np.sum(rows, axis=0)), strict=True)
    rows = [(name, *(f"{figure:,}" for figure in figures)) for name, figures in named]
    return _table(("layer", "weights", *kinds, "float32 bytes", "packed bytes"), rows)


def _table(head, rows):
    align = ("left", *("right",) * (len(head) - 1))
    return tabulate(rows, head, "plain", colalign=align, disable_numparse=True)


def _spread(mean, deviation):
    mean, deviation = np.degrees((mean, deviation))
    return f"{mean:.2f}°" if np.isnan(deviation) else f"{mean:.2f}° ± {deviation:.2f}°"
