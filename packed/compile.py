"""A Keras model as a program of integer steps.

Batch norm and quantizer of a unit only rise, so together they are one integer threshold (ternary:
two) on its dot products. It is found by asking the float graph's own functions at every integer
that the unit can reach. Max pooling, which rises too, comes after the threshold, on bits.
"""

import dataclasses
import functools
from dataclasses import dataclass

import graph_ops
import walk
from packed.program import (
    ALWAYS,
    NEVER,
    Levels,
    Logic,
    PixelsProduct,
    Pool,
    Product,
    Program,
    Reshape,
    Scores,
    Shortcut,
    Slices,
    Threshold,
)
from utils import require

# isort: split
import keras
import numpy as np
import tensorflow as tf

BITS = (graph_ops.Sign, graph_ops.Ternary)
# Products whose thresholds are looked for in one go, which bounds the memory.
ROWS = 512


def compile_model(model: keras.Model, about: dict | None = None) -> Program:
    """The program that computes what a Keras model computes, bit for bit.

    Parameters
    ----------
    model : keras.Model
        Functional or sequential, from uint8 images to scores, made of `QuantConv2D`, `QuantDense`,
        2×2 max pooling (SAME), `ShiftBatchNormalization`, Flatten, Activation, `PixelSlices`,
        `LogicMerge`, and Add where it adds signs to batch norm. All kernels, and the inputs of all
        layers with a kernel but the first, are quantized by `Sign` or `Ternary`. Strides and
        padding are free.
    about : dict, optional
        See `Program`.

    Returns
    -------
    Program

    Raises
    ------
    ValueError
        If it cannot be packed; the message names the layer and the reason.
    """
    graph = walk.graph_of(model)
    require(graph is not None, f"cannot pack: the model {model.name} is not functional")
    require(
        len(graph.inputs) == len(graph.outputs) == 1,
        f"cannot pack: the model {model.name} has several inputs or outputs",
    )
    images = model.inputs[0]
    in_dim = tuple(images.shape[1:])
    require(
        images.dtype == "uint8" and len(in_dim) == 3 and None not in in_dim,
        f"cannot pack: the inputs of {model.name} are no uint8 images of one size",
    )
    compiler = _Compiler(graph.inputs[0], in_dim)
    for step in graph.steps:
        compiler.add(step)
    out_dim = compiler.finish(graph.outputs[0], graph.steps[-1].layer)
    return Program(in_dim, out_dim, compiler.steps, about or {})


def _require(condition, layer, why):
    require(condition, f"cannot pack: layer {layer.name} {why}")


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the float graph, as what the program has to do for it.

    Attributes
    ----------
    number : int
        Of the value in the program from which it comes: images, bits or a layer's products.
    shape : tuple of int
        Without the axis of images.
    kind : {'pixels', 'integers', 'binary'}
        Of that value.
    rescale : callable, optional
        Takes integer products to those of the float graph.
    added : int, optional
        Number of the value of bits that is added to what the functions give.
    functions : tuple of (layer, ndim)
        What is done to every unit of the products, and the number of axes that it takes.
    moves : tuple of (type, str)
        Pooling and flattening: the steps, and their names.
    """

    number: int
    shape: tuple = ()
    kind: str = "pixels"
    rescale: object = None
    added: int | None = None
    functions: tuple = ()
    moves: tuple = ()

    def then(self, function):
        ndim = len(self.shape) + 1
        return dataclasses.replace(self, functions=(*self.functions, (function, ndim)))

    def moved(self, kind, name):
        return dataclasses.replace(self, moves=(*self.moves, (kind, name)))

    @property
    def quantizer(self):
        """The last function, if it quantizes to bits."""
        last = self.functions[-1][0] if self.functions else None
        return last if type(last) in BITS else None


class _Compiler:
    """Goes along a model's operations and collects the program's steps."""

    def __init__(self, images, in_dim):
        self.steps = []
        self._tensors = {images: _Tensor(0, in_dim)}
        self._bits = {}  # Numbers of the values of bits that were made of a tensor.

    # The float graph

    def add(self, step):
        """Take in one operation of the model."""
        layer = step.layer
        handle = _KNOWN.get(type(layer))
        why = _REFUSED.get(type(layer), f"is a {type(layer).__name__}, which has no integer form")
        _require(handle is not None, layer, why)
        _require(not any(step.kwargs.values()), layer, "is called with options")
        _require(
            not layer.autocast or layer.compute_dtype == "float32",
            layer,
            f"rounds to {layer.compute_dtype}: give it the dtype float32",
        )
        (written,) = step.writes
        read = [self._tensors[slot.number] for slot in keras.tree.flatten(step.args)]
        shapes = [(None, *x.shape) for x in read]
        _, *shape = layer.compute_output_shape(shapes if len(read) > 1 else shapes[0])
        made = handle(self, layer, *read)
        self._tensors[written] = dataclasses.replace(made, shape=tuple(shape))

    def _product(self, layer, x):
        _check_product(layer)
        kernel = keras.ops.convert_to_numpy(layer.quantized_kernel()).astype(np.int8)
        options = {}
        if isinstance(layer, graph_ops.QuantConv2D):
            options = {"strides": tuple(layer.strides), "padding": layer.padding}
        elif len(x.shape) == 3:
            kernel = kernel[None, None]  # A matrix at every position of images.
        if x.kind == "pixels":
            _require(layer.input_quantizer is None, layer, "quantizes pixels")
            read, kind, dtype = self._moved(x.number, x.moves), PixelsProduct, tf.uint8
        else:
            read, kind, dtype = self._read_bits(layer, x), Product, tf.float32
        step = kind.of_weights(layer.name, (read,), kernel, **options)
        rescale = functools.partial(graph_ops.rescale_pixels, input_dtype=dtype)
        return _Tensor(self._append(step), kind="integers", rescale=rescale)

    def _levels(self, layer, x):
        _require(x.kind == "pixels", layer, "rounds what are no pixels")
        table = keras.ops.convert_to_numpy(layer(np.arange(256, dtype=np.uint8)))
        read = self._moved(x.number, x.moves)
        return _Tensor(self._append(Levels(layer.name, (read,), table=table)))

    def _slices(self, layer, x):
        _require(x == _Tensor(0, x.shape), layer, "does not read the images themselves")
        step = Slices(layer.name, (0,), layer.slices, layer.thresholds)
        return _Tensor(self._append(step), kind="binary")

    def _logic(self, layer, *read):
        numbers = tuple(self._read_bits(layer, x) for x in read)
        step = Logic(layer.name, numbers, layer.operation)
        return _Tensor(self._append(step), kind="binary")

    def _add(self, layer, *read):
        bits = [x for x in read if self._is_binary(x)]
        sums = [x for x in read if not self._is_binary(x)]
        _require(len(bits) == len(sums) == 1, layer, "is a shortcut of floats")
        only_norm = len(sums[0].functions) == 1 and sums[0].added is None and not sums[0].moves
        _require(only_norm, layer, "adds bits to something else than batch norm")
        return dataclasses.replace(sums[0], added=self._read_bits(layer, bits[0]))

    @staticmethod
    def _is_binary(x):
        return x.kind == "binary" or type(x.quantizer) is graph_ops.Sign

    def _pool(self, layer, x):
        two = (2, 2)
        _require(
            tuple(layer.pool_size) == tuple(layer.strides) == two
            and layer.padding == "same"
            and layer.data_format == "channels_last",
            layer,
            "pools otherwise than 2×2 with the padding 'same'",
        )
        _require(x.kind != "pixels", layer, "pools pixels")
        return x.moved(Pool, layer.name)

    def _norm(self, layer, x):
        _require(x.kind != "pixels", layer, "normalizes pixels")
        _require(x.kind == "integers" and x.added is None, layer, "normalizes bits or a shortcut")
        units = self.steps[x.number - 1].kernel[-1]
        _require(x.shape[-1] == units, layer, "normalizes each pixel: put Flatten after it")
        statistics = [keras.ops.convert_to_numpy(getattr(layer, n)) for n in Scores.held]
        finite = all(np.isfinite(v).all() for v in statistics) and (statistics[1] >= 0).all()
        _require(finite, layer, "holds NaN, infinity or a negative variance")
        return x.then(layer)

    def _flatten(self, layer, x):
        _require(layer.data_format == "channels_last", layer, "puts channels first")
        return x if len(x.shape) == 1 else x.moved(Reshape, layer.name)

    def _activation(self, layer, x):
        function = layer.activation
        if function is keras.activations.linear:
            return x
        _require(x.kind != "pixels", layer, "quantizes pixels")
        _check_quantizer(layer, function, "its activation")
        return self._quantized(x, function)

    def _quantized(self, x, quantizer):
        """Signs of signs are what they were."""
        again = type(quantizer) is graph_ops.Sign and self._is_binary(x)
        return x if quantizer is None or again else x.then(quantizer)

    # The program

    def _append(self, step):
        self.steps.append(step)
        return len(self.steps)

    def _moved(self, read, moves):
        for kind, name in moves:
            read = self._append(kind(name, (read,)))
        return read

    def _read_bits(self, layer, x):
        """Number of the value that holds the bits a layer reads, which is made once."""
        quantizer = getattr(layer, "input_quantizer", None)
        if quantizer is not None:
            _check_quantizer(layer, quantizer, "its input quantizer")
            x = self._quantized(x, quantizer)
        if x.kind == "binary":
            _require(not x.functions, layer, "quantizes bits again")
        else:
            why = "multiplies floats: its inputs are not quantized"
            _require(x.quantizer is not None, layer, why)
        if x not in self._bits:
            bits = x.number if x.kind == "binary" else self._append(self._threshold(layer, x))
            self._bits[x] = self._moved(bits, x.moves)
        return self._bits[x]

    def _threshold(self, layer, x):
        product = self.steps[x.number - 1]
        ternary = type(x.quantizer) is graph_ops.Ternary
        find = functools.partial(_thresholds, product, x.rescale, x.functions)
        name = f"{product.name}_threshold"
        if x.added is not None:
            _require(not ternary, layer, "makes a shortcut of bits ternary")
            upper = np.stack([find(added)[1] for added in (-1, 1)])
            return Shortcut(f"{product.name}_shortcut", (x.number, x.added), upper)
        lower, upper = find()
        # With a threshold of 0 a ternary quantizer is a sign for all whole numbers.
        ternary = ternary and _reach_zero(product, lower, upper)
        limits = {"upper": upper} | ({"lower": lower} if ternary else {})
        return Threshold(name, (x.number,), ternary=ternary, **limits)

    def finish(self, number, layer):
        """Append the scores; how many there are."""
        x = self._tensors[number]
        functions = [function for function, _ in x.functions]
        _require(
            [type(f) for f in functions] == [graph_ops.ShiftBatchNormalization] and x.added is None,
            layer,
            "does not end the model as batch norm of dot products",
        )
        product = self.steps[x.number - 1]
        _require(
            all(kind is Reshape for kind, _ in x.moves) and len(x.shape) == 1,
            layer,
            "does not end the model with a vector of scores",
        )
        read = self._moved(x.number, x.moves)
        norm = {n: keras.ops.convert_to_numpy(getattr(functions[0], n)) for n in Scores.held}
        scale = 1 / 255 if isinstance(product, PixelsProduct) else 1.0
        self._append(Scores(functions[0].name, (read,), scale=scale, **norm))
        return product.kernel[-1]


_KNOWN = {
    graph_ops.QuantConv2D: _Compiler._product,
    graph_ops.QuantDense: _Compiler._product,
    graph_ops.PixelLevels: _Compiler._levels,
    graph_ops.MaxPooling2D: _Compiler._pool,
    graph_ops.ShiftBatchNormalization: _Compiler._norm,
    graph_ops.PixelSlices: _Compiler._slices,
    graph_ops.LogicMerge: _Compiler._logic,
    keras.layers.Add: _Compiler._add,
    keras.layers.Flatten: _Compiler._flatten,
    keras.layers.Activation: _Compiler._activation,
}
_REFUSED = {
    graph_ops.RotatedConv2D: "is rotated, so its weights are no bits",
    walk.Cast: "gives a model inside pixels as floats: its input should have the dtype uint8",
}


def _check_quantizer(layer, quantizer, whose):
    _require(
        type(quantizer) in BITS, layer, f"is no bits: {whose} is not the sign or its ternary form"
    )
    _require(not quantizer.follows_data, layer, f"is no bits: {whose} depends on the batch")


def _check_product(layer):
    _require(
        type(layer.kernel_quantizer) in BITS,
        layer,
        "is no bits: its kernel quantizer is not the sign or its ternary form",
    )
    _require(not layer.use_bias, layer, "has a bias")
    linear = layer.activation is keras.activations.linear
    _require(linear, layer, "has an activation of its own")
    dilation = getattr(layer, "dilation_rate", (1, 1))
    _require(tuple(dilation) == (1, 1), layer, "is dilated")


def _reach_zero(product, lower, upper):
    """Does a product lie between the two thresholds of any unit?"""
    largest = product.largest
    below = np.clip(lower.astype(np.int64), -largest - 1, largest)
    above = np.clip(upper.astype(np.int64), -largest, largest + 1)
    return bool((above - below > 1).any())


def _thresholds(product, rescale, functions, added=0):
    """Products at which each unit's output rises, found by asking the float graph itself.

    Parameters
    ----------
    product : Product
    rescale : callable
        Takes whole numbers to the products of the float graph.
    functions : sequence of (callable, ndim)
        Batch norm and quantizers, in order.
    added : float
        To what batch norm, the first of them, gives.

    Returns
    -------
    lower, upper : ndarray of int32, shape (units,)
        A unit's output is −1 up to `lower` (meaningless for binary) and +1 from `upper`.
    """
    largest, units = product.largest, product.kernel[-1]
    negative, below_positive = 0, 0
    for start in range(-largest, largest + 1, ROWS):
        products = np.arange(start, min(start + ROWS, largest + 1), dtype=np.float32)
        out = rescale(tf.constant(np.repeat(products[:, None], units, axis=1)))
        for place, (function, ndim) in enumerate(functions):
            out = function(tf.reshape(out, [-1, *[1] * (ndim - 2), units]))
            out = out + added if place == 0 and added else out
        out = keras.ops.convert_to_numpy(out).reshape(-1, units)
        negative += np.sum(out < 0, axis=0)
        below_positive += np.sum(out <= 0, axis=0)
    # Batch norm and quantizer only rise, so counts are places.
    total = 2 * largest + 1
    lower = np.where(
        negative == 0, ALWAYS, np.where(negative == total, NEVER, negative - largest - 1)
    )
    upper = np.where(below_positive == 0, ALWAYS, below_positive - largest)
    upper = np.where(below_positive == total, NEVER, upper)
    return lower.astype(np.int32), upper.astype(np.int32)
