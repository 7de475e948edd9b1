"""θ: quantizers with their straight-through gradient, as functions, as objects and by name.

θ has no useful derivative, so gradients pass *straight through* it where |x| ≤ 1 (Hubara et al.
2016, arXiv 1602.02830). `graph_ops` passes all public names on; quantizers of one's own go into
`quantizers.py`.
"""

import functools
import math
from collections.abc import Callable
from typing import Self

import geometry
import utils
from fast import compiled

# isort: split
import keras
import numpy as np
import tensorflow as tf

register = keras.saving.register_keras_serializable("bnn")


# --- Quantizing functions ---------------------------------------------------------------------


@compiled
def _sign(x):
    return tf.where(x >= 0, tf.ones_like(x), -tf.ones_like(x))


@compiled
def _ternary_sign(x, threshold):
    return tf.cast(x > threshold, x.dtype) - tf.cast(x < -threshold, x.dtype)


@compiled
def _where_passed(x, upstream, limit):
    return tf.where(tf.abs(x) <= limit, upstream, tf.zeros_like(upstream))


def straight_through(
    x: tf.Tensor, quantized: tf.Tensor, limit: float | tf.Tensor = 1.0
) -> tf.Tensor:
    """Return `quantized` with the straight-through gradient with respect to `x`.

    Parameters
    ----------
    x : tensor
        What was quantized.
    quantized : tensor
        Its quantized form, of the same shape.
    limit : float or tensor that broadcasts to `x`
        Where the gradient ends.

    Returns
    -------
    tensor
        `quantized`; the gradient with respect to `x` is the upstream gradient where |x| ≤ limit
        and zero elsewhere. The end points belong to the pass band: latent weights are clipped to
        [−1, 1], and a weight at ±1 must be able to come back.
    """

    @tf.custom_gradient
    def forward(x):
        bound = tf.cast(limit, x.dtype)
        return tf.stop_gradient(quantized), lambda upstream: _where_passed(x, upstream, bound)

    return forward(x)


@register
def binarize(x: tf.types.experimental.TensorLike, threshold: float | tf.Tensor = 0.0) -> tf.Tensor:
    """Sign with sign(0) = +1, so that one bit can hold it.

    Parameters
    ----------
    x : tensor
    threshold : float
        Not used: all quantizing functions have the same signature.

    Returns
    -------
    tensor
        −1 where x < 0, else +1, in the shape and dtype of `x`. Gradient: see `straight_through`.
    """
    del threshold
    x = tf.convert_to_tensor(x)
    return straight_through(x, _sign(x))


def ternarize(x: tf.types.experimental.TensorLike, threshold: float | tf.Tensor) -> tf.Tensor:
    """sign(x)·[|x| > threshold], with the straight-through gradient.

    Parameters
    ----------
    x : tensor
    threshold : float or scalar tensor
        No gradient flows through it.

    Returns
    -------
    tensor
        −1, 0 or +1, in the shape and dtype of `x`. Gradient: see `straight_through`.
    """
    x = tf.convert_to_tensor(x)
    threshold = tf.cast(threshold, x.dtype)
    return straight_through(x, _ternary_sign(x, threshold))


@register
def clip(x: tf.types.experimental.TensorLike, threshold: float | tf.Tensor = 0.0) -> tf.Tensor:
    """clip(x, −1, 1), the function whose gradient the straight-through sign borrows."""
    del threshold
    return tf.clip_by_value(x, -1, 1)


# --- Quantizers -------------------------------------------------------------------------------


class Quantizer:
    """θ: what a layer does to its inputs, or to its latent weights, before it multiplies them.

    A quantizer is called on a tensor, returns one of the same shape and dtype, and has the
    straight-through gradient. Keras saves it with the layer that holds it. Two quantizers of one
    type with equal parameters are equal.

    Attributes
    ----------
    levels : int or None
        Number of different values of one unit, where it is fixed.
    bits : int
        Bits that hold one value; 32 where it stays a float.
    """

    levels = None
    bits = 32

    def __call__(self, x):
        raise NotImplementedError

    def threshold(self, x: tf.Tensor | np.ndarray) -> float | tf.Tensor:
        """The smallest |x| at which the quantizer leaves zero, for the tensor `x`: 0 for a sign."""
        del x
        return 0.0

    @property
    def follows_data(self) -> bool:
        """Does the result for one entry depend on the other entries of the tensor?"""
        return False

    def get_config(self) -> dict:
        """The parameters, as Keras saves them."""
        return {}

    @classmethod
    def from_config(cls, config: dict) -> Self:
        return cls(**config)

    def __eq__(self, other):
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self):
        return hash((type(self), tuple(sorted(self.get_config().items()))))

    def __repr__(self):
        parameters = (f"{k}={v!r}" for k, v in self.get_config().items() if v is not None)
        return f"{type(self).__name__}({', '.join(parameters)})"


@register
class Sign(Quantizer):
    """`binarize`: −1 or +1."""

    levels, bits = 2, 1

    def __call__(self, x):
        return binarize(x)


@register
class Clip(Quantizer):
    """`clip` to [−1, 1]: what an activation that is not quantized goes through."""

    def __call__(self, x):
        return clip(x)


class _Thresholded(Quantizer):
    """A quantizer with a threshold, absolute or in standard deviations.

    Parameters
    ----------
    threshold : float, optional
    sigma : float, optional
        The threshold in standard deviations of all entries of the tensor.

    Raises
    ------
    ValueError
        If both are given, or one is negative.
    """

    def __init__(self, threshold: float | None = None, sigma: float | None = None):
        utils.require(
            threshold is None or sigma is None, "threshold and sigma exclude each other: give one"
        )
        for name, value in (("threshold", threshold), ("sigma", sigma)):
            utils.require(
                value is None or (math.isfinite(value) and value >= 0),
                f"{name} must be a number of at least 0, not {value}",
            )
        self._threshold = None if threshold is None else float(threshold)
        self._sigma = None if sigma is None else float(sigma)

    @property
    def follows_data(self) -> bool:
        return self._sigma is not None

    def threshold(self, x: tf.Tensor | np.ndarray) -> float | tf.Tensor:
        if self._sigma is None:
            return self._threshold
        return self._sigma * tf.stop_gradient(tf.math.reduce_std(x))

    def get_config(self) -> dict:
        return {"threshold": self._threshold, "sigma": self._sigma}


@register
class Ternary(_Thresholded):
    """`ternarize`: −1, 0 or +1.

    Parameters
    ----------
    threshold : float, optional
        By default the paper's 0.02, unless `sigma` is given.
    sigma : float, optional
        Instead: the threshold in standard deviations of the tensor, taken anew in every step. The
        angle of Gaussian weights is least at 0.612.
    """

    levels, bits = 3, 2

    def __init__(self, threshold: float | None = None, sigma: float | None = None):
        super().__init__(0.02 if threshold is None and sigma is None else threshold, sigma)

    def __call__(self, x):
        x = tf.convert_to_tensor(x)
        return ternarize(x, self.threshold(x))


@register
class Registered(_Thresholded):
    """A function that `register_quantizer` made known, as a quantizer.

    Parameters
    ----------
    name : str
    threshold, sigma : float, optional
        What the function is given as its threshold, 0 by default; see `Ternary`.
    """

    def __init__(self, name: str, threshold: float | None = None, sigma: float | None = None):
        super().__init__(0.0 if threshold is None and sigma is None else threshold, sigma)
        self.name = name
        _check_function(name, _function_named(name))

    def __call__(self, x):
        x = tf.convert_to_tensor(x)
        return _function_named(self.name)(x, self.threshold(x))

    def threshold(self, x: tf.Tensor | np.ndarray) -> float | tf.Tensor:
        return super().threshold(x) if self._sigma or self._threshold else 0.0

    def get_config(self) -> dict:
        return {"name": self.name, **super().get_config()}


class _Scaled(Quantizer):
    """A quantizer whose values are multiples of a scale.

    Parameters
    ----------
    scale : float, optional
        By default it is taken from the tensor.
    per_unit : bool
        Is it taken from the entries of each output unit (last axis) alone, or from all of them?
    """

    def __init__(self, scale: float | None = None, per_unit: bool = True):
        utils.require(
            scale is None or (math.isfinite(scale) and scale > 0),
            f"scale must be a number above 0, not {scale}",
        )
        self._scale, self._per_unit = scale, bool(per_unit)

    @property
    def follows_data(self) -> bool:
        return self._scale is None

    def scale(self, x: tf.Tensor | np.ndarray) -> tf.Tensor:
        """The scale for a tensor, float32, shaped to broadcast to it."""
        if self._scale is not None:
            return tf.constant(self._scale, tf.float32)
        axes = list(range(len(x.shape) - 1)) if self._per_unit else None
        scale = tf.stop_gradient(self._measured_scale(tf.cast(x, tf.float32), axes))
        return tf.where(scale > 0, scale, tf.ones_like(scale))

    def _measured_scale(self, x, axes):
        raise NotImplementedError

    def get_config(self) -> dict:
        return {"scale": self._scale, "per_unit": self._per_unit}


@register
class Uniform(_Scaled):
    """Round to one of 2^bits − 1 evenly spaced values from −scale to +scale, zero among them.

    With n = 2^(bits − 1) − 1 the value is round(n·x/scale)·scale/n, clipped to ±scale. Gradients
    pass where |x| ≤ scale.

    Parameters
    ----------
    bits : int
        From 2 to 16.
    scale : float, optional
        By default the largest |x|.
    per_unit : bool
        Of each output unit (last axis), or of the whole tensor?
    """

    def __init__(self, bits: int, scale: float | None = None, per_unit: bool = True):
        super().__init__(scale, per_unit)
        utils.require(
            utils.is_whole(bits) and 2 <= bits <= 16,
            f"bits must be a whole number from 2 to 16, not {bits!r}",
        )
        self.bits, self.levels = int(bits), 2**bits - 1

    def __call__(self, x):
        x = tf.convert_to_tensor(x)
        scale, steps = self.scale(x), self.levels // 2
        values = tf.round(tf.cast(x, tf.float32) / scale * steps)
        values = tf.clip_by_value(values, -steps, steps) * (scale / steps)
        return straight_through(x, tf.cast(values, x.dtype), scale)

    def threshold(self, x: tf.Tensor | np.ndarray) -> tf.Tensor:
        """Half a step, shaped as `scale`."""
        return self.scale(x) / (2 * (self.levels // 2))

    def _measured_scale(self, x, axes):
        return tf.reduce_max(tf.abs(x), axes, keepdims=True)

    def get_config(self) -> dict:
        return {"bits": self.bits, **super().get_config()}


@register
class LloydMax(_Scaled):
    """The quantizer of that many levels that is nearest to Gaussian entries in mean square.

    Parameters
    ----------
    levels : int
        From 2 to 256. Two are the sign times 0.798·scale, three a ternary form with the threshold
        0.612·scale.
    scale : float, optional
        The Gaussian's standard deviation, by default the root mean square.
    per_unit : bool
        Of each output unit (last axis), or of the whole tensor?

    Notes
    -----
    Gradients pass up to the outermost value or to 1, whichever is more.

    References
    ----------
    S. P. Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28 (1982).
    J. Max, "Quantizing for minimum distortion", IRE Trans. Inf. Theory 6 (1960).
    """

    def __init__(self, levels: int, scale: float | None = None, per_unit: bool = True):
        super().__init__(scale, per_unit)
        utils.require(
            utils.is_whole(levels) and 2 <= levels <= 256,
            f"levels must be a whole number from 2 to 256, not {levels!r}",
        )
        self.levels = int(levels)
        self.bits = math.ceil(math.log2(levels))
        self._boundaries, self._values = geometry.lloyd_max(self.levels)

    def __call__(self, x):
        x = tf.convert_to_tensor(x)
        scale = self.scale(x)
        cells = tf.raw_ops.Bucketize(
            input=tf.cast(x, tf.float32) / scale, boundaries=list(map(float, self._boundaries))
        )
        values = tf.gather(tf.constant(self._values, tf.float32), cells) * scale
        limit = tf.maximum(float(self._values[-1]) * scale, 1.0)
        return straight_through(x, tf.cast(values, x.dtype), limit)

    def threshold(self, x: tf.Tensor | np.ndarray) -> float | tf.Tensor:
        """The boundary between zero and its neighbours, shaped as `scale`."""
        if self.levels % 2 == 0:
            return 0.0
        return float(self._boundaries[self.levels // 2]) * self.scale(x)

    def _measured_scale(self, x, axes):
        return tf.sqrt(tf.reduce_mean(tf.square(x), axes, keepdims=True))

    def get_config(self) -> dict:
        return {"levels": self.levels, **super().get_config()}


# --- Quantizers by name -----------------------------------------------------------------------

# The functions f(x, threshold) that have a name.
QUANTIZERS = {"binary": binarize, "ternary": ternarize, "clip": clip}
_BUILT_IN = {"binary": Sign, "sign": Sign, "ternary": Ternary, "clip": Clip}
# Which quantizer the activations have where the weights have this one.
_ACTIVATION_QUANTIZERS = {}


def register_quantizer(name: str, activations: str | None = None) -> Callable[[Callable], Callable]:
    """Decorator that makes a function known as the quantizer `name`.

    Parameters
    ----------
    name : str
        Networks are saved and opened with it.
    activations : str, optional
        Name of the quantizer of the activations of a network whose weights use this one; by
        default they use this one, too.

    Returns
    -------
    callable
        Takes f(x, threshold), which returns a tensor like x, and returns it.

    Raises
    ------
    ValueError
        If the name is taken, or there is no quantizer `activations`.
    """
    utils.require(
        name not in (*QUANTIZERS, *_BUILT_IN),
        f"there is a quantizer {name!r} already: choose another name",
    )
    if activations is not None:
        _function_named(activations)

    def register_function(function):
        QUANTIZERS[name] = function
        _ACTIVATION_QUANTIZERS[name] = activations or name
        return function

    return register_function


def _function_named(name):
    utils.require(
        name in QUANTIZERS, f"no quantizer named {name!r}; known are {', '.join(QUANTIZERS)}"
    )
    return QUANTIZERS[name]


@functools.cache
def _check_function(name, function):
    """Raise ValueError if a quantizing function cannot be trained with; its own errors stay."""
    x = tf.reshape(tf.linspace(-1.5, 1.5, 64), [8, 8])
    with tf.GradientTape() as tape:
        tape.watch(x)
        try:
            y = tf.convert_to_tensor(function(x, 0.0))
        except Exception as error:  # Its file and line matter to the one who wrote it.
            raise RuntimeError(f"the quantizer {name!r} failed") from error
    gradient = tape.gradient(y, x) if y.dtype.is_floating else None
    what = f"the quantizer {name!r} returns"
    utils.require(y.shape == x.shape, f"{what} the shape {y.shape} for {x.shape}")
    utils.require(y.dtype == x.dtype, f"{what} {y.dtype.name} for {x.dtype.name}")
    utils.require(bool(tf.reduce_all(tf.math.is_finite(y))), f"{what} NaN or infinity")
    utils.require(
        gradient is not None and bool(tf.reduce_any(gradient != 0)),
        f"the quantizer {name!r} has no gradient: graph_ops.straight_through gives it one",
    )


def activation_quantizer_of(name: str) -> str:
    """Name of the quantizer of activations that goes with the quantizer `name` of weights."""
    return _ACTIVATION_QUANTIZERS.get(name, name)


def get_quantizer(
    identifier: Quantizer | str | dict | None, **thresholds: float | None
) -> Quantizer | None:
    """A quantizer from what a layer is given.

    Parameters
    ----------
    identifier : Quantizer, str, dict or None
        A quantizer; the name of one ('sign', 'ternary', 'clip' or a registered one); what Keras
        saved of one; or None, which stays None.
    thresholds
        `threshold` or `sigma`, for a quantizer that is named and has one.

    Returns
    -------
    Quantizer or None

    Raises
    ------
    ValueError
        If it is none of these.
    """
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if identifier is None or isinstance(identifier, Quantizer):
        return identifier
    if isinstance(identifier, str):
        if identifier == "ternary":
            return Ternary(**thresholds)
        if identifier in _BUILT_IN:
            return _BUILT_IN[identifier]()
        return Registered(identifier, **thresholds)
    raise ValueError(f"a quantizer is Sign(), Ternary(), … or a name, not {identifier!r}")


def quantizer_curve(
    quantizer: Quantizer | str, x: tf.types.experimental.TensorLike, threshold: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Values of a quantizer, and the gradient that training sees in their place.

    Parameters
    ----------
    quantizer : Quantizer or str
    x : array_like, shape (n,)
    threshold : float, optional
        Of a quantizer that is named.

    Returns
    -------
    forward, gradient : ndarray, shape (n,)
    """
    quantizer = get_quantizer(quantizer, threshold=threshold)
    x = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        forward = quantizer(x)
    return forward.numpy(), tape.gradient(forward, x).numpy()
