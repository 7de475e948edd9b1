"""Quantizers, binary layers and everything else that is specific to TensorFlow.

A quantized layer keeps **latent** float32 weights w^c. Its forward pass uses w^b = θ(w^c) and its
output is θ(batch norm(pool(A·w^b))), with θ the sign or its ternary form. θ has no useful
derivative, so gradients pass *straight through* it wherever |x| ≤ 1 (Hubara et al. 2016,
arXiv 1602.02830).
"""

import collections
import contextlib
import json
import math
import pathlib
import statistics
import subprocess
import sys
import time

import utils  # First: its settings are read when TensorFlow is imported.

# isort: split
import keras
import numpy as np
import tensorflow as tf

# XLA makes one pass over memory of each element-wise function here, where the framework's kernels
# make one for every operation. Convolutions stay with oneDNN, which XLA does not reach.
compiled = tf.function(jit_compile=True)
# Every layer has shapes of its own, each of which is traced once: no reason to warn.
tf.get_logger().addFilter(lambda record: "retracing" not in record.getMessage())


# --- Quantizers -------------------------------------------------------------------------------


@compiled
def _sign(x):
    return tf.where(x >= 0, tf.ones_like(x), -tf.ones_like(x))


@compiled
def _ternary_sign(x, threshold):
    return tf.cast(x > threshold, x.dtype) - tf.cast(x < -threshold, x.dtype)


@compiled
def _where_passed(x, upstream):
    return tf.where(tf.abs(x) <= 1, upstream, tf.zeros_like(upstream))


def straight_through(x, quantized):
    """Return `quantized` with the straight-through gradient with respect to `x`.

    Parameters
    ----------
    x : tensor
        What was quantized.
    quantized : tensor
        Its quantized form, of the same shape.

    Returns
    -------
    tensor
        `quantized`; the gradient with respect to `x` is the upstream gradient where |x| ≤ 1 and
        zero elsewhere. The end points belong to the pass band: weights are clipped to [−1, 1],
        and those that sit at ±1 must be able to come back.
    """

    @tf.custom_gradient
    def forward(x):
        return tf.stop_gradient(quantized), lambda upstream: _where_passed(x, upstream)

    return forward(x)


def binarize(x, threshold=0.0):
    """Sign with sign(0) = +1, so that one bit can hold it.

    Parameters
    ----------
    x : tensor
    threshold : float
        Not used; quantizers share one signature.

    Returns
    -------
    tensor
        −1 where x < 0, else +1, in the shape and dtype of `x`. Gradient: see `straight_through`.
    """
    del threshold
    x = tf.convert_to_tensor(x)
    return straight_through(x, _sign(x))


def ternarize(x, threshold):
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


def clip(x, threshold=0.0):
    """clip(x, −1, 1): what stands in for a quantizer where a layer is not quantized.

    It is the function whose gradient the straight-through sign borrows. On latent weights, which
    never leave [−1, 1], it is the identity.
    """
    del threshold
    return tf.clip_by_value(x, -1, 1)


QUANTIZERS = {"binary": binarize, "ternary": ternarize, "clip": clip}


# What stands for a quantizer of weights on activations, where that is another one.
_ACTIVATION_QUANTIZERS = {}


def register_quantizer(name, activations=None):
    """Decorator that makes a function known as the quantizer `name`.

    Parameters
    ----------
    name : str
        Under it networks are saved and opened again.
    activations : str, optional
        The registered quantizer of the activations of a network whose weights use this one; by
        default this one, too.

    Returns
    -------
    callable
        Takes f(x, threshold), which returns a tensor like x, and returns it.

    Raises
    ------
    ValueError
        If the name is taken, or there is no quantizer `activations`.
    """
    if name in QUANTIZERS:
        raise ValueError(f"there is a quantizer {name!r} already: choose another name")
    if activations is not None:
        quantizer_named(activations)

    def register_function(function):
        QUANTIZERS[name] = function
        _ACTIVATION_QUANTIZERS[name] = activations or name
        return function

    return register_function


def activation_quantizer_of(name):
    """Name of the quantizer of activations that goes with the quantizer `name` of weights."""
    return _ACTIVATION_QUANTIZERS.get(name, name)


def quantizer_named(name):
    """The quantizer registered under `name`.

    Raises
    ------
    ValueError
        If there is none.
    """
    if name not in QUANTIZERS:
        raise ValueError(f"no quantizer named {name!r}; known are {', '.join(QUANTIZERS)}")
    return QUANTIZERS[name]


def quantizer_curve(name, x, threshold=0.0):
    """Values of a registered quantizer and the gradient that training sees in their place.

    Parameters
    ----------
    name : str
    x : array_like, shape (n,)
    threshold : float

    Returns
    -------
    forward, gradient : ndarray, shape (n,)
    """
    x = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        forward = quantizer_named(name)(x, threshold)
    return forward.numpy(), tape.gradient(forward, x).numpy()


# --- Convolutions -----------------------------------------------------------------------------

# In the gradient of a filter: images in a row, and up to which width of the images.
SIDE_BY_SIDE, NARROW = 10, 8


def convolve(images, kernel, products=None):
    """`tf.nn.conv2d` (stride 1, SAME), and its gradient as fast as it comes.

    Parameters
    ----------
    images : tensor, shape (n, rows, columns, channels)
    kernel : tensor, shape (height, width, channels, filters)
    products : callable, optional
        Another way to the same products of `images` and `kernel`.
    """
    options = {"strides": [1] * 4, "padding": "SAME"}
    products = products or (lambda *tensors: tf.nn.conv2d(*tensors, **options))

    @tf.custom_gradient
    def forward(images, kernel):
        def backward(upstream):
            if _suits_winograd(images, kernel):
                with tf.name_scope("winograd"):  # By which the profiler knows them.
                    return winograd_gradients(images, kernel, upstream)
            of_images = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream, **options
            )
            of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=_spread(images, kernel),
                filter_sizes=tf.shape(kernel),
                out_backprop=_spread(upstream, kernel),
                **options,
            )
            return of_images, of_kernel

        return products(images, kernel), backward

    return forward(images, kernel)


def _spread(images, kernel):
    """Narrow bfloat16 images side by side, zeros between them; others as they are.

    With AMX, 58 ms became 29 for the narrow layers of the paper's network at batch 100; float32
    kernels take longer by it.
    """
    _, rows, columns, channels = images.shape
    if images.dtype != tf.bfloat16 or columns > NARROW:
        return images
    missing = -tf.shape(images)[0] % SIDE_BY_SIDE
    gap = kernel.shape[1] // 2
    images = tf.pad(images, [[0, missing], [0, 0], [0, gap], [0, 0]])
    images = tf.reshape(images, [-1, SIDE_BY_SIDE, rows, columns + gap, channels])
    images = tf.transpose(images, [0, 2, 1, 3, 4])
    return tf.reshape(images, [-1, rows, SIDE_BY_SIDE * (columns + gap), channels])


# --- Gradients of 3×3 convolutions, with a quarter of the multiplications ----------------------

# Winograd's algorithm F(4×4, 3×3), as Lavin and Gray give it (arXiv 1509.09308): a tile of 4×4
# products is Y = Aᵀ[(G w Gᵀ) ⊙ (Bᵀ x B)]A, with x the 6×6 images that it sees and ⊙ a product at
# each of 36 points. Summed over channels the latter are 36 matrix products, which make a quarter
# of the multiplications. Y is linear in x and in w: with Ẏ the loss's gradient by Y, and
# Z = A Ẏ Aᵀ, those by x and w are ẋ = B[(G w Gᵀ) ⊙ Z]Bᵀ and ẇ = Gᵀ[(Bᵀ x B) ⊙ Z]G, summed over
# filters and over tiles.
TILE = 4
WINOGRAD_BT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
WINOGRAD_G = (
    np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32)
    / 24
)
WINOGRAD_A = np.array(
    [[1, 0, 0, 0], [1, 1, 1, 1], [1, -1, 1, -1], [1, 2, 4, 8], [1, -2, 4, -8], [0, 0, 0, 1]],
    np.float32,
)
POINTS = len(WINOGRAD_BT)
# Along rows and columns at once; as in `_at_points`, the points of the columns come first.
WINOGRAD_GG = np.einsum("pa,qb->qpab", WINOGRAD_G, WINOGRAD_G).reshape(POINTS**2, 9)
# With fewer, transforms take longer than the multiplications that they save.
WINOGRAD_CHANNELS = 32


def _suits_winograd(images, kernel):
    # bfloat16 has too few digits for it. GPUs have their own library do it.
    return (
        images.dtype == tf.float32
        and kernel.shape[:2] == (3, 3)
        and kernel.shape[2] >= WINOGRAD_CHANNELS
        and None not in images.shape[1:]
        and not tf.config.list_physical_devices("GPU")
    )


def winograd_gradients(images, kernel, upstream):
    """Gradients of a 3×3 `tf.nn.conv2d` (stride 1, SAME) by Winograd's algorithm.

    On two AVX2 cores they took 0.9 s of a step of the paper's network, batch 100, where the
    framework's kernels took 2.6 s.

    Parameters
    ----------
    images : tensor of float32, shape (n, rows, columns, channels)
        Only n may be unknown.
    kernel : tensor of float32, shape (3, 3, channels, filters)
    upstream : tensor of float32, shape (n, rows, columns, filters)

    Returns
    -------
    of_images, of_kernel : tensors of float32
        Of the shapes of `images` and `kernel`, a few 10⁻⁶ of their norm off the exact ones.
    """
    _, rows, columns, channels = images.shape
    missing = [-rows % TILE, -columns % TILE]
    seen = tf.pad(images, [[0, 0], [1, 1 + missing[0]], [1, 1 + missing[1]], [0, 0]])
    upstream = tf.pad(upstream, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]])
    tiles = [upstream.shape[1] // TILE, upstream.shape[2] // TILE]
    z = _at_points(upstream, WINOGRAD_A)
    of_kernel = tf.matmul(_at_points(seen, WINOGRAD_BT), z, transpose_a=True)
    of_kernel = tf.matmul(WINOGRAD_GG.T, tf.reshape(of_kernel, [POINTS**2, -1]))
    kernel_points = tf.matmul(WINOGRAD_GG, tf.reshape(kernel, [9, -1]))
    kernel_points = tf.reshape(kernel_points, [POINTS**2, channels, -1])
    of_images = tf.matmul(z, kernel_points, transpose_b=True)
    of_images = tf.reshape(of_images, [POINTS, POINTS, -1, *tiles, channels])
    of_images = _from_winograd_points(_from_winograd_points(of_images, axis=-2), axis=-3)
    return of_images[:, :rows, :columns], tf.reshape(of_kernel, kernel.shape)


def _at_points(images, matrix):
    """(36, n·tiles, channels): what every tile of `images` is at each point."""
    points = _winograd_points(_winograd_points(images, matrix, axis=-3), matrix, axis=-2)
    return tf.reshape(points, [POINTS**2, -1, images.shape[-1]])


def _sliced(axis, *of_axis):
    """An index that takes `of_axis` along `axis`, counted from the end, and all of the others."""
    return (..., *of_axis, *[slice(None)] * (-axis - 1))


# One compiled function per axis: XLA makes one of both that computes the first six times over.
@compiled
def _winograd_points(images, matrix, axis):
    """`matrix` times every tile along `axis`, the points on a new first axis."""
    taps = matrix.shape[1]
    last = images.shape[axis] - taps
    total = 0.0
    for tap in range(taps):
        pixels = images[_sliced(axis, slice(tap, tap + last + 1, TILE))]
        total += tf.reshape(matrix[:, tap], [-1] + [1] * len(images.shape)) * pixels[None]
    return total


@compiled
def _from_winograd_points(points, axis):
    """The transpose of `_winograd_points` by `WINOGRAD_BT`, without what is in the padding."""
    # Of the six pixels that a tile sees the first is its neighbour's last, the last its
    # neighbour's first, and each comes from one point alone.
    first, last = points[0] * WINOGRAD_BT[0, 0], points[-1] * WINOGRAD_BT[-1, -1]
    pixels = sum(
        _column(WINOGRAD_BT[p, 1:-1], axis) * points[p][_sliced(axis, slice(None), None)]
        for p in range(POINTS)
    )
    pixels += _column([1, 0, 0, 0], axis) * _shifted(last, axis, 1)
    pixels += _column([0, 0, 0, 1], axis) * _shifted(first, axis, -1)
    shape = [-1 if size is None else size for size in pixels.shape]
    shape[axis - 1] *= TILE
    del shape[axis]
    return tf.reshape(pixels, shape)


def _column(numbers, axis):
    """Numbers along an axis that comes after `axis`, counted from the end."""
    return tf.reshape(tf.constant(numbers, tf.float32), [-1] + [1] * (-axis - 1))


def _shifted(tiles, axis, by):
    """Every tile's neighbour, zeros where there is none; a new axis for pixels after `axis`."""
    kept, padding = slice(None, -by) if by > 0 else slice(-by, None), [[0, 0]] * len(tiles.shape)
    padding[axis] = [max(by, 0), max(-by, 0)]
    return tf.pad(tiles[_sliced(axis, kept)], padding)[_sliced(axis, slice(None), None)]


# --- Layers -----------------------------------------------------------------------------------

register = keras.saving.register_keras_serializable("bnn")


@register
class WeightClip(keras.constraints.Constraint):
    """Keep latent weights in [−1, 1]: beyond it no straight-through gradient could move them."""

    def __call__(self, w):
        return tf.clip_by_value(w, -1.0, 1.0)


BN_EPSILON = 1e-3


def shift_batch_norm(x, mean, variance, beta):
    """(x − mean)·(variance + ε)^(−1/2) + β with ε = 10⁻³, in exactly this order.

    Every step is monotone in x also after rounding, so a threshold on x can stand for a threshold
    on the result.
    """
    return (x - mean) * tf.math.rsqrt(variance + BN_EPSILON) + beta


# Compiled, they halve the time of a synchronized batch norm: 32 ms, where the fused kernel of one
# device takes 26. Sums stay with the framework, as XLA is slow at them.


@compiled
def _normalized(x, mean, variance, beta):
    normal = shift_batch_norm(tf.cast(x, tf.float32), mean, variance, beta)
    return tf.cast(normal, x.dtype)


@compiled
def _times_normalized(upstream, x, mean, variance):
    normal = shift_batch_norm(tf.cast(x, tf.float32), mean, variance, 0.0)
    return tf.cast(upstream, tf.float32) * normal


@compiled
def _gradient_of_normalized(upstream, x, mean, variance, shift, slope):
    normal = shift_batch_norm(tf.cast(x, tf.float32), mean, variance, 0.0)
    change = tf.cast(upstream, tf.float32) - shift - normal * slope
    return tf.cast(change * tf.math.rsqrt(variance + BN_EPSILON), x.dtype)


def synchronized_batch_norm(x, beta):
    """`shift_batch_norm` with mean and (biased) variance of the whole batch, in a replica's step.

    Parameters
    ----------
    x : tensor, shape (..., channels)
        This replica's share; all replicas have equally many.
    beta : tensor, shape (channels,)

    Returns
    -------
    tensor
        Like `x`. The gradient sums over all replicas, too, but for that of β, which the optimizer
        sums like any other.
    mean, variance : tensor of float32, shape (channels,)
    """
    replica = tf.distribute.get_replica_context()
    axes = list(range(x.shape.rank - 1))

    def mean_over_replicas(*values):
        return tf.unstack(replica.all_reduce(tf.distribute.ReduceOp.MEAN, tf.stack(values)))

    @tf.custom_gradient
    def forward(x, beta):
        own_mean, own_variance = tf.nn.moments(tf.cast(x, tf.float32), axes)
        mean, square = mean_over_replicas(own_mean, own_variance + own_mean**2)
        variance = tf.maximum(square - mean**2, 0)

        def backward(upstream, *_):
            own_shift = tf.reduce_mean(tf.cast(upstream, tf.float32), axes)
            own_slope = tf.reduce_mean(_times_normalized(upstream, x, mean, variance), axes)
            shift, slope = mean_over_replicas(own_shift, own_slope)
            of_x = _gradient_of_normalized(upstream, x, mean, variance, shift, slope)
            return of_x, own_shift * tf.cast(tf.size(x) // x.shape[-1], tf.float32)

        return (_normalized(x, mean, variance, beta), mean, variance), backward

    return forward(x, beta)


@register
class ShiftBatchNormalization(keras.layers.BatchNormalization):
    """Batch norm over all axes but the last, with a shift β and no scale.

    Training normalizes with the batch's own mean and (biased) variance, through the framework's
    fused kernel or, with several replicas, over the batches of all of them. Inference is
    `shift_batch_norm`.

    Parameters
    ----------
    momentum : float
        Weight of the old value in the moving averages.
    """

    def __init__(self, momentum=0.99, **kwargs):
        options = {"scale": False, "epsilon": BN_EPSILON, "autocast": False}
        super().__init__(momentum=momentum, **options, **kwargs)

    def call(self, inputs, training=False):
        if training:
            return self._normalize_by_batch(inputs)
        statistics = (self.moving_mean, self.moving_variance, self.beta)
        return shift_batch_norm(inputs, *map(tf.convert_to_tensor, statistics))

    def _normalize_by_batch(self, inputs):
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            beta = tf.convert_to_tensor(self.beta)
            out, mean, variance = synchronized_batch_norm(inputs, beta)
            self._follow(self.moving_mean, mean)
            self._follow(self.moving_variance, variance)
            return out
        shape = tf.shape(inputs)
        channels = inputs.shape[-1]
        # The fused kernel wants four axes, and keeps its statistics in float32 for any input.
        out, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=tf.reshape(inputs, [-1, 1, 1, channels]) if inputs.shape.rank != 4 else inputs,
            scale=tf.ones([channels]),
            offset=tf.convert_to_tensor(self.beta),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=self.epsilon,
            is_training=True,
        )
        count = tf.cast(tf.size(inputs) // channels, tf.float32)
        # It reports the unbiased variance but normalizes with the biased one; inference should
        # see what training saw.
        self._follow(self.moving_mean, mean)
        self._follow(self.moving_variance, variance * (tf.maximum(count - 1, 1) / count))
        return tf.reshape(out, shape)

    def _follow(self, average, value):
        average.assign(average * self.momentum + value * (1 - self.momentum))

    def get_config(self):
        # The base class lists options that this one fixes.
        return {**keras.layers.Layer.get_config(self), "momentum": self.momentum}


class QuantizedLayer(keras.layers.Layer):
    """What `BinaryConv2D` and `BinaryDense` share: θ(batch norm(pool(A·θ(w^c)))).

    Inference is always computed in float32, whatever the dtype policy: under `mixed_bfloat16`
    only training uses bfloat16, and latent weights and batch-norm statistics stay float32.

    Integer images (uint8) mean 2x/255 − 1. The layer then works on the odd integers 2x − 255,
    which float32 and bfloat16 both hold exactly, and divides by 255 once after pooling.

    Attributes
    ----------
    latent_kernel : keras.Variable
        w^c, float32, output units on the last axis.
    batch_norm : ShiftBatchNormalization
    """

    def __init__(
        self,
        units,
        weight_quantizer="binary",
        activation_quantizer="binary",
        threshold=0.0,
        threshold_sigma=None,
        activation_threshold=None,
        bn_momentum=0.99,
        kernel_initializer="glorot_uniform",
        input_quantizer=None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if units != int(units) or units < 1:
            raise ValueError(f"a layer needs at least one output unit, not {units}")
        if threshold_sigma is not None and threshold != 0:
            raise ValueError("threshold and threshold_sigma exclude each other: give one")
        for name, value in (
            ("threshold", threshold),
            ("threshold_sigma", threshold_sigma or 0),
            ("activation_threshold", activation_threshold or 0),
        ):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number of at least 0, not {value}")
        quantizer_named(weight_quantizer)
        for quantizer in (activation_quantizer, input_quantizer):
            if quantizer is not None:
                quantizer_named(quantizer)
        self.units = int(units)
        self.weight_quantizer = weight_quantizer
        self.activation_quantizer = activation_quantizer
        self.threshold = threshold
        self.threshold_sigma = threshold_sigma
        self.activation_threshold = activation_threshold
        self.bn_momentum = bn_momentum
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.input_quantizer = input_quantizer
        self.batch_norm = ShiftBatchNormalization(bn_momentum, name="batch_norm", dtype="float32")

    def _add_kernel(self, shape):
        self.latent_kernel = self.add_weight(
            name="latent_kernel",
            shape=shape,
            initializer=self.kernel_initializer,
            constraint=WeightClip(),
            dtype="float32",
            autocast=False,
        )

    def coordinates(self, latent):
        """The latent weights as the quantizer sees them: themselves, unless a layer rotates."""
        return tf.convert_to_tensor(latent)

    def kernel_of(self, coordinates):
        """What the input is multiplied with, from (quantized) coordinates."""
        return coordinates

    def quantized_coordinates(self):
        """θ of the coordinates, in the kernel's shape."""
        coordinates = self.coordinates(self.latent_kernel)
        if self.weight_quantizer == "clip":
            return coordinates  # Latent weights are within the clip; rotated ones need not be.
        threshold = self.weight_threshold(coordinates)
        return quantizer_named(self.weight_quantizer)(coordinates, threshold)

    def quantized_kernel(self):
        """w^b = θ(w^c), float32, in the kernel's shape."""
        return self.kernel_of(self.quantized_coordinates())

    def continuous_kernel(self):
        """What stands where w^b does if nothing is quantized: w^c."""
        return self.kernel_of(self.coordinates(self.latent_kernel))

    def weight_threshold(self, latent):
        """The threshold on weights: `threshold`, or `threshold_sigma` standard deviations."""
        if self.threshold_sigma is None:
            return self.threshold
        return self.threshold_sigma * tf.stop_gradient(tf.math.reduce_std(latent))

    def quantized_output(self, pre_activation):
        """θ on batch-normed activations; the identity in a layer without activation quantizer."""
        if self.activation_quantizer is None:
            return tf.cast(pre_activation, tf.float32)
        threshold = self.activation_threshold
        if threshold is None:
            threshold = self.threshold if self.threshold_sigma is None else self.threshold_sigma
        return quantizer_named(self.activation_quantizer)(pre_activation, threshold)

    def dot_products(self, inputs, kernel):
        """A·W in float32, before pooling and batch norm.

        Parameters
        ----------
        inputs : tensor
            What the layer is called on.
        kernel : tensor
            Of the shape of `latent_kernel`: w^b, w^c or another.
        """
        inputs = tf.convert_to_tensor(inputs)
        return self.rescale(self._multiply(inputs, kernel, "float32"), inputs.dtype)

    def pooled_products(self, inputs, training=False, counted=None):
        """pool(A·w^b), what batch norm sees.

        Counted in bits where that is possible, which gives the same float32 numbers sooner, or
        multiplied; by default counted in training only, and not where that is in bfloat16, which
        multiplies faster than a processor counts.
        """
        inputs, kernel = tf.convert_to_tensor(inputs), self.quantized_kernel()
        if training and self.compute_dtype == "bfloat16":
            # Fewer weights than products: 8 % of a step with AMX. Float32 needs whole numbers.
            kernel = self.rescale(kernel, inputs.dtype)
            return self._pool(self._multiply(inputs, kernel, "bfloat16"))
        if (training if counted is None else counted) and self._counts():
            return self._pool(self._count(inputs, kernel))
        return self.rescale(self._pool(self._multiply(inputs, kernel, "float32")), inputs.dtype)

    def pre_activation(self, inputs, training=False):
        """batch norm(pool(A·w^b)), what the activation quantizer sees."""
        return self.batch_norm(self.pooled_products(inputs, training), training=training)

    def call(self, inputs, training=False):
        return self.quantized_output(self.pre_activation(inputs, training))

    def _multiply(self, inputs, kernel, dtype):
        if inputs.dtype == tf.uint8:
            inputs = 2 * tf.cast(inputs, dtype) - 255
        return self._linear(tf.cast(inputs, dtype), tf.cast(kernel, dtype))

    @staticmethod
    def rescale(factor, input_dtype):
        """Products with 2x − 255, x uint8 pixels, or one factor of them, as with x in [−1, 1]."""
        # A product, as graphs turn divisions by a constant into one, which rounds differently.
        return factor * (1 / 255) if input_dtype == tf.uint8 else factor

    def _linear(self, inputs, kernel):
        raise NotImplementedError

    def _counts(self):
        """Can A·w^b be counted in bits, and does it pay?"""
        return False

    def _pool(self, products):
        return products

    def get_config(self):
        return {
            **super().get_config(),
            "weight_quantizer": self.weight_quantizer,
            "activation_quantizer": self.activation_quantizer,
            "threshold": self.threshold,
            "threshold_sigma": self.threshold_sigma,
            "activation_threshold": self.activation_threshold,
            "bn_momentum": self.bn_momentum,
            "input_quantizer": self.input_quantizer,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@register
class BinaryConv2D(QuantizedLayer):
    """Convolution with quantized weights, then pooling, batch norm and quantized output.

    SAME zero padding, stride 1, no bias. NHWC images; kernels HWIO.

    Parameters
    ----------
    filters : int
    kernel_size : int
    pool : bool
        2×2 max pooling (SAME: odd sizes round up) between convolution and batch norm.
    weight_quantizer, activation_quantizer : str
        Names in `QUANTIZERS`; None for an activation leaves the output at batch norm.
    threshold : float
        Of the ternary quantizer, for weights and activations alike.
    threshold_sigma : float, optional
        Instead of `threshold`: that many standard deviations of the latent weights, taken anew
        in every step, and the same number itself on batch-normed activations.
    activation_threshold : float, optional
        Another one on batch-normed activations.
    bn_momentum : float
    kernel_initializer : str or keras.initializers.Initializer
        Of the latent weights.
    input_quantizer : str, optional
        What quantized the input. Where it quantizes the weights, too, training on a processor
        counts dot products in bits: the same numbers, sooner.
    basis : {"rotation", "whitening"}, optional
        Quantize in another basis M of the d = size·size·channels dimensions of a patch: a
        rotation convolves with w^b = Mᵀθ(Mw^c) ("generalized binarization"), a whitening with
        Mθ(w^c), which is θ(w^c) on patches whitened by M. M is a weight that is not trained, the
        identity until it is assigned.

    Raises
    ------
    ValueError
        If a quantizer or basis is unknown, a size is not positive or a threshold is negative.
    """

    def __init__(self, filters, kernel_size=3, pool=False, basis=None, **kwargs):
        super().__init__(filters, **kwargs)
        if basis not in (None, "rotation", "whitening"):
            raise ValueError(f"basis must be 'rotation' or 'whitening', not {basis!r}")
        self.basis = basis
        if kernel_size != int(kernel_size) or kernel_size < 1:
            raise ValueError(f"kernel_size must be a whole number of at least 1, not {kernel_size}")
        self.kernel_size = int(kernel_size)
        self.pool = bool(pool)

    def build(self, input_shape):
        self._add_kernel((self.kernel_size, self.kernel_size, input_shape[-1], self.units))
        if self.basis:
            d = math.prod(self.latent_kernel.shape[:-1])
            self.basis_matrix = self.add_weight(
                name="basis_matrix",
                shape=(d, d),
                initializer="identity",
                trainable=False,
                dtype="float32",
                autocast=False,
            )
        self.batch_norm.build(self.compute_output_shape(input_shape))

    def coordinates(self, latent):
        latent = super().coordinates(latent)
        return self._times(latent, transpose=False) if self.basis == "rotation" else latent

    def kernel_of(self, coordinates):
        if self.basis is None:
            return coordinates
        return self._times(coordinates, transpose=self.basis == "rotation")

    def _times(self, kernel, transpose):
        columns = tf.reshape(kernel, [-1, self.units])
        matrix = tf.convert_to_tensor(self.basis_matrix)
        return tf.reshape(tf.matmul(matrix, columns, transpose_a=transpose), kernel.shape)

    def compute_output_shape(self, input_shape):
        batch, *sizes, _ = input_shape
        if self.pool:
            sizes = [None if size is None else -(-size // 2) for size in sizes]
        return (batch, *sizes, self.units)

    def _linear(self, inputs, kernel):
        return convolve(inputs, kernel)

    def _counts(self):
        # Not on a GPU, which multiplies faster than a processor counts, nor for few channels, which
        # leave most of a word empty.
        return (
            self.input_quantizer == self.weight_quantizer
            and self.weight_quantizer in ("binary", "ternary")
            and self.basis is None
            and self.latent_kernel.shape[2] >= WORD_BITS
            and not tf.config.list_physical_devices("GPU")
        )

    def _count(self, inputs, kernel):
        return counted_conv2d(inputs, kernel, self.weight_quantizer == "ternary")

    def _pool(self, products):
        return tf.nn.max_pool2d(products, 2, 2, "SAME") if self.pool else products

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.units,
            "kernel_size": self.kernel_size,
            "pool": self.pool,
            "basis": self.basis,
        }


@register
class BinaryDense(QuantizedLayer):
    """Fully connected layer with quantized weights, then batch norm and quantized output.

    Kernels have the shape (inputs, units). The other parameters are those of `BinaryConv2D`.

    Parameters
    ----------
    units : int
    """

    def build(self, input_shape):
        self._add_kernel((input_shape[-1], self.units))
        self.batch_norm.build(self.compute_output_shape(input_shape))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def _linear(self, inputs, kernel):
        return tf.matmul(inputs, kernel)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


# --- Precision --------------------------------------------------------------------------------

# How much faster bfloat16 must be to be worth its rounding.
WORTHWHILE = 1.2
TRIAL_SECONDS = 120
# Leaf 0x1D of CPUID describes the tiles of AMX. A virtual machine that shows AMX but not this leaf
# makes oneDNN's bfloat16 matmul die with SIGILL (oneDNN issue 5689).
TILE_LEAF = 0x1D

_TRIAL = """
import statistics, time
import utils
import tensorflow as tf

def seconds(dtype):
    image, kernel = tf.ones((16, 16, 16, 256), dtype), tf.ones((3, 3, 256, 256), dtype)
    matrix = tf.ones((1024, 1024), dtype)
    step = tf.function(lambda: (tf.nn.conv2d(image, kernel, 1, "SAME"), tf.matmul(matrix, matrix)))
    def once():
        start = time.perf_counter()
        [part.numpy() for part in step()]
        return time.perf_counter() - start
    once()
    return statistics.median(once() for _ in range(5))

print(seconds("float32") / seconds("bfloat16"))
"""


def bfloat16_speedup():
    """Time of a convolution and a matmul in float32 over that in bfloat16.

    Measured in a child process with this one's environment, so that an illegal instruction kills
    only the child.

    Returns
    -------
    float
        0 if the child died.
    """
    command = [sys.executable, "-c", _TRIAL]
    folder = pathlib.Path(__file__).parent
    try:
        child = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TRIAL_SECONDS
        )
    except subprocess.TimeoutExpired:
        return 0.0
    return float(child.stdout.split()[-1]) if child.returncode == 0 else 0.0


def bfloat16_signs(cpuinfo="/proc/cpuinfo"):
    """What the processor's feature bits say of fast bfloat16: 'fast', 'none' or 'doubtful'.

    Parameters
    ----------
    cpuinfo : path-like
        In the format of Linux; without such a file the signs are doubtful.
    """
    try:
        lines = pathlib.Path(cpuinfo).read_text(encoding="utf-8").splitlines()
    except OSError:
        return "doubtful"
    fields = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    flags = fields.get("flags", "").split()
    if not flags:
        return "doubtful"
    if {"amx_tile", "amx_bf16"} <= set(flags):
        return "fast" if int(fields.get("cpuid level", 0)) >= TILE_LEAF else "doubtful"
    return "doubtful" if "avx512_bf16" in flags else "none"


def gpu_has_bfloat16():
    """Is there a GPU whose tensor cores take bfloat16 (compute capability 8 or more)?"""
    capabilities = (
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        for gpu in tf.config.list_physical_devices("GPU")
    )
    return any(capability >= (8, 0) for capability in capabilities)


def choose_precision(wanted, cpuinfo="/proc/cpuinfo"):
    """The dtype policy to train with.

    Parameters
    ----------
    wanted : {'auto', 'float32', 'mixed_bfloat16'}
    cpuinfo : path-like

    Returns
    -------
    policy : {'float32', 'mixed_bfloat16'}
    why : str

    Raises
    ------
    ValueError
        If `mixed_bfloat16` is wanted but kills a process on this machine.
    """
    if wanted == "float32":
        return wanted, "as asked for"
    if gpu_has_bfloat16():
        return "mixed_bfloat16", "the GPU has bfloat16 tensor cores"
    signs = bfloat16_signs(cpuinfo)
    if wanted == "auto" and signs == "fast":
        return "mixed_bfloat16", "the processor has AMX"
    if wanted == "auto" and signs == "none":
        return "float32", "the processor has no fast bfloat16"
    speedup = bfloat16_speedup()
    if wanted == "mixed_bfloat16":
        utils.require(
            speedup, "bfloat16 kills TensorFlow on this machine: take --precision float32"
        )
        return wanted, f"as asked for; {speedup:.1f} × the speed of float32 in a trial"
    if not speedup:
        return "float32", "a trial of bfloat16 was killed: this machine hides half of its AMX"
    policy = "mixed_bfloat16" if speedup >= WORTHWHILE else "float32"
    return policy, f"bfloat16 ran at {speedup:.1f} × the speed of float32 in a trial"


# --- Losses -----------------------------------------------------------------------------------


@register
def squared_hinge(labels, scores):
    """Mean over classes of max(0, 1 − t·s)², t = +1 at the label's class and −1 elsewhere.

    Parameters
    ----------
    labels : tensor of integers, shape (n,) or (n, 1)
    scores : tensor, shape (n, classes)

    Returns
    -------
    tensor, shape (n,)
    """
    targets = 2 * tf.one_hot(tf.reshape(tf.cast(labels, tf.int32), [-1]), scores.shape[-1]) - 1
    return tf.reduce_mean(tf.square(tf.nn.relu(1 - targets * scores)), axis=-1)


def loss_named(loss_mode):
    """`squared_hinge` for 'hinge-loss', cross-entropy on logits for 'softmax'."""
    if loss_mode == "softmax":
        # From logits: log(softmax(s)) underflows to −inf where one score is far ahead.
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return squared_hinge


# --- Optimizer --------------------------------------------------------------------------------


@register
class LatentAdam(keras.optimizers.Adam):
    """Adam on gradients clipped elementwise, in two passes over memory.

    The framework's own kernel updates moments and weights in place and in parallel; Keras'
    formula, the same one, makes a pass for every operation in it. Gradients are clipped here and
    not by `clipvalue`, as devices and workers have been summed over by now: the result does not
    depend on how many there are. Latent weights are clipped by their `WeightClip`, afterwards.

    Parameters
    ----------
    learning_rate : float
    clip : float
        Largest gradient. To clip to [−1, 1] the gradient of a loss summed over n terms, of which
        the loss is the mean, it is 1/n: Adam does not care for the factor that is left.
    beta_2 : float
        The usual 0.999 remembers the large gradients of the first steps for thousands of others,
        which then are too small: most of a run of a few epochs.
    """

    def __init__(self, learning_rate=0.001, clip=1.0, beta_2=0.99, **kwargs):
        super().__init__(learning_rate, beta_2=beta_2, **kwargs)
        self.clip = clip

    def get_config(self):
        return {**super().get_config(), "clip": self.clip}

    def update_step(self, gradient, variable, learning_rate):
        step = tf.cast(self.iterations + 1, variable.dtype)
        index = self._get_variable_index(variable)
        moments = (self._momentums[index].value, self._velocities[index].value)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=moments[0].handle,
            v=moments[1].handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.clip_by_value(gradient, -self.clip, self.clip),
        )


# --- Input pipeline ---------------------------------------------------------------------------


# Pixels that `--augment crop-flip` shifts an image by at most.
LARGEST_SHIFT = 4


def augmented(images, kind, seed, batch_size=None, first=0):
    """Images as they might as well have been taken.

    Parameters
    ----------
    images : tensor, shape (n, rows, columns, channels)
        Only n may be unknown.
    kind : {'flip', 'crop-flip'}
        Mirror each image left to right with probability ½; 'crop-flip' also shifts it by up to
        `LARGEST_SHIFT` pixels each way, reflecting what it uncovers.
    seed : tensor of integers, shape (2,)
        Decides it all.
    batch_size, first : int, optional
        Of a larger batch, whose images number `first` and following these are.

    Returns
    -------
    tensor
        Like `images`.
    """
    (rows, columns), count = images.shape[1:3], tf.shape(images)[0]
    drawn, own = batch_size or count, slice(first, first + count)
    mirror_seed, shift_seed = tf.unstack(tf.random.split(seed, 2))
    mirrored = tf.random.stateless_uniform([drawn, 1, 1, 1], mirror_seed)[own] < 0.5
    images = tf.where(mirrored, images[:, :, ::-1], images)
    if kind == "flip":
        return images
    margin = [LARGEST_SHIFT, LARGEST_SHIFT]
    images = tf.pad(images, [[0, 0], margin, margin, [0, 0]], "REFLECT")
    shifts = tf.random.stateless_uniform(
        [2, drawn, 1], shift_seed, 0, 2 * LARGEST_SHIFT + 1, tf.int32
    )[:, own]
    images = tf.gather(images, shifts[0] + tf.range(rows), axis=1, batch_dims=1)
    return tf.gather(images, shifts[1] + tf.range(columns), axis=2, batch_dims=1)


BATCHES_AHEAD = 4


def training_batches(
    x, y, batch_size, seed, epochs, initial_epoch=0, augment=None, replicas=1, own=None
):
    """All batches of a training, epoch after epoch, each epoch in a shuffled order of its own.

    Order and augmentation depend on (seed, epoch) alone, so a training that resumes at
    `initial_epoch` sees what an uninterrupted one would have seen. Images stay as they are (uint8
    on the host).

    Parameters
    ----------
    x : ndarray, shape (n, height, width, channels)
    y : ndarray, shape (n,)
    batch_size : int
        The n mod batch_size images left over in an epoch are not used in it.
    seed : int
    epochs, initial_epoch : int
    augment : str, optional
        As `augmented` takes it.
    replicas : int
        Devices that share each batch equally.
    own : range, optional
        Those that this data set is for, by default all. Of each batch it yields their shares one
        after another.

    Returns
    -------
    tf.data.Dataset
        Of (epochs − initial_epoch)·(n // batch_size)·len(own) pairs.
    """
    share, own = batch_size // replicas, own or range(replicas)
    images, labels = tf.constant(x), tf.constant(y)

    def batches_of(epoch):
        epoch_seed = tf.stack([tf.cast(seed, tf.int64), epoch])

        def share_of(index, chosen):
            part = tf.gather(images, chosen)
            if augment:
                step_seed = tf.random.fold_in(epoch_seed, index // len(own))
                first = share * (own.start + tf.cast(index % len(own), tf.int32))
                part = augmented(part, augment, step_seed, batch_size, first)
            return part, tf.gather(labels, chosen)

        order = tf.random.experimental.stateless_shuffle(tf.range(len(x)), seed=epoch_seed)
        batches = tf.reshape(order[: len(x) // batch_size * batch_size], [-1, replicas, share])
        shares = tf.reshape(batches[:, own.start : own.stop], [-1, share])
        shares = tf.data.Dataset.from_tensor_slices(shares)
        return shares.enumerate().map(share_of, num_parallel_calls=2)

    epochs_left = tf.data.Dataset.range(initial_epoch, epochs)
    return _untuned(epochs_left.flat_map(batches_of).prefetch(BATCHES_AHEAD))


def batches_in_order(*arrays, batch_size):
    """The arrays (images, or images and labels) from first to last, as Keras infers and validates.

    Parameters
    ----------
    arrays : ndarrays, shape (n, ...)
    batch_size : int

    Returns
    -------
    tf.data.Dataset
        Of ceil(n / batch_size) batches, the last of which may be smaller.
    """
    rows = arrays if len(arrays) > 1 else arrays[0]
    batches = tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)
    return _untuned(batches.prefetch(BATCHES_AHEAD))


def _untuned(batches):
    # The tuner of tf.data sleeps twice as long every time, up to a minute, and whoever is done
    # with the batches waits until it wakes: 700 images took 10.3 s to classify in place of 6.4.
    options = tf.data.Options()
    options.autotune.enabled = False
    # Each worker takes its share of the rows; there are no files to share.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.with_options(options)


# --- Several devices --------------------------------------------------------------------------


class _Workers(tf.distribute.MultiWorkerMirroredStrategy):
    """The framework's strategy for several machines, as `fit` of Keras 3.15.1 needs it."""

    def __init__(self, cluster, gpus):
        self.cluster = cluster
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": cluster.addresses}),
            task_type="worker",
            task_id=cluster.index,
            num_accelerators={"GPU": gpus},
            rpc_layer="grpc",
        )
        super().__init__(resolver)

    def reduce(self, reduce_op, value, axis=None):
        if isinstance(value, tuple):
            # The first batch, of which Keras wants the shapes.
            return tuple(self.experimental_local_results(part)[0] for part in value)
        if axis == 0 and self.experimental_local_results(value)[0].shape.rank == 0:
            axis = None  # A metric, which has no axis.
        return super().reduce(reduce_op, value, axis)


def training_strategy(cluster=None, batch_size=0):
    """What to train on: all workers of a cluster, else all GPUs of this machine, else one device.

    Must come before anything is computed.

    Parameters
    ----------
    cluster : cluster.Cluster, optional
    batch_size : int
        Of all devices together.

    Returns
    -------
    strategy : tf.distribute.Strategy or None
        None for one device.
    what : str

    Raises
    ------
    ValueError
        If the batch does not divide by the devices, or a worker does not come.
    """
    workers = len(cluster.addresses) if cluster else 1
    gpus = len(tf.config.list_physical_devices("GPU"))
    require_shares(batch_size, workers * max(gpus, 1))
    if cluster:
        cluster.meet()
        each = f", {gpus} GPUs each" if gpus else ""
        what = f"{workers} workers{each}; this is {cluster.name(cluster.index)}"
        return _Workers(cluster, gpus), what
    if gpus > 1:
        return tf.distribute.MirroredStrategy(), f"{gpus} GPUs of this machine, mirrored"
    return None, "one GPU" if gpus else "one device, the processor"


def require_shares(batch_size, replicas):
    """Raise ValueError unless all replicas get equal shares of a batch."""
    utils.require(
        batch_size % replicas == 0,
        f"batch_size {batch_size} does not divide by {replicas} devices, which would share it",
    )


def is_chief(strategy):
    """Is this the process that reads and writes files and talks?"""
    return not isinstance(strategy, _Workers) or strategy.cluster.is_chief


def from_chief(strategy, value):
    """The chief's `value`, an array, on every worker; elsewhere only its shape and type count."""
    if not isinstance(strategy, _Workers):
        return value
    value = np.asarray(value)
    own = tf.identity(value if is_chief(strategy) else np.zeros_like(value))
    return strategy.reduce(tf.distribute.ReduceOp.SUM, own).numpy()


def on_chief(strategy, function, *arguments):
    """Call the function on the chief alone, and return its result, or raise its error, on all.

    Parameters
    ----------
    strategy : tf.distribute.Strategy or None
    function : callable
        Returns what JSON can hold.

    Raises
    ------
    ValueError
        On all workers where the function raised ValueError or OSError.
    """
    if not isinstance(strategy, _Workers):
        return function(*arguments)
    answer = b""
    if is_chief(strategy):
        try:
            answer = json.dumps([function(*arguments), None]).encode()
        except (ValueError, OSError) as error:
            answer = json.dumps([None, str(error)]).encode()
    with lost_workers_named(strategy):
        length = int(from_chief(strategy, len(answer)))
        answer = np.frombuffer(answer.ljust(length), np.uint8).astype(np.int32)
        answer = from_chief(strategy, answer).astype(np.uint8).tobytes()
    value, error = json.loads(answer)
    utils.require(error is None, error)
    return value


@contextlib.contextmanager
def lost_workers_named(strategy):
    """Turn the framework's errors after the loss of a worker into a ConnectionError of one line."""
    cluster = getattr(strategy, "cluster", None)
    try:
        yield
    except tf.errors.OpError as error:
        lost = cluster.lost(str(error)) if cluster else []
        gone = isinstance(error, tf.errors.UnavailableError | tf.errors.DeadlineExceededError)
        if not cluster or not (lost or gone):
            raise
        who = ", ".join(map(cluster.name, lost)) or "a worker"
        raise ConnectionError(
            f"{who} stopped answering: the same command with --resume, on every machine, goes on "
            "from the last finished epoch"
        ) from None


def distributed(strategy, batches):
    """A data set as `fit` takes it on `strategy`.

    Parameters
    ----------
    strategy : tf.distribute.Strategy or None
    batches : callable
        `training_batches` but for its arguments `replicas` and `own`.
    """
    if strategy is None:
        return batches()

    def of_worker(context):
        replicas = context.num_replicas_in_sync
        local = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * local
        return batches(replicas=replicas, own=range(first, first + local))

    return strategy.distribute_datasets_from_function(of_worker)


def seconds_to_sum(strategy, shapes, repeats=5):
    """Median time in which the workers sum float32 tensors of these shapes."""
    tensors = [tf.zeros(shape) for shape in shapes]

    @tf.function
    def step():
        def of_replica():
            replica = tf.distribute.get_replica_context()
            sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, tensors)
            return tf.add_n([tf.reduce_sum(total) for total in sums])

        return strategy.run(of_replica)

    def once():
        start = time.perf_counter()
        strategy.experimental_local_results(step())[0].numpy()
        return time.perf_counter() - start

    once()  # Traces.
    return statistics.median(once() for _ in range(repeats))


# --- XNOR-popcount ----------------------------------------------------------------------------
#
# A ±1 value is one bit, 64 of them one uint64 word. The dot product of two ±1 vectors of length d
# is d − 2·popcount(a XOR w): one instruction does the work of 64 multiply-adds. All results are
# exact integers. Ternary values take two bit planes, `nonzero` and `sign` (1 for +1).
#
# What makes it fast in plain TensorFlow is the shape of the loop that XLA is left with. The words
# of the fan-in are unrolled in the graph, and output units lie side by side in memory, 32 at a
# time, so that the compiler works on as many units as a vector register holds and never sums
# across a register. Composed inside one `tf.function(jit_compile=True)`, XLA fuses a convolution
# with its thresholds and the packing of its bits, and integers never reach memory. Alone, or inside
# a plain `tf.function`, each function compiles itself. Only the batch may be of unknown size, and
# XLA compiles once for each that it meets: pad the last, partial batch.

WORD_BITS = 64
LANES = 32


# --- XNOR-popcount: packing -------------------------------------------------------------------


def _lanes(flags, width):
    """Flags with the last axis zero-padded to whole words, split into (words, 64/width, width)."""
    *outer, depth = flags.shape
    words = -(-depth // WORD_BITS)
    flags = tf.pad(flags, [[0, 0]] * len(outer) + [[0, words * WORD_BITS - depth]])
    outer = [-1 if n is None else n for n in outer]
    return tf.reshape(flags, [*outer, words, WORD_BITS // width, width])


def _pack(flags):
    # 32-bit lanes: as wide as what is compared, and a block of LANES units is never straddled.
    values = (np.uint32(1) << np.arange(LANES, dtype=np.uint32)).view(np.int32)
    halves = tf.reduce_sum(tf.where(_lanes(flags, LANES), values, 0), -1)
    return tf.bitcast(tf.bitcast(halves, tf.uint32), tf.uint64)


def _pack_pair(first, second):
    """`_pack` of both in one reduction; in two, XLA would compute the products twice."""
    # Sixteen units of both to 32 bits, for the reason given in `_pack`.
    values = (np.uint32(1) << np.arange(LANES, dtype=np.uint32)).view(np.int32).reshape(2, -1)
    bits = [
        tf.where(_lanes(flags, 16), own, 0)
        for flags, own in zip((first, second), values, strict=True)
    ]
    quarters = tf.reduce_sum(sum(bits), -1)
    quarters = tf.bitcast(quarters, tf.uint16)
    return tf.bitcast(quarters[..., 0], tf.uint64), tf.bitcast(quarters[..., 1], tf.uint64)


@compiled
def pack_bits(x):
    """Pack the signs of the last axis into words.

    Parameters
    ----------
    x : tensor of numbers, shape (..., depth)

    Returns
    -------
    tensor of uint64, shape (..., ceil(depth / 64))
        Bit i of word k is 1 where x[..., 64·k + i] ≥ 0; bits past the end are 0.
    """
    return _pack(x >= 0)


@compiled
def pack_ternary(x):
    """Pack values in {−1, 0, +1} into the planes (nonzero, sign), each as from `pack_bits`.

    Bits of `nonzero` are 1 where x ≠ 0, bits of `sign` where x > 0.
    """
    return _pack_pair(x != 0, x > 0)


@compiled
def threshold_bits(products, thresholds):
    """Pack sign(products − thresholds), the activation that follows a layer, into words.

    Parameters
    ----------
    products : tensor of int32, shape (..., units)
    thresholds : tensor of int32, shape (units,)
        A unit's bit is 1 where its product is at least this. The smallest int32 makes a unit
        constantly +1, the largest constantly −1. A falling unit (−1 above a threshold) is a
        rising one with all its weights negated.

    Returns
    -------
    tensor of uint64, shape (..., ceil(units / 64))
    """
    return _pack(products >= thresholds)


@compiled
def threshold_ternary(products, lower, upper):
    """Pack the ternary activation: +1 where products ≥ upper, −1 where products ≤ lower, else 0.

    Returns
    -------
    nonzero, sign : tensors of uint64, shape (..., ceil(units / 64))
    """
    positive = products >= upper
    return _pack_pair(positive | (products <= lower), positive)


# --- XNOR-popcount: products ------------------------------------------------------------------


@compiled
def arrange_kernel(bits):
    """Lay packed weights out for the inner loop: units in blocks of 32, block by block.

    Parameters
    ----------
    bits : tensor of uint64, shape (..., units, words)
        For a convolution the leading axes are height and width.

    Returns
    -------
    tensor of uint64, shape (ceil(units / 32), ..., words, 32)

    Notes
    -----
    With all units on the last axis, successive words of a unit would lie units·8 bytes apart: with
    512 units that is 4096 bytes, and all of them would fall into the same few lines of the
    first-level cache (1.0 fell to 0.4 tera-operations a second).
    """
    *outer, units, words = bits.shape
    n = len(outer)
    bits = tf.pad(bits, [[0, 0]] * n + [[0, -units % LANES], [0, 0]])
    blocks = tf.reshape(bits, [*outer, -1, LANES, words])
    return tf.transpose(blocks, [n, *range(n), n + 2, n + 1])


def _popcount(words):
    return tf.cast(tf.raw_ops.PopulationCount(x=words), tf.int64)


def has_vector_popcount(cpuinfo="/proc/cpuinfo"):
    """Does the processor count the bits of a whole vector register in one instruction?

    Parameters
    ----------
    cpuinfo : path-like
        In the format of Linux; without such a file it does not.
    """
    try:
        return "avx512_vpopcntdq" in pathlib.Path(cpuinfo).read_text(encoding="utf-8").split()
    except OSError:
        return False


VECTOR_POPCOUNT = has_vector_popcount()


def total_popcount(words):
    """How many bits of all `words` together are 1, lane by lane."""
    if VECTOR_POPCOUNT:
        return sum(map(_popcount, words))
    # Elsewhere a popcount is eight instructions, and carry-save adders (Harley & Seal) leave few of
    # them: three words of weight 2ⁱ become one of that weight and one of the next in five. 1.2 to
    # 1.4 × as fast under AVX2; slower than the one instruction where there is one.
    pending = collections.defaultdict(list)
    for word in words:
        level = 0
        while len(pending[level]) == 2:
            a, b = pending[level]
            odd = a ^ b
            pending[level] = [odd ^ word]
            word = (a & b) | (odd & word)
            level += 1
        pending[level].append(word)
    return sum(_popcount(word) * 2**level for level, words in pending.items() for word in words)


def _windows(images, height, width):
    """For each tap of a kernel, row by row, the zero-padded images as that tap sees them."""
    rows, columns = images.shape[1:3]
    images = tf.pad(
        images,
        [[0, 0], [(height - 1) // 2, height // 2], [(width - 1) // 2, width // 2], [0, 0]],
    )
    for y in range(height):
        for x in range(width):
            yield images[:, y : y + rows, x : x + columns]


def _word_pairs(images, kernel):
    """Every word of the fan-in beside its weights, shaped to broadcast to (…, blocks, 32)."""
    _, height, width, words, _ = kernel.shape
    if images.shape[-1] != words:
        raise ValueError(f"activations of {images.shape[-1]} words meet weights of {words}")
    for tap, window in enumerate(_windows(images, height, width)):
        for k in range(words):
            yield window[..., k, None, None], kernel[:, tap // width, tap % width, k]


def _xnor_lanes(pairs, depth):
    """Dot products of ±1 vectors of `depth` entries, from words beside their weights."""
    return depth - 2 * total_popcount(a ^ w for a, w in pairs)


def _ternary_lanes(nonzero_pairs, sign_pairs):
    nonzero = [a & w for a, w in nonzero_pairs]
    different = [both & (a ^ w) for both, (a, w) in zip(nonzero, sign_pairs, strict=True)]
    return total_popcount(nonzero) - 2 * total_popcount(different)


def _units(lanes, filters):
    """(…, blocks, 32) as int32 (…, filters)."""
    _, rows, columns, blocks, _ = lanes.shape
    return tf.cast(tf.reshape(lanes, [-1, rows, columns, blocks * LANES]), tf.int32)[..., :filters]


def _taps_outside(rows, columns, height, width):
    """(rows·columns, height·width) float32: 1 where a tap at a position lies in the padding."""

    def inside(size, taps):
        position = np.arange(size)[:, None] + np.arange(taps) - (taps - 1) // 2
        return (position >= 0) & (position < size)

    both = inside(rows, height)[:, None, :, None] & inside(columns, width)[None, :, None, :]
    return 1 - both.reshape(rows * columns, height * width).astype(np.float32)


def _counted_in_padding(kernel, channels, rows, columns):
    """What padded taps add where zeros stand for −1: (rows, columns, blocks·32), int32."""
    _, height, width, _, _ = kernel.shape
    # A tap whose activations are all −1 contributes minus the sum of its weights.
    tap = channels - 2 * tf.reduce_sum(_popcount(kernel), 3)
    tap = tf.reshape(tf.transpose(tap, [1, 2, 0, 3]), [height * width, -1])
    # A float32 product of small integers: exact, and unlike a sum of masks XLA does not repeat it
    # for every image.
    counted = tf.matmul(_taps_outside(rows, columns, height, width), tf.cast(tap, tf.float32))
    return tf.cast(tf.reshape(counted, [rows, columns, -1]), tf.int32)


@compiled
def xnor_conv2d(images, kernel, channels, filters):
    """Convolve packed ±1 images with packed ±1 weights, SAME zero padding, stride 1.

    A fully connected layer is a 1×1 convolution of 1×1 images.

    Parameters
    ----------
    images : tensor of uint64, shape (n, rows, columns, words)
        From `pack_bits` over channels. Only n may be unknown.
    kernel : tensor of uint64, shape (blocks, height, width, words, 32)
        `arrange_kernel` of weights packed over input channels, (height, width, filters, words).
    channels : int
        How many bits of a position's words count. The others are 0 in images and weights, and
        may stand anywhere in the words.
    filters : int

    Returns
    -------
    tensor of int32, shape (n, rows, columns, filters)
        A tap in the padding counts 0.

    Raises
    ------
    ValueError
        If images and kernel differ in their number of words, or it is too small for `channels`.
    """
    _, height, width, words, _ = kernel.shape
    if channels > words * WORD_BITS:
        raise ValueError(f"{channels} bits do not fit into {words} words")
    products = _units(_xnor_lanes(_word_pairs(images, kernel), channels * height * width), filters)
    if height * width == 1:
        return products
    padding = _counted_in_padding(kernel, channels, *images.shape[1:3])
    return products - padding[..., :filters]


@compiled
def ternary_conv2d(images, kernel, filters):
    """`xnor_conv2d` for ternary values.

    Parameters
    ----------
    images, kernel : pairs of tensors of uint64
        The planes (nonzero, sign), each as in `xnor_conv2d`.
    filters : int
    """
    return _units(_ternary_lanes(*map(_word_pairs, images, kernel)), filters)


def _block_pairs(a, w):
    """Every word of the rows beside its weights, shaped to broadcast to (blocks, m, 32)."""
    if a.shape[1] != w.shape[1]:
        raise ValueError(f"activations of {a.shape[1]} words meet weights of {w.shape[1]}")
    return ((a[:, k, None], w[:, k, None]) for k in range(a.shape[1]))


@compiled
def _xnor_blocks(a, w, depth):
    return tf.cast(_xnor_lanes(_block_pairs(a, w), depth), tf.int32)


@compiled
def _ternary_blocks(a, w):
    return tf.cast(_ternary_lanes(*map(_block_pairs, a, w)), tf.int32)


def _joined(blocks, units):
    """(blocks, m, 32) as (m, units)."""
    lanes = tf.transpose(blocks, [1, 0, 2])
    return tf.reshape(lanes, [-1, lanes.shape[1] * LANES])[:, :units]


# All rows meet one block of units before the next, as a block fits into the first-level cache
# and all weights do not: three times as fast with 512 units of 72 words under AVX-512. Not compiled
# as a whole: XLA would merge the arranging of the weights, and the joining, into the loop, in the
# order of the result.
@tf.function
def xnor_matmul(a, w, depth):
    """Dot products of packed ±1 vectors.

    Parameters
    ----------
    a : tensor of uint64, shape (m, words)
        From `pack_bits`.
    w : tensor of uint64, shape (n, words)
    depth : int
        Length of the vectors: bits past it do not count.

    Returns
    -------
    tensor of int32, shape (m, n)

    Raises
    ------
    ValueError
        If a and w differ in their number of words, or it is too small for `depth`.
    """
    if depth > w.shape[-1] * WORD_BITS:
        raise ValueError(f"{depth} bits do not fit into {w.shape[-1]} words")
    return _joined(_xnor_blocks(a, arrange_kernel(w), depth), w.shape[0])


@tf.function
def ternary_matmul(a, w):
    """`xnor_matmul` for ternary vectors, a and w being the pairs of planes (nonzero, sign)."""
    return _joined(_ternary_blocks(a, [arrange_kernel(plane) for plane in w]), w[0].shape[0])


# --- XNOR-popcount: training ------------------------------------------------------------------


@compiled
def _counted_conv2d(images, kernel, ternary):
    channels, filters = kernel.shape[2:]
    pack = pack_ternary if ternary else pack_bits
    weights = tf.nest.map_structure(arrange_kernel, pack(tf.transpose(kernel, [0, 1, 3, 2])))
    if ternary:
        return tf.cast(ternary_conv2d(pack(images), weights, filters), images.dtype)
    return tf.cast(xnor_conv2d(pack(images), weights, channels, filters), images.dtype)


def counted_conv2d(images, kernel, ternary=False):
    """`tf.nn.conv2d` (stride 1, SAME) of quantized images with quantized weights, in bits.

    The products are whole numbers that float32 holds, so they are equal to the last bit. Gradients
    are those of `convolve`, not counted: what flows back has many digits.

    Parameters
    ----------
    images : tensor of float32, shape (n, rows, columns, channels)
        −1 and +1 only, with `ternary` also 0. Only n may be unknown.
    kernel : tensor of float32, shape (height, width, channels, filters)
        Of such values, too.
    ternary : bool

    Returns
    -------
    tensor of float32, shape (n, rows, columns, filters)
    """

    return convolve(images, kernel, lambda *tensors: _counted_conv2d(*tensors, ternary))


# --- XNOR-popcount: pooling -------------------------------------------------------------------


def _pool(bits):
    _, rows, columns, _ = bits.shape
    bits = tf.pad(bits, [[0, 0], [0, rows % 2], [0, columns % 2], [0, 0]])
    bits = bits[:, ::2] | bits[:, 1::2]
    return bits[:, :, ::2] | bits[:, :, 1::2]


@compiled
def max_pool_bits(bits):
    """2×2 max pooling (SAME: odd sizes round up) of packed ±1 images: an OR.

    Parameters
    ----------
    bits : tensor of uint64, shape (n, rows, columns, words)
    """
    return _pool(bits)


@compiled
def max_pool_ternary(planes):
    """`max_pool_bits` for the planes (nonzero, sign): +1 where any is, −1 where all are."""
    nonzero, sign = planes
    positive = _pool(sign)
    return positive | ~_pool(~nonzero | sign), positive


# --- XNOR-popcount: the first layer -----------------------------------------------------------


def _odd_integers(images, fan_in):
    if 255 * fan_in >= 2**24:
        raise ValueError(f"{fan_in} pixels to a unit are too many for exact float32 sums")
    return 2 * tf.cast(images, tf.float32) - 255


@compiled
def pixel_conv2d(images, kernel):
    """Convolve the odd integers 2x − 255 of 8-bit images, SAME zero padding, stride 1, exactly.

    In float32, which holds every partial sum: its fused multiply-adds are several times faster
    than popcounts over the eight bit planes of so few channels.

    Parameters
    ----------
    images : tensor of uint8, shape (n, rows, columns, channels)
        Only n may be unknown.
    kernel : tensor of float32, shape (height, width, channels, filters)
        Values −1, 0 and +1.

    Returns
    -------
    tensor of int32, shape (n, rows, columns, filters)
        A tap in the padding counts 0, not −255.

    Raises
    ------
    ValueError
        If a unit sees so many pixels that its sums could exceed 2²⁴.
    """
    height, width, channels, _ = kernel.shape
    pixels = _odd_integers(images, height * width * channels)
    # Unrolled like the packed products, so that it fuses with what follows.
    return tf.cast(
        sum(
            window[..., c, None] * kernel[tap // width, tap % width, c]
            for tap, window in enumerate(_windows(pixels, height, width))
            for c in range(channels)
        ),
        tf.int32,
    )


@compiled
def pixel_matmul(images, kernel):
    """`pixel_conv2d` for a fully connected first layer: (n, depth) uint8 by (depth, units)."""
    return tf.cast(tf.matmul(_odd_integers(images, kernel.shape[0]), kernel), tf.int32)
