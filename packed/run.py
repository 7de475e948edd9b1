"""XLA runs a program of integer steps.

All of them are one compiled function, so that XLA fuses a convolution with its thresholds and the
packing of its bits. Weights are its arguments: constants would be folded for minutes.
"""

import dataclasses
import math
import os
from typing import Protocol, Self

import graph_ops
from fast import bits, compiled
from packed.compile import compile_model
from packed.program import (
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
from stream import INFERENCE_BATCH
from utils import NetworkParams, require, require_packable

# isort: split
import keras
import numpy as np
import tensorflow as tf


class Trained(Protocol):
    """A network that knows its parameters and its Keras model, as `BinaryNeuralNetwork` does."""

    @property
    def network_params(self) -> NetworkParams:
        """What the network is."""

    @property
    def model(self) -> keras.Model:
        """From uint8 images to scores."""


class PackedNetwork:
    """A trained binary or ternary network on bits: the same answers, from XNOR and popcount.

    Activations between layers never leave bits, the first layer multiplies 8-bit pixels as
    integers, and the output's batch norm is the float network's own function: hidden bits and
    scores are those of the float network on the same uint8 images, bit for bit.

    `from_network` and `load` make one.

    Parameters
    ----------
    program : Program

    Attributes
    ----------
    program : Program
    in_dim : (height, width, channels)
    out_dim : int
    """

    def __init__(self, program: Program):
        self.program = program
        self.in_dim, self.out_dim = program.in_dim, program.out_dim
        self._depths = _depths(program)
        self._tensors = [self._prepared(step) for step in program.steps]
        # The tensors are captured: to pass them costs one image alone a millisecond.
        self._forward = compiled(lambda images: self._products(images, self._tensors))

    # Packing

    @classmethod
    def from_network(cls, network: keras.Model | Trained) -> Self:
        """Pack a trained network.

        Parameters
        ----------
        network : BinaryNeuralNetwork or keras.Model
            A Keras model is one that `packed.compile.compile_model` takes.

        Raises
        ------
        ValueError
            If it cannot be packed; the message tells the reason.
        """
        if isinstance(network, keras.Model):
            return cls(compile_model(network))
        require_packable(network.network_params)
        about = {"network_params": dataclasses.asdict(network.network_params)}
        return cls(compile_model(network.model, about))

    def save(self, path: str | os.PathLike) -> None:
        """Write the network to `path`, whole or not at all; see `Program.save`."""
        self.program.save(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Open what `save` wrote; see `Program.load`.

        Raises
        ------
        FileNotFoundError
            If there is no file at `path`.
        ValueError
            If it is not such a file, or is damaged.
        """
        return cls(Program.load(path))

    # Inference

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Scores, equal to those of the float32 network.

        Parameters
        ----------
        x : ndarray, shape (n, height, width, channels)
            uint8, or float32 that is 2u/255 − 1 for whole numbers u.

        Returns
        -------
        ndarray of float32, shape (n, classes)

        Raises
        ------
        ValueError
            If the images do not have this shape, type or grid.
        """
        x = self._as_pixels(np.asarray(x))
        batch = min(len(x), INFERENCE_BATCH)
        scores = []
        for start in range(0, len(x), batch):
            images = x[start : start + batch]
            # Always full: XLA compiles once for each size that it meets.
            full = np.pad(images, ((0, batch - len(images)), (0, 0), (0, 0), (0, 0)))
            products = self._forward(tf.constant(full))
            scores.append(self.scores_of(products)[: len(images)])
        return np.concatenate(scores)

    def classify(self, x: np.ndarray) -> np.ndarray:
        """Labels with the highest score, integers of shape (n,); `x` as in `predict`."""
        return self.predict(x).argmax(axis=1)

    def hidden_bits(self, x: np.ndarray) -> list[np.ndarray | tuple[np.ndarray, np.ndarray]]:
        """Packed activations of every layer but the output, for tests and for the curious.

        Returns
        -------
        list of ndarray of uint64, shape (n, height, width, words)
            Or pairs of them, the planes (nonzero, sign), of ternary activations. After pooling,
            before they are flattened.
        """
        steps = self.program.steps
        pooled = {step.inputs[0] for step in steps if isinstance(step, Pool)}
        wanted = [
            number
            for number, step in enumerate(steps, 1)
            if isinstance(step, Threshold | Pool) and number not in pooled
        ]

        def hidden(images, tensors):
            values = self._values(images, tensors)
            return [values[number] for number in wanted]

        found = compiled(hidden)(tf.constant(self._as_pixels(np.asarray(x))), self._tensors)
        planes = [tuple(map(keras.ops.convert_to_numpy, planes)) for planes in found]
        return [parts if len(parts) == 2 else parts[0] for parts in planes]

    def _as_pixels(self, x):
        require(
            x.ndim == 4 and x.shape[1:] == self.in_dim and len(x),
            f"images must have the shape (n, {', '.join(map(str, self.in_dim))}), not {x.shape}",
        )
        if x.dtype == np.uint8:
            return x
        require(x.dtype == np.float32, f"images must be uint8 or float32, not {x.dtype}")
        with np.errstate(invalid="ignore"):
            pixels = np.rint((x + 1) * 127.5).clip(0, 255).astype(np.uint8)
        on_grid = np.abs(pixels.astype(np.float32) / 127.5 - 1 - x) < 1e-6
        require(on_grid.all(), "float32 images must hold 2u/255 − 1 for whole numbers u")
        return pixels

    def scores_of(self, products: np.ndarray | tf.Tensor) -> np.ndarray:
        """Scores of dot products of the output layer.

        Parameters
        ----------
        products : ndarray or tensor of float32, shape (n, classes)
            Whole numbers.

        Returns
        -------
        ndarray of float32, shape (n, classes)
        """
        last, norm = self.program.steps[-1], self._tensors[-1]
        scores = graph_ops.shift_batch_norm(products * last.scale, *norm)
        return keras.ops.convert_to_numpy(scores)

    # Steps

    def _prepared(self, step):
        """A step's arrays as the integer arithmetic takes them."""
        if isinstance(step, PixelsProduct):
            return [tf.constant(step.weights.astype(np.float32))]
        if isinstance(step, Product):
            names = ["nonzero", "sign"] if self._counts_zeros(step) else ["sign"]
            return [self._arranged(step.plane(name), step) for name in names]
        if isinstance(step, Threshold):
            return [tf.constant(v) for v in (step.lower, step.upper) if v is not None]
        return [tf.constant(getattr(step, name)) for name in step.held]

    def _counts_zeros(self, step):
        """Is a weight or an activation of a product 0?"""
        return step.ternary or self.program.values[step.inputs[0]].kind == "ternary"

    def _arranged(self, plane, step):
        """One plane of a kernel, packed as the activations that it meets are packed."""
        # The words of a flattened image's positions lie side by side, each padded to whole words.
        height, width = step.kernel[:-2] or (1, 1)
        units, depth = step.kernel[-1], self._depths[step.inputs[0]]
        plane = plane.reshape(height, width, -1, depth, units)
        words = bits.pack_bits(np.moveaxis(plane, -1, 2).astype(np.int8) - 1)
        return bits.arrange_kernel(tf.reshape(words, (height, width, units, -1)))

    def _products(self, images, tensors):
        """Dot products of the output layer, float32 whole numbers."""
        read = self.program.steps[-1].inputs[0]
        return tf.cast(self._values(images, tensors)[read][:, 0, 0], tf.float32)

    def _values(self, images, tensors):
        """The images and what every step but the scores makes, by number.

        Vectors are images of one position, bits are tuples of planes.
        """
        values = [images]
        for step, arrays in zip(self.program.steps, tensors, strict=True):
            if not isinstance(step, Scores):
                values.append(self._done(step, arrays, *(values[n] for n in step.inputs)))
        return values

    def _done(self, step, arrays, x, other=None):
        match step:
            case Levels():
                return tf.gather(arrays[0], tf.cast(x, tf.int32))
            case PixelsProduct(kernel=(_, _)):
                return bits.pixel_matmul(x[:, 0, 0], arrays[0])[:, None, None]
            case PixelsProduct():
                return bits.pixel_conv2d(x, arrays[0], step.strides, step.padding)
            case Product():
                return self._multiplied(step, x, arrays)
            case Threshold(ternary=True):
                return bits.threshold_ternary(x, *arrays)
            case Threshold():
                return (bits.threshold_bits(x, *arrays),)
            case Slices():
                above = x[..., None] >= arrays[0]
                shape = (*x.shape[:-1], step.slices * x.shape[-1])
                return (bits.pack_flags(tf.reshape(above, shape)),)
            case Shortcut():
                return (bits.threshold_shortcut(x, *other, arrays[0]),)
            case Logic(operation="or"):
                return (x[0] | other[0],)
            case Logic():
                return (~(x[0] ^ other[0]) & self._all_ones(step.inputs[0]),)
            case Pool():
                return bits.max_pool_ternary(x) if len(x) == 2 else (bits.max_pool_bits(*x),)
            case Reshape():
                return tf.nest.map_structure(_flat, x)

    def _all_ones(self, number):
        """The words of a position of a value all of whose bits are 1."""
        depth, channels = self._depths[number], self.program.values[number].shape[-1]
        return tf.reshape(bits.pack_bits(np.ones((channels // depth, depth), np.int8)), [-1])

    def _multiplied(self, step, x, planes):
        *_, channels, units = step.kernel
        window = step.strides, step.padding
        if not self._counts_zeros(step):
            return bits.xnor_conv2d(x[0], planes[0], channels, units, *window)
        if len(x) == 1:
            # Of ±1 everything that is there is not zero.
            x = tf.zeros_like(x[0]) | self._all_ones(step.inputs[0]), x[0]
        return bits.ternary_conv2d(x, planes, units, *window)


def _depths(program):
    """For each value, how many neighbours on its last axis share whole words."""
    depths = [program.in_dim[-1]]
    for step, value in zip(program.steps, program.values[1:], strict=True):
        flat = isinstance(step, Reshape)
        depths.append(depths[step.inputs[0]] if flat else value.shape[-1])
    return depths


def _flat(part):
    return tf.reshape(part, (part.shape[0], 1, 1, math.prod(part.shape[1:])))
