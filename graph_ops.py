"""Quantizers, layers with quantized products, batch norm, and XNOR-popcount products by name.

A quantized layer keeps **latent** float32 weights w^c. It multiplies its quantized inputs
A^b = θ(A^c) with quantized weights w^b = θ(w^c), where θ is the sign, its ternary form or another
quantizer. θ has no useful derivative, so gradients pass *straight through* it where |x| ≤ 1
(Hubara et al. 2016, arXiv 1602.02830).
"""

import math
from collections.abc import Sequence

import utils
from batch_norm import BN_EPSILON, ShiftBatchNormalization, shift_batch_norm
from fast import bits, compiled
from fast.bits import pack_bits, pack_ternary, ternary_matmul, xnor_conv2d, xnor_matmul
from fast.convolution import convolve, counted_conv2d
from straight_through import (
    QUANTIZERS,
    Clip,
    LloydMax,
    Quantizer,
    Registered,
    Sign,
    Ternary,
    Uniform,
    activation_quantizer_of,
    binarize,
    clip,
    get_quantizer,
    quantizer_curve,
    register,
    register_quantizer,
    straight_through,
    ternarize,
)

# isort: split
import keras
import numpy as np
import tensorflow as tf

__all__ = [
    "BN_EPSILON",
    "QUANTIZERS",
    "BinaryConv2D",
    "BinaryDense",
    "Block",
    "Clip",
    "GRUStep",
    "LSTMStep",
    "LloydMax",
    "LogicMerge",
    "MaxPooling2D",
    "PixelLevels",
    "PixelSlices",
    "QuantConv2D",
    "QuantDense",
    "Quantizer",
    "Registered",
    "RotatedConv2D",
    "ShiftBatchNormalization",
    "Sign",
    "Ternary",
    "Uniform",
    "WeightClip",
    "activation_quantizer_of",
    "binarize",
    "clip",
    "get_quantizer",
    "pack_bits",
    "pack_ternary",
    "quantizer_curve",
    "register_quantizer",
    "rescale_pixels",
    "shift_batch_norm",
    "straight_through",
    "ternarize",
    "ternary_matmul",
    "xnor_conv2d",
    "xnor_matmul",
]


@register
class WeightClip(keras.constraints.Constraint):
    """Keep latent weights in [−1, 1]: beyond it no straight-through gradient could move them."""

    def __call__(self, w):
        return tf.clip_by_value(w, -1.0, 1.0)


# --- Layers -----------------------------------------------------------------------------------


def rescale_pixels(factor: tf.Tensor, input_dtype: tf.DType) -> tf.Tensor:
    """Products with 2x − 255, x uint8 pixels, or one factor of them, as with pixels in [−1, 1]."""
    # A product, as graphs turn divisions by a constant into one, which rounds differently.
    return factor * (1 / 255) if input_dtype == tf.uint8 else factor


class _QuantizedProduct:
    """What `QuantConv2D` and `QuantDense` share: θ(A^c)·θ(w^c).

    Inference is always computed in float32, whatever the dtype policy: under `mixed_bfloat16`
    only training uses bfloat16. Latent weights are float32 in both.

    Integer images (uint8) mean 2x/255 − 1. The layer then works on the odd integers 2x − 255,
    which float32 and bfloat16 both hold exactly.
    """

    def _take_quantizers(self, input_quantizer, kernel_quantizer):
        self.input_quantizer = get_quantizer(input_quantizer)
        self.kernel_quantizer = get_quantizer(kernel_quantizer)
        utils.require(
            self.input_quantizer is None or not self.input_quantizer.follows_data,
            f"the input quantizer {self.input_quantizer} would depend on the other images of a "
            "batch: give it a fixed threshold or scale",
        )
        if self.kernel_constraint is None and self.kernel_quantizer is not None:
            self.kernel_constraint = WeightClip()

    def add_weight(self, *args: object, **kwargs: object) -> keras.Variable:
        # A sign needs the latent weights' last bit: no policy rounds them.
        return super().add_weight(*args, autocast=False, **kwargs)

    @property
    def latent_kernel(self) -> keras.Variable:
        """w^c, a variable with the output units on the last axis."""
        return self._kernel

    def coordinates(self) -> tf.Tensor:
        """The latent weights as the quantizer sees them: themselves, unless a layer rotates."""
        return tf.convert_to_tensor(self.latent_kernel)

    def kernel_of(self, coordinates: tf.Tensor | np.ndarray) -> tf.Tensor | np.ndarray:
        """What the input is multiplied with, from (quantized) coordinates."""
        return coordinates

    def quantized_coordinates(self) -> tf.Tensor:
        """θ of the coordinates, in the kernel's shape."""
        coordinates = self.coordinates()
        return coordinates if self.kernel_quantizer is None else self.kernel_quantizer(coordinates)

    def quantized_kernel(self) -> tf.Tensor:
        """w^b = θ(w^c), float32, in the kernel's shape."""
        return self.kernel_of(self.quantized_coordinates())

    def continuous_kernel(self) -> tf.Tensor:
        """What stands in the place of w^b if nothing is quantized: w^c."""
        return self.kernel_of(self.coordinates())

    def quantized_inputs(self, inputs: tf.Tensor) -> tf.Tensor:
        """A^b = θ(A^c)."""
        inputs = tf.convert_to_tensor(inputs)
        return inputs if self.input_quantizer is None else self.input_quantizer(inputs)

    def dot_products(
        self, inputs: tf.Tensor | np.ndarray, kernel: tf.Tensor | np.ndarray
    ) -> tf.Tensor:
        """A·W in float32, without the bias.

        Parameters
        ----------
        inputs : tensor
            A^b, A^c or others of their shape, as they are.
        kernel : tensor
            Of the shape of `latent_kernel`: w^b, w^c or another.
        """
        inputs = tf.convert_to_tensor(inputs)
        return rescale_pixels(self._multiply(inputs, kernel, "float32"), inputs.dtype)

    def products(
        self, inputs: tf.Tensor, training: bool = False, counted: bool | None = None
    ) -> tf.Tensor:
        """A^b·w^b of quantized inputs.

        They are counted in bits where that is possible, which gives the same float32 numbers
        sooner, or multiplied. By default they are counted in training only, and not where that is
        in bfloat16, which multiplies faster than a processor counts.
        """
        inputs, kernel = tf.convert_to_tensor(inputs), self.quantized_kernel()
        if training and self.compute_dtype in ("bfloat16", "float16"):
            # Fewer weights than products: 8 % of a step with AMX. Float32 needs whole numbers.
            kernel = rescale_pixels(kernel, inputs.dtype)
            return self._multiply(inputs, kernel, self.compute_dtype)
        if (training if counted is None else counted) and self._counts(inputs):
            return counted_conv2d(inputs, kernel, self.kernel_quantizer.levels == 3)
        return self.dot_products(inputs, kernel)

    def call(
        self, inputs: tf.Tensor, training: bool = False, counted: bool | None = None
    ) -> tf.Tensor:
        products = self.products(self.quantized_inputs(inputs), training, counted)
        if self.use_bias:
            products += tf.cast(tf.convert_to_tensor(self.bias), products.dtype)
        return self.activation(products)

    def _multiply(self, inputs, kernel, dtype):
        if inputs.dtype == tf.uint8:
            inputs = 2 * tf.cast(inputs, dtype) - 255
        return self._linear(tf.cast(inputs, dtype), tf.cast(kernel, dtype))

    def _linear(self, inputs, kernel):
        raise NotImplementedError

    def _counts(self, inputs):
        """Can A^b·w^b be counted in bits, and does it pay?"""
        return False

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "input_quantizer": keras.saving.serialize_keras_object(self.input_quantizer),
            "kernel_quantizer": keras.saving.serialize_keras_object(self.kernel_quantizer),
        }


@register
class QuantConv2D(_QuantizedProduct, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with quantized inputs and a quantized kernel.

    Images are NHWC, kernels HWIO.

    Parameters
    ----------
    filters : int
    kernel_size : int or (int, int)
    input_quantizer : Quantizer, str or dict, optional
        What quantizes the inputs: A^b = θ(A^c). By default they are taken as they are.
    kernel_quantizer : Quantizer, str or dict, optional
        What quantizes the latent weights: w^b = θ(w^c). With one, they are clipped to [−1, 1]
        after each step, unless another `kernel_constraint` is given.
    **kwargs
        `strides`, `padding`, `dilation_rate`, `use_bias` and the others of `keras.layers.Conv2D`,
        with its defaults.

    Raises
    ------
    ValueError
        If a quantizer is unknown, an input quantizer depends on the batch, or images are to have
        their channels first or their channels in groups.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        input_quantizer: Quantizer | str | dict | None = None,
        kernel_quantizer: Quantizer | str | dict | None = None,
        **kwargs: object,
    ):
        super().__init__(filters, kernel_size, autocast=False, **kwargs)
        utils.require(
            self.data_format == "channels_last",
            "QuantConv2D takes images with their channels last, not data_format='channels_first'",
        )
        utils.require(self.groups == 1, f"QuantConv2D has no groups, not {self.groups}")
        self.input_spec = keras.layers.InputSpec(ndim=4)
        self._take_quantizers(input_quantizer, kernel_quantizer)

    def build(self, input_shape: tuple) -> None:
        super().build(input_shape)
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: input_shape[-1]})

    @property
    def is_plain(self) -> bool:
        """Does every position of the image have a product, and no kernel holes?"""
        ones = (1, 1)
        return self.padding == "same" and self.strides == self.dilation_rate == ones

    def _linear(self, inputs, kernel):
        return convolve(inputs, kernel) if self.is_plain else self.convolution_op(inputs, kernel)

    def _counts(self, inputs):
        # Not on a GPU, which multiplies faster than a processor counts, nor for few channels, which
        # leave most of a word empty.
        quantizers = {type(self.input_quantizer), type(self.kernel_quantizer)}
        return (
            quantizers in ({Sign}, {Ternary})
            and self.is_plain
            and self.latent_kernel.shape[2] >= bits.WORD_BITS
            and None not in inputs.shape[1:]
            and not tf.config.list_physical_devices("GPU")
        )


@register
class QuantDense(_QuantizedProduct, keras.layers.Dense):
    """`keras.layers.Dense` with quantized inputs and a quantized kernel, shape (inputs, units).

    Parameters
    ----------
    units : int
    input_quantizer, kernel_quantizer : Quantizer, str or dict, optional
        See `QuantConv2D`.
    **kwargs
        Those of `keras.layers.Dense`.

    Raises
    ------
    ValueError
        If a quantizer is unknown, or an input quantizer depends on the batch.
    """

    def __init__(
        self,
        units: int,
        input_quantizer: Quantizer | str | dict | None = None,
        kernel_quantizer: Quantizer | str | dict | None = None,
        **kwargs: object,
    ):
        super().__init__(units, autocast=False, **kwargs)
        self._take_quantizers(input_quantizer, kernel_quantizer)

    def _linear(self, inputs, kernel):
        return tf.matmul(inputs, kernel)


@register
class RotatedConv2D(QuantConv2D):
    """`QuantConv2D` that quantizes its kernel in another basis M of the patch's dimensions.

    A rotation convolves with w^b = Mᵀθ(Mw^c) ("generalized binarization"), a whitening with
    Mθ(w^c), which is θ(w^c) on patches whitened by M. M is a weight that is not trained; it is the
    identity until it is assigned.

    Parameters
    ----------
    basis : {'rotation', 'whitening'}
    **kwargs
        Those of `QuantConv2D`.

    Attributes
    ----------
    basis_matrix : keras.Variable
        M, shape (d, d) with d = height·width·channels.
    """

    def __init__(self, *args: object, basis: str = "rotation", **kwargs: object):
        super().__init__(*args, **kwargs)
        utils.require(
            basis in ("rotation", "whitening"),
            f"basis must be 'rotation' or 'whitening', not {basis!r}",
        )
        self.basis = basis

    def build(self, input_shape: tuple) -> None:
        super().build(input_shape)
        d = math.prod(self.latent_kernel.shape[:-1])
        self.basis_matrix = self.add_weight(
            name="basis_matrix",
            shape=(d, d),
            initializer="identity",
            trainable=False,
            dtype="float32",
        )

    def coordinates(self) -> tf.Tensor:
        latent = super().coordinates()
        return self._times(latent, transpose=False) if self.basis == "rotation" else latent

    def kernel_of(self, coordinates: tf.Tensor | np.ndarray) -> tf.Tensor:
        return self._times(coordinates, transpose=self.basis == "rotation")

    def _times(self, kernel, transpose):
        columns = tf.reshape(kernel, [-1, self.filters])
        matrix = tf.convert_to_tensor(self.basis_matrix)
        return tf.reshape(tf.matmul(matrix, columns, transpose_a=transpose), kernel.shape)

    def _counts(self, inputs):
        return False

    # Keras' convolution writes its kernel alone.
    def save_own_variables(self, store: object) -> None:
        keras.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: object) -> None:
        keras.Layer.load_own_variables(self, store)

    def get_config(self) -> dict:
        return {**super().get_config(), "basis": self.basis}


@register
class PixelLevels(keras.layers.Layer):
    """Round pixels to a few evenly spaced ones, black and white among them.

    uint8 images stay uint8, so that the next layer still multiplies whole numbers. Floats in
    [−1, 1] stay floats, with the straight-through gradient. A change of a pixel that leaves it next
    to the same level changes nothing in the network: what few levels are for.

    Parameters
    ----------
    levels : int
        One of `utils.PIXEL_LEVELS`: 2 is black and white.

    Raises
    ------
    ValueError
        If `levels` is another number.
    """

    def __init__(self, levels: int, **kwargs: object):
        super().__init__(autocast=False, **kwargs)
        utils.require(levels is not None, "PixelLevels needs a number of levels")
        utils.require_pixel_levels(levels)
        self.levels = levels

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        inputs, step = tf.convert_to_tensor(inputs), 255 // (self.levels - 1)
        if inputs.dtype == tf.uint8:
            # Steps are odd: no pixel lies half-way between two levels.
            nearest = (tf.cast(inputs, tf.int32) + step // 2) // step * step
            return tf.cast(nearest, tf.uint8)
        pixels = tf.round((inputs + 1) * (127.5 / step)) * step
        return straight_through(inputs, tf.clip_by_value(pixels, 0, 255) / 127.5 - 1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "levels": self.levels}


@register
class MaxPooling2D(keras.layers.MaxPooling2D):
    """2×2 max pooling, SAME (odd sizes round up), in the dtype of its input.

    Keras' own would round to bfloat16 under `mixed_bfloat16` also where nothing is trained.
    """

    def __init__(
        self, pool_size: int | tuple[int, int] = 2, padding: str = "same", **kwargs: object
    ):
        super().__init__(pool_size, padding=padding, autocast=False, **kwargs)


# --- Networks of bits -------------------------------------------------------------------------


@register
class PixelSlices(keras.layers.Layer):
    """Each channel of pixels as `slices` channels of ±1: +1 from an evenly spaced threshold on.

    A uint8 pixel x is compared with whole numbers, the i-th being ceil(256·i / (slices + 1)).
    Floats mean 2x/255 − 1. As in the multi-slice convolution of BoolNet (Guo et al. 2021,
    arXiv 2106.06991).

    Parameters
    ----------
    slices : int
        From 1 to 255.
    """

    def __init__(self, slices: int, **kwargs: object):
        super().__init__(**{"autocast": False, "dtype": "float32", **kwargs})
        utils.require(
            utils.is_whole(slices) and 1 <= slices <= 255,
            f"slices must be a whole number from 1 to 255, not {slices!r}",
        )
        self.slices = int(slices)

    @property
    def thresholds(self) -> np.ndarray:
        """Pixels from which a slice is +1, uint8 of shape (slices,), rising."""
        return np.ceil(256 * np.arange(1, self.slices + 1) / (self.slices + 1)).astype(np.uint8)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        x, limits = tf.convert_to_tensor(inputs), self.thresholds
        if x.dtype != tf.uint8:
            limits = (2 * limits.astype(np.float32) - 255) / 255
        above = x[..., None] >= tf.constant(limits, x.dtype)
        shape = [-1, *x.shape[1:-1], x.shape[-1] * self.slices]
        return 2 * tf.cast(tf.reshape(above, shape), tf.float32) - 1

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (*input_shape[:-1], input_shape[-1] * self.slices)

    def get_config(self) -> dict:
        return {**super().get_config(), "slices": self.slices}


@compiled
def _xnor(a, b):
    return a * b


@compiled
def _or(a, b):
    return (1 + a + b - a * b) / 2


LOGIC = {"xnor": _xnor, "or": _or}


@register
class LogicMerge(keras.layers.Layer):
    """XNOR or OR of two tensors of ±1, as BoolNet joins a shortcut of bits (Guo et al. 2021).

    The functions are a·b and (1 + a + b − a·b)/2. Their gradients are what the result changes when
    one bit changes, halved as the bit's own change is.

    Parameters
    ----------
    operation : {'xnor', 'or'}
    """

    def __init__(self, operation: str, **kwargs: object):
        super().__init__(autocast=False, **kwargs)
        utils.require(operation in LOGIC, f"operation must be xnor or or, not {operation!r}")
        self.operation = operation

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        return LOGIC[self.operation](*inputs)

    def compute_output_shape(self, input_shape: Sequence[tuple]) -> tuple:
        return input_shape[0]

    def get_config(self) -> dict:
        return {**super().get_config(), "operation": self.operation}


# --- Recurrent networks -----------------------------------------------------------------------


class _Step(keras.layers.Layer):
    """One time step of a recurrent layer, after its products were normalized; see `GRUStep`."""

    gates = None

    def __init__(self, units: int, **kwargs: object):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape: Sequence[tuple]) -> None:
        shape = (self.gates * self.units,)
        # The start that Cooijmans et al. chose, so that tanh and σ do not saturate.
        gain = keras.initializers.Constant(0.1)
        self.input_gain = self.add_weight(name="input_gain", shape=shape, initializer=gain)
        self.state_gain = self.add_weight(name="state_gain", shape=shape, initializer=gain)
        self.bias = self.add_weight(name="bias", shape=shape, initializer="zeros")

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
        of_input, *before = map(tf.convert_to_tensor, inputs)
        state = tf.zeros_like(of_input[..., : self.units])
        of_state, state = before or (tf.zeros_like(of_input), state)
        terms = self.input_gain * of_input + self.bias, self.state_gain * of_state
        return self._next(*(tf.split(term, self.gates, axis=-1) for term in terms), state)

    def get_config(self) -> dict:
        return {**super().get_config(), "units": self.units}


@register
class GRUStep(_Step):
    """The next state of a GRU from batch-normed products of input and state.

    z, r = σ(φ·x + φ'·h + b), n = tanh(φ·x + r·(φ'·h) + b), state ← z·state + (1 − z)·n, where x and
    h are the normalized products, and gains φ, φ' and bias b are shared by all time steps. So
    Ardakani et al. (2018, arXiv 1809.11086) normalize a recurrent layer with quantized kernels.

    Called on [x] at the first step, then on [x, h, state]. Returns the state.

    Parameters
    ----------
    units : int
    """

    gates = 3

    def _next(self, x, h, state):
        z, r = (tf.sigmoid(x[i] + h[i]) for i in (0, 1))
        return z * state + (1 - z) * tf.tanh(x[2] + r * h[2])

    def compute_output_spec(self, inputs: Sequence[keras.KerasTensor]) -> keras.KerasTensor:
        return keras.KerasTensor((inputs[0].shape[0], self.units), self.compute_dtype)


@register
class LSTMStep(_Step):
    """The same of an LSTM, with gates i, f, o and candidate g; see `GRUStep`.

    Called on [x] at the first step, then on [x, h, cell]. Returns the state and the cell:
    cell ← σ(f)·cell + σ(i)·tanh(g), state ← σ(o)·tanh(cell).

    Parameters
    ----------
    units : int
    """

    gates = 4

    def _next(self, x, h, cell):
        i, f, o, g = (a + b for a, b in zip(x, h, strict=True))
        cell = tf.sigmoid(f) * cell + tf.sigmoid(i) * tf.tanh(g)
        return tf.sigmoid(o) * tf.tanh(cell), cell

    def compute_output_spec(
        self, inputs: Sequence[keras.KerasTensor]
    ) -> tuple[keras.KerasTensor, ...]:
        shape = (inputs[0].shape[0], self.units)
        return tuple(keras.KerasTensor(shape, self.compute_dtype) for _ in range(2))


# --- Blocks -----------------------------------------------------------------------------------


@register
class Block(keras.Sequential):
    """Layers one after another, on inputs of the dtype that they have.

    `keras.Sequential` casts its inputs: to bfloat16 where the first layer trains in it, and uint8,
    which means 2x/255 − 1, to floats.
    """

    def __init__(self, *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)
        self.autocast = False

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs


def BinaryConv2D(
    filters: int, kernel_size: int = 3, pool: bool = False, **options: object
) -> Block:
    """The paper's block as one layer: convolution, pooling, batch norm, quantized output.

    SAME zero padding, stride 1, no bias. In a network of one's own the layers of which it is made
    say more: `QuantConv2D` quantizes its inputs itself.

    Parameters
    ----------
    filters, kernel_size : int
    pool : bool
        2×2 max pooling between convolution and batch norm?
    weight_quantizer, activation_quantizer, input_quantizer : Quantizer or str, optional
        The first two are 'binary' by default. With None for an activation the output is that of
        batch norm.
    threshold, threshold_sigma, activation_threshold : float, optional
        Of ternary quantizers that are named: `threshold` of weights and activations, or
        `threshold_sigma` standard deviations of the weights; another one for activations.
    bn_momentum : float
    **options
        Others of `QuantConv2D`.

    Returns
    -------
    Block
    """
    utils.require(
        utils.is_whole(kernel_size) and kernel_size >= 1,
        f"kernel_size must be a whole number of at least 1, not {kernel_size}",
    )
    build = lambda **rest: QuantConv2D(filters, kernel_size, padding="same", **rest)  # noqa: E731
    return _block(build, pool, **options)


def BinaryDense(units: int, **options: object) -> Block:
    """The paper's fully connected block: `BinaryConv2D` with a matrix in place of the kernel."""
    return _block(lambda **rest: QuantDense(units, **rest), False, **options)


def _block(
    product,
    pool,
    weight_quantizer="binary",
    activation_quantizer="binary",
    input_quantizer=None,
    threshold=None,
    threshold_sigma=None,
    activation_threshold=None,
    bn_momentum=0.99,
    name=None,
    **options,
):
    of_weights = {"threshold": threshold, "sigma": threshold_sigma}
    if activation_threshold is None:
        activation_threshold = threshold if threshold_sigma is None else threshold_sigma
    kernel_quantizer = get_quantizer(weight_quantizer, **of_weights)
    after = get_quantizer(activation_quantizer, threshold=activation_threshold)
    layers = [
        product(
            use_bias=False,
            kernel_quantizer=None if kernel_quantizer == Clip() else kernel_quantizer,
            input_quantizer=input_quantizer,
            kernel_constraint=WeightClip(),
            **options,
        ),
        *([MaxPooling2D()] if pool else []),
        ShiftBatchNormalization(bn_momentum),
        *([keras.layers.Activation(after)] if after else []),
    ]
    return Block(layers, name=name)
