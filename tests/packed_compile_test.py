"""Keras models as programs of integer steps: which steps, and what is refused."""

import numpy as np
import pytest

import graph_ops
from bnn import BinaryNeuralNetwork, NetworkParams, PackedNetwork
from packed.compile import compile_model
from packed.program import ALWAYS, NEVER

# isort: split
import keras

quantized = {"input_quantizer": "sign", "kernel_quantizer": "sign", "use_bias": False}
norm, flatten = graph_ops.ShiftBatchNormalization, keras.layers.Flatten


def conv(filters=4, size=3, **options):
    return graph_ops.QuantConv2D(filters, size, **(quantized | {"padding": "same"} | options))


def dense(units=4, **options):
    return graph_ops.QuantDense(units, **(quantized | options))


def first(**options):
    return conv(input_quantizer=None, **options)


def model_of(*layers, dtype="uint8", shape=(6, 5, 3)):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers])


def test_steps_follow_the_layers():
    scores = keras.layers.Activation("linear")
    model = model_of(
        *(first(strides=2), graph_ops.MaxPooling2D(), norm()),
        *(conv(kernel_quantizer="ternary"), norm(), flatten(), dense(), norm(), scores),
    )
    program = compile_model(model, {"a": 1})
    assert [(step.kind, step.inputs) for step in program.steps] == [
        ("pixels product", (0,)),
        ("threshold", (1,)),
        ("pool", (2,)),
        ("product", (3,)),
        ("threshold", (4,)),
        ("reshape", (5,)),
        ("product", (6,)),
        ("scores", (7,)),
    ]
    assert program.about == {"a": 1}
    assert [step.ternary for step in program.steps[:5:3]] == [False, True]


@pytest.mark.parametrize("quantizer", [graph_ops.Sign(), graph_ops.Ternary(0.3)])
def test_thresholds_are_where_the_float_graph_rises(quantizer):
    layer, after = first(filters=9, size=1), norm()
    model = model_of(
        layer, after, conv(input_quantizer=quantizer), norm(), flatten(), dense(), norm()
    )
    rng = np.random.default_rng(0)
    after.moving_mean.assign(rng.normal(0, 1, 9))
    after.moving_variance.assign(rng.uniform(0, 2, 9))
    after.beta.assign([1e6, -1e6, *rng.normal(0, 0.5, 7)])
    threshold = compile_model(model).steps[1]
    products = np.arange(-3 * 255, 3 * 255 + 1)
    scaled = np.float32(products)[:, None] * np.float32(1 / 255)
    out = quantizer(after(np.broadcast_to(scaled[:, None, None], (len(products), 1, 1, 9))))
    out = np.asarray(out).reshape(len(products), 9)
    np.testing.assert_array_equal(products[:, None] >= threshold.upper, out > 0)
    assert threshold.upper[0] == ALWAYS
    assert threshold.upper[1] == NEVER
    if threshold.ternary:
        np.testing.assert_array_equal(products[:, None] <= threshold.lower, out < 0)
        assert threshold.lower[0] == ALWAYS
        assert threshold.lower[1] == NEVER


# --- Refusals ---------------------------------------------------------------------------------

end = lambda: [flatten(), dense(), norm()]  # noqa: E731
REFUSED = {
    "float convolution": (
        lambda: [first(), norm(), keras.layers.Conv2D(4, 3, name="x"), *end()],
        "layer x is a Conv2D, which has no integer form",
    ),
    "float weights": (
        lambda: [first(), norm(), conv(kernel_quantizer=None, name="x"), *end()],
        "layer x is no bits: its kernel quantizer",
    ),
    "many levels": (
        lambda: [
            first(),
            norm(),
            conv(input_quantizer=graph_ops.Uniform(2, 1.0), name="x"),
            *end(),
        ],
        "layer x is no bits: its input quantizer",
    ),
    "clipped activations": (
        lambda: [first(), norm(), conv(input_quantizer=graph_ops.Clip(), name="x"), *end()],
        "layer x is no bits: its input quantizer",
    ),
    "float activations": (
        lambda: [first(), norm(), conv(input_quantizer=None, name="x"), *end()],
        "layer x multiplies floats",
    ),
    "thresholds of a batch": (
        lambda: [
            *(first(), norm()),
            keras.layers.Activation(graph_ops.Ternary(sigma=0.6), name="x"),
            *end(),
        ],
        "layer x is no bits: its activation depends on the batch",
    ),
    "relu": (
        lambda: [first(), norm(), keras.layers.Activation("relu", name="x"), *end()],
        "layer x is no bits: its activation",
    ),
    "softmax": (
        lambda: [first(), norm(), *end(), keras.layers.Activation("softmax", name="x")],
        "layer x is no bits: its activation",
    ),
    "activation of a layer": (
        lambda: [first(activation="relu", name="x"), norm(), *end()],
        "layer x has an activation of its own",
    ),
    "bias": (lambda: [first(use_bias=True, name="x"), norm(), *end()], "layer x has a bias"),
    "dilation": (
        lambda: [first(dilation_rate=2, name="x"), norm(), *end()],
        "layer x is dilated",
    ),
    "rotation": (
        lambda: [
            graph_ops.RotatedConv2D(4, 3, kernel_quantizer="sign", use_bias=False, name="x"),
            *(norm(), *end()),
        ],
        "layer x is rotated, so its weights are no bits",
    ),
    "quantized pixels": (lambda: [conv(name="x"), norm(), *end()], "layer x quantizes pixels"),
    "normalized pixels": (lambda: [norm(name="x"), *end()], "layer x normalizes pixels"),
    "pooled pixels": (
        lambda: [graph_ops.MaxPooling2D(name="x"), first(), norm(), *end()],
        "layer x pools pixels",
    ),
    "large pooling": (
        lambda: [first(), graph_ops.MaxPooling2D(3, name="x"), norm(), *end()],
        "layer x pools otherwise",
    ),
    "valid pooling": (
        lambda: [first(), graph_ops.MaxPooling2D(2, "valid", name="x"), norm(), *end()],
        "layer x pools otherwise",
    ),
    "Keras' batch norm": (
        lambda: [first(), keras.layers.BatchNormalization(name="x"), *end()],
        "layer x is a BatchNormalization",
    ),
    "batch norm of each pixel": (
        lambda: [first(), flatten(), norm(name="x"), dense(), norm()],
        "layer x normalizes each pixel",
    ),
    "no batch norm at the end": (
        lambda: [first(), norm(), flatten(), dense(name="x")],
        "layer x does not end the model",
    ),
    "pixels at the end": (lambda: [flatten(name="x")], "layer x does not end the model"),
    "images at the end": (
        lambda: [first(), norm(), conv(), norm(name="x")],
        "layer x does not end the model with a vector",
    ),
    "pooling at the end": (
        lambda: [first(strides=3), graph_ops.MaxPooling2D(), flatten(), norm(name="x")],
        "layer x does not end the model with a vector",
    ),
    "rounding": (
        lambda: [first(), norm(), flatten(dtype="mixed_bfloat16", name="x"), dense(), norm()],
        "layer x rounds to bfloat16",
    ),
    "pixels cast by a model inside": (
        lambda: [keras.Sequential([first(), norm()], name="b"), *end()],
        "gives a model inside pixels as floats",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_packed_is_refused(name):
    layers, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"cannot pack: .*{message}"):
        compile_model(model_of(*layers()))


def test_several_outputs_are_refused():
    x = keras.Input((6, 6, 3), dtype="uint8")
    y = norm()(first()(x))
    outputs = [norm()(dense()(flatten()(y))) for _ in range(2)]
    with pytest.raises(ValueError, match=r"cannot pack: .* has several inputs or outputs"):
        compile_model(keras.Model(x, outputs))


def test_a_float_shortcut_is_refused():
    x = keras.Input((6, 6, 3), dtype="uint8")
    y = norm()(first()(x))
    y = keras.layers.Add(name="x")([y, norm()(conv()(y))])
    model = keras.Model(x, norm()(dense()(flatten()(y))))
    with pytest.raises(ValueError, match="cannot pack: layer x is a shortcut of floats"):
        compile_model(model)


def test_statistics_that_are_no_numbers_are_refused():
    model = model_of(first(), norm(name="x"), *end())
    model.get_layer("x").moving_variance.assign([1, np.nan, 1, 1])
    with pytest.raises(ValueError, match="layer x holds NaN"):
        compile_model(model)


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"shape": (None, 5, 3)}])
def test_other_images_are_refused(options):
    model = model_of(first(), norm(), conv(), **options)
    with pytest.raises(ValueError, match="no uint8 images of one size"):
        compile_model(model)


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="is not functional"):
        compile_model(Own())


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"bin_weights": False, "bin_acts": False}, "bin_weights leaves layers unquantized"),
        ({"bin_acts": [1, 0, 1, 1]}, "bin_acts leaves layers unquantized"),
        ({"rotate_first": "pca"}, "its first layer is rotated, so its weights are no bits"),
        ({"network": "residual"}, "its shortcuts are floats"),
    ],
)
def test_a_network_that_cannot_be_packed_is_refused(params, reason):
    params = {"conv": [5, 6], "max_pool": [0, 1], "fc": [7], **params}
    network = BinaryNeuralNetwork((9, 7, 2), 4, NetworkParams(**params))
    with pytest.raises(ValueError, match=f"cannot pack: {reason}"):
        PackedNetwork.from_network(network)
