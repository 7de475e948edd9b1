"""A packed program as QONNX, the interchange format of tools for FPGAs such as FINN and hls4ml.

Images come in as pixels and become the odd integers 2x − 255. Weights pass through `BipolarQuant`
(±1) or `Quant` (ternary), and so do activations: batch norm and quantizer are one shift before it,
to half-way between two whole numbers, so that no rounding decides.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from export.c import inverse_deviation
from packed.program import (
    Levels,
    Logic,
    Pool,
    Product,
    Program,
    Reshape,
    Scores,
    Shortcut,
    Slices,
    Threshold,
)

if TYPE_CHECKING:
    import onnx

DOMAIN = "qonnx.custom_op.general"
OPSET = 13


def model_of(program: Program, about: dict | None = None, batch: int = 1) -> "onnx.ModelProto":
    """The QONNX model of a program.

    Parameters
    ----------
    program : packed.program.Program
    about : dict, optional
        What the network is, for the model's metadata: text by name.
    batch : int
        Images at once: tools for hardware want a fixed number.

    Returns
    -------
    onnx.ModelProto
        From `images`, float32 pixels 0 … 255 of shape (batch, rows, columns, channels), to
        `scores`.

    Raises
    ------
    ImportError
        If the package onnx is not installed.
    ValueError
        If the program has a step that it cannot translate; the message names it.
    """
    from onnx import helper

    graph = _Graph(program, batch)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(
        graph.made(), opset_imports=opsets, producer_name="export", ir_version=8
    )
    helper.set_model_props(model, {k: str(v) for k, v in (about or {}).items()})
    return model


class _Graph:
    """Collects nodes and constants; images inside are NCHW, as ONNX has it."""

    def __init__(self, program, batch):
        from onnx import helper, numpy_helper

        self._helper, self._numpy = helper, numpy_helper
        self._program, self._batch = program, batch
        self._nodes, self._constants = [], []
        names = [self._pixels()]
        for step, value in zip(program.steps, program.values[1:], strict=True):
            reads = [names[number] for number in step.inputs]
            names.append(self._step(step, reads, program.values[step.inputs[0]], value))
        self._node("Identity", [names[-1]], output="scores")

    def made(self):
        """The graph."""
        from onnx import TensorProto

        info = self._helper.make_tensor_value_info
        images = info("images", TensorProto.FLOAT, (self._batch, *self._program.in_dim))
        scores = info("scores", TensorProto.FLOAT, (self._batch, self._program.out_dim))
        return self._helper.make_graph(self._nodes, "network", [images], [scores], self._constants)

    def _constant(self, name, array):
        array = np.ascontiguousarray(array)
        name = f"{name}_{len(self._constants)}"
        self._constants.append(self._numpy.from_array(array, name))
        return name

    def _float(self, name, value):
        return self._constant(name, np.asarray(value, np.float32))

    def _node(self, kind, inputs, output=None, **attributes):
        output = output or f"{kind.lower()}_{len(self._nodes)}"
        node = self._helper.make_node(kind, inputs, [output], name=f"{output}_node", **attributes)
        if kind in ("Quant", "BipolarQuant"):
            node.domain = DOMAIN
        self._nodes.append(node)
        return output

    def _pixels(self):
        read = self._node("Transpose", ["images"], perm=[0, 3, 1, 2])
        doubled = self._node("Mul", [read, self._float("two", 2)])
        return self._node("Sub", [doubled, self._float("white", 255)])

    def _quantized(self, read, ternary):
        scale = self._float("scale", 1)
        if not ternary:
            return self._node("BipolarQuant", [read, scale])
        rest = [self._float("zero_point", 0), self._float("bits", 2)]
        options = {"signed": 1, "narrow": 1, "rounding_mode": "ROUND"}
        return self._node("Quant", [read, scale, *rest], **options)

    def _step(self, step, reads, value, made):
        read = reads[0]
        match step:
            case Levels():
                odd = self._float(step.name, 2 * step.table.astype(np.float32) - 255)
                pixels = self._node("Add", [read, self._float("white", 255)])
                pixels = self._node("Div", [pixels, self._float("two", 2)])
                index = self._node("Cast", [pixels], to=7)  # To int64.
                return self._node("Gather", [odd, index])
            case Product():
                return self._product(step, read, value, made)
            case Threshold():
                return self._threshold(step, read, value)
            case Slices():
                return self._slices(step, read, value)
            case Shortcut():
                return self._shortcut(step, *reads)
            case Logic():
                return self._node("Max" if step.operation == "or" else "Mul", reads)
            case Pool():
                ends = [size % 2 for size in value.shape[:2]]
                window = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, *ends]}
                return self._node("MaxPool", [read], **window)
            case Reshape():
                if len(value.shape) == 3:
                    read = self._node("Transpose", [read], perm=[0, 2, 3, 1])
                shape = np.int64([self._batch, math.prod(value.shape)])
                return self._node("Reshape", [read, self._constant("shape", shape)])
            case Scores():
                return self._scores(step, read)
        raise ValueError(f"cannot write QONNX: the step {step.name} is a {step.kind}")

    def _product(self, step, read, value, made):
        weights = step.weights.astype(np.float32)
        if len(step.kernel) == 4:
            weights = weights.transpose(3, 2, 0, 1)
        weights = self._quantized(self._float(f"{step.name}_weights", weights), step.ternary)
        if len(step.kernel) == 2:
            return self._node("MatMul", [read, weights])
        pads = [(0, 0), (0, 0)]
        if step.padding == "same":
            axes = zip(made.shape, step.strides, step.kernel, value.shape, strict=False)
            missing = [max(0, (n - 1) * stride + taps - size) for n, stride, taps, size in axes][:2]
            pads = [(n // 2, n - n // 2) for n in missing]
        return self._node(
            "Conv",
            [read, weights],
            kernel_shape=list(step.kernel[:2]),
            strides=list(step.strides),
            pads=[pads[0][0], pads[1][0], pads[0][1], pads[1][1]],
        )

    def _threshold(self, step, read, value):
        # Whole numbers of a product, and limits beyond all of them, are exact in float32.
        beyond = self._source(step).largest + 1
        planes = (step.upper, step.lower) if step.ternary else (step.upper,)
        limits = [np.clip(v.astype(np.int64), -beyond, beyond) for v in planes]
        shape = (-1, 1, 1) if len(value.shape) == 3 else (-1,)
        if not step.ternary:
            shift = self._float(f"{step.name}_shift", (limits[0] - 0.5).reshape(shape))
            return self._quantized(self._node("Sub", [read, shift]), ternary=False)
        # Quant rounds at ±1/2: there must be the ends of what becomes 0.
        low, high = limits[1] + 0.5, limits[0] - 0.5
        shift = self._float(f"{step.name}_shift", ((low + high) / 2).reshape(shape))
        width = np.maximum(high - low, 0.25)
        width = self._float(f"{step.name}_width", (1 / width).reshape(shape))
        scaled = self._node("Mul", [self._node("Sub", [read, shift]), width])
        return self._quantized(scaled, ternary=True)

    def _slices(self, step, read, value):
        rows, columns, channels = value.shape
        shapes = (channels, 1, rows, columns), (channels * step.slices, rows, columns)
        apart, joined = (self._constant("shape", np.int64([self._batch, *s])) for s in shapes)
        # Pixels are odd integers here, and these limits are even.
        limits = 2.0 * step.thresholds.reshape(-1, 1, 1) - 256
        read = self._node("Reshape", [read, apart])
        read = self._node("Sub", [read, self._float(f"{step.name}_limits", limits)])
        return self._node("Reshape", [self._quantized(read, ternary=False), joined])

    def _shortcut(self, step, read, bits):
        beyond = self._source(step).largest + 1
        off, on = np.clip(step.upper.astype(np.int64), -beyond, beyond).reshape(2, -1, 1, 1)
        # Half-way between two whole numbers for either bit, as in `_threshold`.
        slope = self._float(f"{step.name}_slope", (off - on) / 2)
        shift = self._float(f"{step.name}_shift", (off + on - 1) / 2)
        added = self._node("Add", [read, self._node("Mul", [bits, slope])])
        return self._quantized(self._node("Sub", [added, shift]), ternary=False)

    def _source(self, step):
        """The product whose whole numbers a threshold reads."""
        while not isinstance(step, Product):
            step = self._program.steps[step.inputs[0] - 1]
        return step

    def _scores(self, step, read):
        if step.scale != 1:
            read = self._node("Mul", [read, self._float("pixel_scale", step.scale)])
        less = self._node("Sub", [read, self._float("moving_mean", step.moving_mean)])
        factor = self._float("inverse_deviation", inverse_deviation(step))
        normal = self._node("Mul", [less, factor])
        return self._node("Add", [normal, self._float("beta", step.beta)])
