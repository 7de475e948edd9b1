"""Which products a layer forms: kernels, inputs and quantizers of each type of layer.

A `Kernel` is a variable seen as columns, one per output unit; a `Product` is what a layer has just
multiplied. A layer of another type is made known with `@kernels_of.register` and
`@products_of.register`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import graph_ops
from utils import require

# isort: split
import keras
import numpy as np
import tensorflow as tf

layers = keras.layers


@dataclass(frozen=True)
class Window:
    """The patches of an image that a two-dimensional convolution multiplies.

    Attributes
    ----------
    size, strides, dilation : (int, int)
        Of rows and columns.
    padding : {'same', 'valid'}
    """

    size: tuple
    strides: tuple = (1, 1)
    dilation: tuple = (1, 1)
    padding: str = "same"

    @property
    def is_plain(self) -> bool:
        """Does every position of the image have a product, and the kernel no holes?"""
        return self.padding == "same" and self.strides == self.dilation == (1, 1)

    def outputs_and_padding(self, sizes: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
        """For rows and columns: how many outputs, and how many zeros before and after.

        Parameters
        ----------
        sizes : (int, int)
            Of the images.

        Returns
        -------
        list of (int, (int, int))
            By TensorFlow's rule, which pads more at the end.
        """
        found = []
        for size, n, rate, stride in zip(
            sizes, self.size, self.dilation, self.strides, strict=True
        ):
            span = (n - 1) * rate + 1
            if self.padding == "valid":
                found.append((-(-(size - span + 1) // stride), (0, 0)))
                continue
            outputs = -(-size // stride)
            total = max((outputs - 1) * stride + span - size, 0)
            found.append((outputs, (total // 2, total - total // 2)))
        return found

    @property
    def border(self) -> int:
        """How many positions at each edge of the output zero padding reaches, at most."""
        if self.padding == "valid":
            return 0
        reach = ((n // 2) * rate for n, rate in zip(self.size, self.dilation, strict=True))
        return max(-(-r // stride) for r, stride in zip(reach, self.strides, strict=True))


# --- Kernels ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Kernel:
    """A variable whose columns are multiplied with a layer's inputs.

    Attributes
    ----------
    variable : keras.Variable
    part : str
        Name of the kernel in a layer that has several.
    axes : tuple of int or None
        The variable's axes in the order in which those that are summed come first.
    summed : int or None
        How many axes are summed; by default all but the last.
    groups : int
        Units of one group share their inputs, and other groups have others.
    """

    variable: keras.Variable
    part: str = ""
    axes: tuple | None = None
    summed: int | None = None
    groups: int = 1

    def columns(self) -> tf.Tensor:
        """The kernel, a tensor of shape (..., units)."""
        kernel = tf.convert_to_tensor(self.variable)
        if self.axes is not None:
            kernel = tf.transpose(kernel, self.axes)
        if self.summed is not None:
            kernel = tf.reshape(kernel, (*kernel.shape[: self.summed], -1))
        return kernel

    def in_place(self, columns: tf.Tensor) -> tf.Tensor:
        """`columns`, shaped as `columns()`, in the shape of the variable."""
        shape = tuple(self.variable.shape)
        if self.axes is None:
            return tf.reshape(columns, shape)
        ordered = tf.reshape(columns, [shape[axis] for axis in self.axes])
        return tf.transpose(ordered, np.argsort(self.axes))


@functools.singledispatch
def kernels_of(layer: keras.Layer) -> tuple[Kernel, ...]:
    """The `Kernel`s of a layer in the order of `products_of`, as a tuple; it needs no inputs."""
    del layer
    return ()


def obstacle(layer: keras.Layer) -> str:
    """Why the products of a layer of a known type cannot be measured, or an empty string."""
    if getattr(layer, "quantization_mode", None):
        return "is quantized by Keras already"
    convolution = isinstance(layer, _CONVOLUTIONS)
    if convolution and getattr(layer, "data_format", None) == "channels_first":
        return "has its channels first"
    if isinstance(layer, _GROUPED) and layer.groups != 1:
        return "has groups"
    if isinstance(layer, layers.EinsumDense) and _einsum_axes(layer) is None:
        return f"multiplies {layer.equation}, which is more than a product with each unit's weights"
    if isinstance(layer, layers.GRUCell) and not layer.reset_after:
        return "resets its state before the product"
    return ""


def owns_kernel(layer: keras.Layer) -> bool:
    """Is a matrix, or a tensor of more axes, among the layer's own trainable weights?"""
    return any(len(v.shape) >= 2 for v in layer._trainable_variables)


def forms_product(layer: keras.Operation) -> bool:
    """Is it known which products a layer like this forms?"""
    return products_of.dispatch(type(layer)) is not products_of.dispatch(object)


_GROUPED = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_CONVOLUTIONS = (*_GROUPED, *_TRANSPOSED, *_DEPTHWISE, *_SEPARABLE)
_CELLS = (layers.SimpleRNNCell, layers.LSTMCell, layers.GRUCell)


def _register(function, types):
    """Decorator that registers an adapter for all of these types."""

    def register(adapter):
        for kind in types:
            function.register(kind)(adapter)
        return adapter

    return register


@_register(kernels_of, (graph_ops.QuantConv2D, graph_ops.QuantDense))
def _(layer):
    return (Kernel(layer.latent_kernel),)


@_register(kernels_of, (layers.Dense, *_GROUPED))
def _(layer):
    return (Kernel(layer.kernel),)


@kernels_of.register
def _(layer: layers.Embedding):
    # A row that is looked up is one-hot inputs times the table.
    return (Kernel(layer.embeddings),)


@_register(kernels_of, _TRANSPOSED)
def _(layer):
    space = range(layer.rank)
    return (Kernel(layer.kernel, axes=(*space, layer.rank + 1, layer.rank)),)


def _depthwise_kernel(layer, variable, part=""):
    # A unit sees one channel: a kernel's last two axes are channels and units of each.
    return Kernel(variable, part, summed=layer.rank, groups=variable.shape[-2])


@_register(kernels_of, _DEPTHWISE)
def _(layer):
    return (_depthwise_kernel(layer, layer.kernel),)


@_register(kernels_of, _SEPARABLE)
def _(layer):
    return (
        _depthwise_kernel(layer, layer.depthwise_kernel, "depthwise_kernel"),
        Kernel(layer.pointwise_kernel, "pointwise_kernel"),
    )


def _einsum_axes(layer):
    """Axes of inputs and kernel that are summed; None where that is not all that they share."""
    operands, of_outputs = layer.equation.replace("...", "").split("->")
    of_inputs, of_kernel = operands.split(",")
    shared = [axis for axis in of_kernel if axis in of_inputs]
    first = not layer.equation.startswith("...") and of_inputs[0] in shared
    if set(shared) & set(of_outputs) or not shared or first:
        return None
    return of_inputs, of_kernel, shared


@kernels_of.register
def _(layer: layers.EinsumDense):
    # The axes of the kernel that the inputs lack are the units.
    _, of_kernel, shared = _einsum_axes(layer)
    order = [*shared, *(axis for axis in of_kernel if axis not in shared)]
    return (Kernel(layer.kernel, axes=tuple(map(of_kernel.index, order)), summed=len(shared)),)


@_register(kernels_of, _CELLS)
def _(layer):
    return Kernel(layer.kernel, "kernel"), Kernel(layer.recurrent_kernel, "recurrent_kernel")


# --- Products ---------------------------------------------------------------------------------


@dataclass
class Product:
    """A product of inputs and kernel, as a layer has just formed it.

    Attributes
    ----------
    layer : keras.layers.Layer
    inputs : tensor
        A^c, what the layer was called on; in EinsumDense with the axes that are summed as one, at
        the end, and in Embedding the numbers of the rows, shape (..., 1).
    kernel : tensor, shape (..., units)
        w^c, in the basis in which it is quantized.
    dot : callable
        dot(inputs, kernel): products as this layer forms them, float32, shape (..., units), of
        inputs and kernels of these shapes, without the bias.
    part : str
        Name of the kernel in a layer that has several.
    input_quantizer, kernel_quantizer : graph_ops.Quantizer or None
    window : Window or None
        The patches that are multiplied; None where it is the last axis of the inputs.
    name : str
        The layer's; its path where several layers have that name; with the part after a dot.
    outputs : tensor or None
        What the layer returned, where that is the product of quantized inputs and kernel itself.
    """

    layer: keras.layers.Layer
    inputs: tf.Tensor = field(repr=False)
    kernel: tf.Tensor = field(repr=False)
    dot: Callable = field(repr=False)
    part: str = ""
    input_quantizer: graph_ops.Quantizer | None = None
    kernel_quantizer: graph_ops.Quantizer | None = None
    window: Window | None = None
    name: str = ""
    outputs: tf.Tensor | None = field(default=None, repr=False)

    @functools.cached_property
    def quantized_inputs(self) -> tf.Tensor:
        """A^b = θ(A^c), what is multiplied: A^c itself without an input quantizer."""
        return self.inputs if self.input_quantizer is None else self.input_quantizer(self.inputs)

    @functools.cached_property
    def quantized_kernel(self) -> tf.Tensor:
        """w^b = θ(w^c): w^c itself without a kernel quantizer."""
        return self.kernel if self.kernel_quantizer is None else self.kernel_quantizer(self.kernel)


@functools.singledispatch
def products_of(
    layer: keras.Layer, *inputs: tf.Tensor | Sequence[tf.Tensor]
) -> tuple[Product, ...]:
    """The products that a layer forms when it is called on `inputs`: a tuple of `Product`."""
    del layer, inputs
    return ()


@products_of.register
def _(layer: layers.PReLU, *inputs):
    return ()  # Slopes: nothing is summed.


def _as_floats(layer, inputs, kernel, dot, window=None):
    require(not obstacle(layer), f"layer {layer.name} {obstacle(layer)}: it cannot be measured")
    inputs, columns = (
        tf.cast(tf.convert_to_tensor(v), tf.float32) for v in (inputs, kernel.columns())
    )
    return Product(layer, inputs, columns, dot, kernel.part, window=window)


def _window_of(layer):
    return Window(layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding)


@_register(products_of, (graph_ops.QuantConv2D, graph_ops.QuantDense))
def _(layer, inputs):
    return (
        Product(
            layer,
            tf.convert_to_tensor(inputs),
            layer.coordinates(),
            lambda x, kernel: layer.dot_products(x, layer.kernel_of(kernel)),
            input_quantizer=layer.input_quantizer,
            kernel_quantizer=layer.kernel_quantizer,
            window=_window_of(layer) if isinstance(layer, graph_ops.QuantConv2D) else None,
        ),
    )


@products_of.register
def _(layer: layers.Dense, inputs):
    return (_as_floats(layer, inputs, *kernels_of(layer), tf.matmul),)


@products_of.register
def _(layer: layers.Embedding, inputs):
    rows = tf.convert_to_tensor(inputs)[..., None]

    def dot(rows, kernel):
        return tf.gather(kernel, tf.cast(rows[..., 0], tf.int32))

    return (_as_floats(layer, rows, *kernels_of(layer), dot),)


@_register(products_of, _GROUPED)
def _(layer, inputs):
    window = _window_of(layer) if layer.rank == 2 else None
    return (_as_floats(layer, inputs, *kernels_of(layer), layer.convolution_op, window=window),)


@_register(products_of, _TRANSPOSED)
def _(layer, inputs):
    def dot(x, kernel):
        return keras.ops.conv_transpose(
            x,
            keras.ops.swapaxes(kernel, -1, -2),
            list(layer.strides),
            layer.padding,
            layer.output_padding,
            layer.data_format,
            layer.dilation_rate,
        )

    return (_as_floats(layer, inputs, *kernels_of(layer), dot),)


def _depthwise(layer, kernel):
    shape = (*kernel.variable.shape[:-1], -1)

    def dot(x, columns):
        return keras.ops.depthwise_conv(
            x,
            tf.reshape(columns, shape),
            layer.strides,
            layer.padding,
            layer.data_format,
            layer.dilation_rate,
        )

    return dot


@_register(products_of, _DEPTHWISE)
def _(layer, inputs):
    (kernel,) = kernels_of(layer)
    return (_as_floats(layer, inputs, kernel, _depthwise(layer, kernel)),)


@_register(products_of, _SEPARABLE)
def _(layer, inputs):
    depthwise, pointwise = kernels_of(layer)
    each = _as_floats(layer, inputs, depthwise, _depthwise(layer, depthwise))
    between = each.dot(each.inputs, each.kernel)
    # A kernel of one position is a matrix.
    dot = lambda x, kernel: tf.matmul(x, tf.reshape(kernel, kernel.shape[-2:]))  # noqa: E731
    return each, _as_floats(layer, between, pointwise, dot)


@products_of.register
def _(layer: layers.EinsumDense, inputs):
    require(not obstacle(layer), f"layer {layer.name} {obstacle(layer)}: it cannot be measured")
    of_inputs, _, shared = _einsum_axes(layer)
    inputs = tf.convert_to_tensor(inputs)
    # An ellipsis stands for the axes that have no letter.
    rank, start = inputs.shape.rank, layer.equation.find("...")
    named = list(range(rank))
    if start >= 0:
        extra = rank - len(of_inputs)
        named = [*range(start), *range(start + extra, rank)]
    summed = [named[of_inputs.index(axis)] for axis in shared]
    rows = [axis for axis in range(rank) if axis not in summed]
    size = math.prod(inputs.shape[axis] for axis in summed)
    arranged = tf.transpose(inputs, (*rows, *summed))
    arranged = tf.reshape(arranged, (*arranged.shape[: len(rows)], size))

    def dot(x, kernel):
        return tf.matmul(x, tf.reshape(kernel, (size, kernel.shape[-1])))

    return (_as_floats(layer, arranged, *kernels_of(layer), dot),)


@_register(products_of, _CELLS)
def _(layer, inputs, states):
    hidden = states[0] if isinstance(states, list | tuple) else states
    of_input, of_state = kernels_of(layer)
    return (
        _as_floats(layer, inputs, of_input, tf.matmul),
        _as_floats(layer, hidden, of_state, tf.matmul),
    )
