"""What quantizing one layer of a model does: to its weights, its dot products, the accuracy.

`weights_of` and `inputs_of` need no labels; `Scores` measures accuracies with one layer changed.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import geometry
import walk
from graph_ops import LloydMax, Uniform
from products import Kernel
from survey_inputs import Site, fitted
from utils import require

# isort: split
import keras
import numpy as np
import tensorflow as tf
from scipy.optimize import brentq
from scipy.sparse.linalg import eigsh
from scipy.stats import norm
from tqdm import tqdm

# Images on which batch norm's statistics are re-estimated.
REFIT_IMAGES = 500
TENSOR = "_per_tensor"
BITS = (2, 3, 4, 8)
# Every quantizer at a scale of its own: sign and the ternary quantizer, whose threshold is 0.612
# standard deviations, are Lloyd and Max's of two and three levels.
KINDS = {
    "sign": lambda **scale: LloydMax(2, **scale),
    "ternary": lambda **scale: LloydMax(3, **scale),
    **{f"lloyd_max_{b}": lambda b=b, **scale: LloydMax(2**b, **scale) for b in BITS},
    **{f"uniform_{b}": lambda b=b, **scale: Uniform(b, **scale) for b in BITS},
}
NAMES = (*KINDS, *(kind + TENSOR for kind in KINDS))


def quantizer_named(name: str) -> LloydMax | Uniform:
    """The quantizer of a name in `NAMES`, with a scale per unit unless the name says per tensor.

    Raises
    ------
    ValueError
        If there is none.
    """
    kind = name.removesuffix(TENSOR)
    require(kind in KINDS, f"there is no quantizer {name!r}; known are {', '.join(NAMES)}")
    return KINDS[kind](per_unit=not name.endswith(TENSOR))


def known(names: Iterable[str] | None) -> list[str]:
    """`names` as a list, or all; ValueError if it is empty or one of them is no quantizer."""
    names = list(NAMES if names is None else names)
    require(names, "name at least one quantizer")
    for name in names:
        quantizer_named(name)
    return names


def packed_bytes(site: Site, quantizer: LloydMax | Uniform | None) -> int:
    """What a layer's kernel takes in the bits of a quantizer, with its scales, or as float32."""
    weights = site.fan_in * site.units
    if quantizer is None:
        return 4 * weights
    scales = site.units if quantizer.get_config()["per_unit"] else 1
    return math.ceil(weights * quantizer.bits / 8) + 4 * scales


# --- Geometry ---------------------------------------------------------------------------------


def theory(quantizer: LloydMax | Uniform, fan_in: int, ratio: float) -> float:
    """Angle in radians that Gaussian weights have with their quantized form.

    Parameters
    ----------
    quantizer : LloydMax or Uniform
    fan_in : int
        Of the unit; only the sign's formula depends on it.
    ratio : float
        Scale over root mean square, which the uniform quantizer's formula takes.
    """
    if isinstance(quantizer, LloydMax):
        if quantizer.levels == 2:
            return float(geometry.angle_moments(fan_in)[0])
        return float(np.arccos(geometry.quantizer_cosine(quantizer.levels)))
    # The scale is the largest weight: none lies beyond it.
    limit = _truncation(ratio)
    steps = quantizer.levels // 2
    values = np.arange(-steps, steps + 1) * (limit / steps)
    edges = np.concatenate(([-limit], (values[1:] + values[:-1]) / 2, [limit]))
    mass, along = np.diff(norm.cdf(edges)), -np.diff(norm.pdf(edges))
    power = np.sum(mass * values**2) * (mass.sum() - 2 * limit * norm.pdf(limit))
    return float(np.arccos(min(np.sum(values * along) / np.sqrt(power), 1)))


def _truncation(ratio):
    """Where a Gaussian is cut off whose largest entry is `ratio` times its root mean square."""

    def excess(limit):
        mass = 2 * norm.cdf(limit) - 1
        return limit / np.sqrt(1 - 2 * limit * norm.pdf(limit) / mass) - ratio

    # Cut off close to zero it is uniform, where the ratio is √3.
    return brentq(excess, 0.02, ratio) if ratio > 1.74 else 0.02


def compared(exact: np.ndarray, quantized: np.ndarray) -> dict[str, float]:
    """Mean angle in degrees of rows with their quantized forms, and the SQNR of all in decibels.

    A row that has become zero is at right angles; one that was zero is left out.
    """
    error = exact - quantized
    power, noise, along = (
        np.einsum("ij,ij->i", *pair, dtype=np.float64)
        for pair in ((exact, exact), (error, error), (exact, error))
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        across = np.sqrt(np.maximum(noise - along**2 / power, 0))
        angles = np.arctan2(across, (power - along) / np.sqrt(power))
        angles = np.where((power > 0) & ~quantized.any(axis=1), np.pi / 2, angles)
        sqnr = 10 * np.log10(power.sum() / noise.sum())
    return {"angle_deg": math.degrees(_mean(angles)), "sqnr_db": float(sqnr)}


def unit_r(x: np.ndarray, y: np.ndarray) -> float:
    """Mean over units of the correlation of dot products, arrays of shape (groups, rows, units)."""
    x, y = (v.transpose(1, 0, 2).reshape(v.shape[1], -1) for v in (x, y))
    statistics = geometry.DotProductStatistics(x.shape[1]).update(x, y)
    r, (xx, yy, _) = statistics.unit_correlations(), statistics.comoments
    # Where quantizing has left nothing that varies, nothing of the unit is left.
    return _mean(np.where((xx > 0) & (yy == 0), 0, r))


def _mean(values):
    values = np.asarray(values)[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def first_axis(site: Site) -> float:
    """Share of the variance of a layer's inputs along their first principal axis."""
    rows = site.patches[site.halves()[0]].transpose(1, 0, 2)
    rows = rows - rows.mean(axis=1, keepdims=True)
    turned = rows.transpose(0, 2, 1)
    # Both products have the same eigenvalues, but for zeros.
    smaller = turned @ rows if rows.shape[2] <= rows.shape[1] else rows @ turned
    start = np.random.default_rng(0).standard_normal(smaller.shape[1])
    shares = [
        _largest(one.astype(np.float64), start) / (np.trace(one) or np.nan) for one in smaller
    ]
    return _mean(shares)


def _largest(matrix, start):
    """The largest eigenvalue of a symmetric matrix."""
    if len(matrix) <= 64:
        return np.linalg.eigvalsh(matrix)[-1]
    return eigsh(matrix, 1, v0=start, return_eigenvectors=False, tol=1e-6)[0]


def geometry_of(site: Site, names: Sequence[str]) -> dict:
    """Everything about one layer that needs no labels: its entry in survey.json."""
    inputs, left_out = inputs_of(site, names)
    kurtosis = geometry.unit_kurtosis(site.rows_of(site.kernel.columns()).T)
    return {
        "name": site.name,
        "type": type(site.layer).__name__,
        "fan_in": site.fan_in,
        "units": site.units,
        "weights": site.fan_in * site.units,
        "patches": len(site.patches),
        "kurtosis": _mean(kurtosis),
        "first_axis": first_axis(site),
        "quantizers": weights_of(site, names),
        "inputs": inputs,
        "left_out": {f"inputs, {kind}": why for kind, why in left_out.items()},
    }


def weights_of(site: Site, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Angles, r and SQNR of one layer's weights under each quantizer.

    Parameters
    ----------
    site : survey_inputs.Site
        With its patches.
    names : sequence of str
        Quantizers.

    Returns
    -------
    dict
        By quantizer: angle_deg, theory_deg, bound_deg (the least that a code of as many bits can
        reach on Gaussian weights), sqnr_db, r over the patches of odd images and predicted_r from
        the covariance of the patches of even images, both means over units, and bytes.
    """
    wc = tf.cast(site.kernel.columns(), tf.float32)
    exact = site.rows_of(wc)
    # wᵇᵀCwᶜ is the covariance of the two dot products over the patches that C is of: C itself, of
    # fan-in squared numbers, need not be formed.
    halves = [site.patches[half].transpose(1, 0, 2) for half in site.halves()]
    dots = [half @ site.grouped(wc) for half in halves]
    rms = np.sqrt(np.mean(np.square(exact), axis=1))
    found = {}
    for name in names:
        quantizer = quantizer_named(name)
        wq = quantizer(wc)
        ratios = np.ravel(quantizer.scale(wc)) / np.where(rms > 0, rms, np.nan)
        predicted, r = (
            unit_r(dot, half @ site.grouped(wq)) for dot, half in zip(dots, halves, strict=True)
        )
        found[name] = {
            **compared(exact, site.rows_of(wq)),
            "theory_deg": math.degrees(theory(quantizer, site.fan_in, _mean(ratios))),
            "bound_deg": math.degrees(geometry.rate_distortion_angle(math.log2(quantizer.levels))),
            "predicted_r": predicted,
            "r": r,
            "bytes": packed_bytes(site, quantizer),
        }
    return found


def inputs_of(site: Site, names: Sequence[str]) -> tuple[dict[str, dict], dict[str, str]]:
    """The same of one layer's inputs: A^q·w against A·w; the scale is that of the whole tensor.

    Returns
    -------
    found : dict
        By quantizer: angle_deg of whole patches, theory_deg, sqnr_db, r, and the scale, which is
        that of the patches of even images.
    left_out : dict
        By quantizer the reason why it has no place in `found`.
    """
    kinds = list(dict.fromkeys(name.removesuffix(TENSOR) for name in names))
    if isinstance(site.layer, keras.layers.Embedding):
        return {}, dict.fromkeys(kinds, "its inputs are numbers of rows")
    even, odd = site.halves()
    calibration, rows, inside = site.patches[even], site.patches[odd], site.wide_mask(odd)
    largest = float(np.abs(calibration).max())
    if largest == 0:
        return {}, dict.fromkeys(kinds, "its inputs are zero")
    # Zero padding adds nothing to the sum.
    rms = math.sqrt(np.mean(np.square(calibration, dtype=np.float64)) / site.mask[even].mean())
    kernel = site.grouped(site.kernel.columns())
    exact = rows.transpose(1, 0, 2) @ kernel
    found, left_out = {}, {}
    for kind in kinds:
        scale = largest if kind.startswith("uniform") else rms
        quantizer = KINDS[kind](scale=scale)
        if quantizer.levels == 2 and calibration.min() >= 0:
            left_out[kind] = "its inputs are never negative: their sign says nothing"
            continue
        # Zero padding comes after the quantizer: it stays zero.
        quantized = quantizer(tf.constant(rows)).numpy() * inside
        found[kind] = {
            **compared(*(v.reshape(-1, site.fan_in) for v in (rows, quantized))),
            "theory_deg": math.degrees(theory(quantizer, site.fan_in, scale / rms)),
            "r": unit_r(exact, quantized.transpose(1, 0, 2) @ kernel),
            "scale": scale,
        }
    return found, left_out


# --- Accuracy ---------------------------------------------------------------------------------


@contextlib.contextmanager
def quantized_weights(sites: Sequence[Site], names: Iterable[str | None]) -> Iterator[None]:
    """Meanwhile each of the `sites` has the weights that its quantizer in `names` makes of them.

    None in place of a name leaves a layer as it is.
    """
    before = [site.kernel.variable.numpy() for site in sites]
    try:
        for site, name in zip(sites, names, strict=True):
            if name is not None:
                write_quantized(site.kernel, quantizer_named(name))
        yield
    finally:
        for site, weights in zip(sites, before, strict=True):
            site.kernel.variable.assign(weights)


def write_quantized(kernel: Kernel, quantizer: LloydMax | Uniform) -> None:
    """Put quantized weights in the place of a kernel."""
    kernel.variable.assign(kernel.in_place(quantizer(kernel.columns())))


class Scores:
    """The accuracy of a model, again and again, on the same images.

    Parameters
    ----------
    model : keras.Model
    x, y : ndarray
        `y` holds a class for each of the model's vectors of scores.
    batch : int
        Images at a time.

    Attributes
    ----------
    norms : list of keras.layers.BatchNormalization

    Raises
    ------
    ValueError
        If the labels do not match.
    """

    def __init__(self, model: keras.Model, x: np.ndarray, y: np.ndarray, batch: int):
        self.model, self.x, self.batch = model, x, batch
        y = np.asarray(y)
        if y.ndim > 1 and y.shape[-1] == 1:
            y = y[..., 0]
        require(len(y) == len(x), f"there are {len(y)} labels for {len(x)} images")
        require(np.issubdtype(y.dtype, np.integer), f"labels must be whole numbers, not {y.dtype}")
        outputs = fitted(lambda model, x: model(x, training=False), model, x[:1])
        require(tf.is_tensor(outputs), "the model has several outputs: accuracy needs one")
        classes = outputs.shape[-1]
        wanted = (len(x), *outputs.shape[1:-1])
        require(classes > 1, "the model has a single output: accuracy needs a score per class")
        require(
            y.shape == wanted, f"labels of shape {y.shape} for scores of shape {(*wanted, classes)}"
        )
        require(
            y.min() >= 0 and y.max() < classes,
            f"labels from {y.min()} to {y.max()} for {classes} classes",
        )
        self.y = y
        self.norms = [
            layer
            for layer in model._flatten_layers(include_self=False)
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        self._run = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
        self._refit = tf.function(self._run_and_refit)

    def accuracy(self, run: Callable[[tf.Tensor], tf.Tensor] | None = None) -> float:
        """Share of labels that have the highest score; `run` computes the scores of a batch."""
        run, right = run or self._run, 0
        for start in range(0, len(self.x), self.batch):
            part = slice(start, start + self.batch)
            scores = run(tf.convert_to_tensor(self.x[part])).numpy()
            right += np.count_nonzero(scores.argmax(axis=-1) == self.y[part])
        return float(right / self.y.size)

    @contextlib.contextmanager
    def refitted(self) -> Iterator[None]:
        """Meanwhile batch norm has the statistics of the network as it is now."""
        before = [[v.numpy() for v in (n.moving_mean, n.moving_variance)] for n in self.norms]
        try:
            self._refit(tf.convert_to_tensor(self.x[: min(REFIT_IMAGES, 5 * self.batch)]))
            yield
        finally:
            for layer, (mean, variance) in zip(self.norms, before, strict=True):
                layer.moving_mean.assign(mean)
                layer.moving_variance.assign(variance)

    def _run_and_refit(self, x):
        with contextlib.ExitStack() as stack:
            for norm in self.norms:
                take = functools.partial(_take_statistics, norm)
                stack.enter_context(walk.inputs_changed(norm, take))
            self.model(x, training=False)

    def add_accuracies(
        self,
        sites: Sequence[Site],
        layers: Sequence[dict],
        names: Sequence[str],
        progress: bool = False,
    ) -> None:
        """Add to the entries of survey.json the accuracies with that layer alone quantized."""
        pairs, base = list(zip(sites, layers, strict=True)), self.accuracy()
        for site, layer in tqdm(pairs, desc="accuracy", unit="layer", disable=not progress):
            for name in names:
                found = self.of_plan([site], [name])
                layer["quantizers"][name] |= found | {"lost": base - best(found)}
            why = inputs_obstacle(site)
            if layer["inputs"] and why:
                layer["left_out"]["accuracy with quantized inputs"] = why
            elif layer["inputs"]:
                scales = {kind: values["scale"] for kind, values in layer["inputs"].items()}
                for kind, accuracy in self.of_inputs(site, scales).items():
                    layer["inputs"][kind]["accuracy"] = accuracy

    def of_plan(self, sites: Sequence[Site], names: Iterable[str | None]) -> dict[str, float]:
        """Accuracy with the weights of `sites` quantized; also with batch norm refitted, if any."""
        with quantized_weights(sites, names):
            found = {"accuracy": self.accuracy()}
            if self.norms:
                with self.refitted():
                    found["refitted_accuracy"] = self.accuracy()
        return found

    def of_inputs(self, site: Site, scales: dict[str, float]) -> dict[str, float]:
        """Accuracies with one layer's inputs quantized, by kind; `scales` has a scale of each."""
        quantizers = [KINDS[kind](scale=scale) for kind, scale in scales.items()]

        # One graph for all kinds: to build a graph takes longer than to run it.
        @functools.partial(tf.function, reduce_retracing=True)
        def run(x, which):
            def change(inputs):
                inputs = tf.convert_to_tensor(inputs)
                return tf.switch_case(which, [functools.partial(q, inputs) for q in quantizers])

            with walk.inputs_changed(site.layer, change):
                return self.model(x, training=False)

        runs = (functools.partial(run, which=tf.constant(k)) for k in range(len(quantizers)))
        return {kind: self.accuracy(run) for kind, run in zip(scales, runs, strict=True)}


def _take_statistics(norm, x):
    """`x`, whose mean and variance batch norm now has: all images are in it."""
    axes = [axis for axis in range(len(x.shape)) if axis != norm.axis % len(x.shape)]
    mean, variance = tf.nn.moments(tf.cast(x, tf.float32), axes)
    norm.moving_mean.assign(mean)
    norm.moving_variance.assign(variance)
    return x


def best(accuracies: dict[str, float]) -> float:
    """The accuracy with batch norm re-estimated, where there is one, or the other."""
    return accuracies.get("refitted_accuracy", accuracies["accuracy"])


def inputs_obstacle(site: Site) -> str:
    """Why the inputs of this product alone cannot be quantized in a run, or an empty string."""
    if isinstance(site.layer, keras.layers.Embedding):
        return "its inputs are numbers of rows"
    if site.kernel.part == "recurrent_kernel":
        return "the state is used beside the product, too"
    if site.kernel.part == "pointwise_kernel":
        return "its inputs are inside of the layer"
    return ""
