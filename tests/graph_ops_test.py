"""Layers against NumPy: quantized products, batch norm, pooling, and the paper's blocks."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from example_networks import model_of_all_layers
from oracles import (
    cosine,
    gradient,
    numpy_batch_norm,
    numpy_convolution,
    numpy_max_pool,
    numpy_sign,
    numpy_ternary,
    signs,
    ternaries,
)

import graph_ops
from graph_ops import QuantConv2D, QuantDense, Sign, Ternary, Uniform

ROOT = Path(__file__).resolve().parent.parent


def product_of(block):
    """The layer of a block that multiplies."""
    return block.layers[0]


def norm_of(block):
    (norm,) = [v for v in block.layers if isinstance(v, graph_ops.ShiftBatchNormalization)]
    return norm


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- Quantized products -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "same"},
        {"padding": "same", "strides": 2},
        {"padding": "valid", "strides": (2, 3)},
        {"padding": "same", "dilation_rate": (2, 1)},
        {"padding": "valid", "dilation_rate": 2},
        {"padding": "same", "use_bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [3, (2, 3)])
def test_quantized_convolution_is_numpys(size, options):
    layer = QuantConv2D(
        4, size, Sign(), Ternary(0.1), bias_initializer=keras.initializers.RandomNormal(), **options
    )
    x = normal(2, 9, 8, 3)
    found = layer(x)
    kernel = numpy_ternary(layer.latent_kernel.numpy(), 0.1)
    expected = numpy_convolution(
        numpy_sign(x), kernel, layer.strides, layer.dilation_rate, layer.padding
    )
    expected += layer.bias.numpy() if layer.use_bias else 0
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(layer(x, training=True), found)
    assert layer.compute_output_shape(x.shape) == expected.shape


@pytest.mark.parametrize("shape", [(5, 7), (2, 4, 7)])
def test_quantized_matrix_is_numpys(shape):
    layer = QuantDense(3, Uniform(4, scale=2.0), "sign", activation="relu")
    x = normal(*shape)
    found = layer(x)
    inputs = np.clip(np.rint(x / 2 * 7), -7, 7) * 2 / 7
    expected = np.maximum(inputs @ numpy_sign(layer.latent_kernel.numpy()), 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_without_quantizers_it_is_keras_own_layer():
    x = normal(2, 6, 6, 3)
    ours, theirs = QuantConv2D(4, 3), keras.layers.Conv2D(4, 3)
    for layer in (ours, theirs):
        layer.build(x.shape)
    theirs.set_weights(ours.get_weights())
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-6)
    assert ours.kernel_constraint is None


def test_the_gradient_is_straight_through_and_reaches_inputs_and_latent_weights():
    layer = QuantDense(3, Sign(), Sign(), use_bias=False)
    x, upstream = 1.5 * normal(5, 4), normal(5, 3, seed=1)
    layer.build(x.shape)
    layer.latent_kernel.assign(1.5 * normal(4, 3, seed=2))
    latent = layer.latent_kernel.numpy()
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        out = layer(inputs, training=True)
    of_x, of_w = tape.gradient(out, [inputs, layer.latent_kernel.value], tf.constant(upstream))
    expected = upstream @ numpy_sign(latent).T * (np.abs(x) <= 1)
    np.testing.assert_allclose(of_x, expected, atol=1e-5)
    expected = numpy_sign(x).T @ upstream * (np.abs(latent) <= 1)
    np.testing.assert_allclose(of_w, expected, atol=1e-5)


def test_inference_is_float32_under_mixed_precision():
    x = normal(2, 6, 6, 5)
    mixed = QuantConv2D(4, 3, kernel_quantizer="sign", dtype="mixed_bfloat16")
    twin = QuantConv2D(4, 3, kernel_quantizer="sign")
    for layer in (mixed, twin):
        layer.build(x.shape)
    twin.set_weights(mixed.get_weights())
    assert mixed.latent_kernel.dtype == mixed.bias.dtype == "float32"
    assert mixed(x).dtype == tf.float32
    np.testing.assert_array_equal(mixed(x), twin(x))
    assert mixed(x, training=True).dtype == tf.bfloat16


@pytest.mark.parametrize("make", [QuantConv2D, keras.layers.Conv2D])
def test_a_whole_model_may_have_a_mixed_policy(make):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = keras.Sequential([keras.Input((6, 6, 2)), make(4, 3), keras.layers.Flatten()])
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.layers[0].kernel.dtype == "float32"
    assert np.isfinite(model.predict(normal(2, 6, 6, 2), verbose=0)).all()


def test_uint8_means_two_x_over_255_minus_one():
    x = np.random.default_rng(3).integers(0, 256, (3, 5, 5, 2), dtype=np.uint8)
    layer = QuantConv2D(4, 3, kernel_quantizer="sign", padding="same")
    scaled = (2 * x.astype(np.float32) - 255) / 255
    np.testing.assert_allclose(layer(x), layer(scaled), rtol=1e-5, atol=1e-5)
    products = layer.dot_products(x, layer.quantized_kernel()).numpy() * 255
    np.testing.assert_allclose(products, np.rint(products), atol=1e-3)


@pytest.mark.parametrize("basis", ["rotation", "whitening"])
def test_kernels_are_quantized_in_another_basis(basis):
    layer = graph_ops.RotatedConv2D(4, 2, kernel_quantizer="sign", basis=basis, padding="same")
    layer.build((None, 5, 5, 3))
    latent = layer.latent_kernel.numpy().reshape(12, 4)
    np.testing.assert_array_equal(layer.quantized_kernel(), numpy_sign(latent).reshape(2, 2, 3, 4))
    matrix = np.linalg.qr(normal(12, 12))[0] if basis == "rotation" else normal(12, 12)
    layer.basis_matrix.assign(matrix)
    found = layer.quantized_kernel().numpy().reshape(12, 4)
    if basis == "rotation":
        expected = matrix.T @ numpy_sign(matrix @ latent)
        np.testing.assert_allclose(
            layer.continuous_kernel().numpy().reshape(12, 4), latent, atol=1e-5
        )
    else:
        expected = matrix @ numpy_sign(latent)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not any(v is layer.basis_matrix for v in layer.trainable_variables)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantConv2D(4, 3, data_format="channels_first"), "channels last"),
        (lambda: QuantConv2D(4, 3, groups=2), "QuantConv2D has no groups, not 2"),
        (lambda: QuantConv2D(4, 3, "no such"), "no quantizer named 'no such'"),
        (lambda: QuantDense(4, kernel_quantizer="no such"), "no quantizer named 'no such'"),
        (lambda: QuantDense(4, kernel_quantizer=3), "a quantizer is Sign"),
        (lambda: QuantConv2D(4, 3, Ternary(sigma=0.6)), "would depend on the other images"),
        (lambda: QuantDense(4, Uniform(4)), "would depend on the other images"),
        (lambda: QuantDense(4, graph_ops.LloydMax(4)), "would depend on the other images"),
        (lambda: graph_ops.RotatedConv2D(4, 3, basis="no such"), "basis must be 'rotation'"),
        (lambda: QuantConv2D(4, 3)(normal(5, 6, 3)), "expected ndim=4"),
        (lambda: QuantDense(4)(normal(5)), "expected min_ndim=2"),
        (lambda: called_twice(QuantConv2D(4, 3), (2, 6, 6, 3), (2, 6, 6, 5)), "value 3"),
        (lambda: called_twice(QuantDense(4), (2, 3), (2, 5)), "value 3"),
    ],
)
def test_layers_refuse_what_they_cannot_do_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def called_twice(layer, first, second):
    layer(normal(*first))
    layer(normal(*second))


# --- Products counted in bits -----------------------------------------------------------------


def counted_calls(monkeypatch):
    calls, count = [], graph_ops.counted_conv2d
    monkeypatch.setattr(
        graph_ops, "counted_conv2d", lambda *args: calls.append(args) or count(*args)
    )
    return calls


@pytest.mark.parametrize("quantizer", ["binary", "ternary"])
def test_layers_count_in_training_what_they_would_multiply(quantizer, monkeypatch):
    calls = counted_calls(monkeypatch)
    values = signs if quantizer == "binary" else ternaries
    x = tf.constant(values(np.random.default_rng(0), 2, 6, 6, 64), tf.float32)
    layers = [
        QuantConv2D(8, 3, inputs, quantizer, padding="same", kernel_initializer=initializer)
        for inputs in (None, quantizer)
        for initializer in [keras.initializers.GlorotUniform(1)]
    ]
    multiplied, in_bits = (layer(x, training=True) for layer in layers)
    assert len(calls) == 1
    np.testing.assert_array_equal(in_bits, multiplied)


def test_training_and_inference_quantize_inputs_of_any_size(monkeypatch):
    calls = counted_calls(monkeypatch)
    layer = QuantConv2D(8, 3, Sign(), Sign(), padding="same")
    x = np.random.default_rng(0).choice(np.float32([-2, 0, 2]), (2, 6, 6, 64))
    trained, inferred = layer(x, training=True), layer(x)
    assert len(calls) == 1
    np.testing.assert_array_equal(trained, inferred)
    kernel = numpy_sign(layer.latent_kernel.numpy())
    expected = numpy_convolution(np.where(x >= 0, 1.0, -1.0), kernel)
    np.testing.assert_array_equal(trained, expected)


def test_a_layer_that_trains_in_bfloat16_is_counted_elsewhere(monkeypatch):
    calls = []
    monkeypatch.setattr(
        graph_ops, "convolve", lambda images, _: calls.append(images.dtype.name) or images
    )
    monkeypatch.setattr(
        graph_ops, "counted_conv2d", lambda images, *_: calls.append("counted") or images
    )
    layer = QuantConv2D(64, 3, Sign(), Sign(), padding="same", dtype="mixed_bfloat16")
    x = tf.constant(signs(np.random.default_rng(0), 2, 6, 6, 64), tf.float32)
    layer.build(x.shape)
    layer.products(x, training=True)
    layer.products(x)
    layer.products(x, counted=True)
    assert calls == ["bfloat16", "float32", "counted"]


@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        (lambda: QuantConv2D(8, 3, None, "binary", padding="same"), 64),  # Pixels.
        (lambda: QuantConv2D(8, 3, "clip", "binary", padding="same"), 64),
        (lambda: QuantConv2D(8, 3, "ternary", "binary", padding="same"), 64),
        (lambda: QuantConv2D(8, 3, "binary", "binary", padding="same"), 63),
        (lambda: QuantConv2D(8, 3, "binary", "binary", padding="valid"), 64),
        (lambda: QuantConv2D(8, 3, "binary", "binary", padding="same", strides=2), 64),
        (lambda: QuantConv2D(8, 3, "binary", "binary", padding="same", dilation_rate=2), 64),
        (lambda: graph_ops.RotatedConv2D(8, 3, "binary", "binary", padding="same"), 64),
        (lambda: QuantConv2D(8, 3, "clip", None, padding="same"), 64),
        (lambda: QuantConv2D(8, 3, "binary", graph_ops.LloydMax(2), padding="same"), 64),
    ],
)
def test_layers_count_nothing_but_bits(layer, channels, monkeypatch):
    calls = counted_calls(monkeypatch)
    layer()(normal(1, 6, 6, channels), training=True, counted=True)
    assert not calls


# --- Images of few levels ---------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 4, 16, 86])
def test_pixels_are_rounded_to_the_nearest_level(levels):
    pixels, layer = np.arange(256, dtype=np.uint8), graph_ops.PixelLevels(levels)
    spaced = np.linspace(0, 255, levels)
    nearest = spaced[np.abs(pixels[:, None] - spaced).argmin(axis=1)]
    rounded = layer(pixels)
    assert rounded.dtype == tf.uint8
    np.testing.assert_array_equal(rounded, nearest)
    floats = tf.constant((2 * pixels.astype(np.float32) - 255) / 255)
    np.testing.assert_allclose(layer(floats), (2 * nearest - 255) / 255, atol=1e-6)
    np.testing.assert_array_equal(gradient(layer, floats, np.ones(256, np.float32)), 1)


@pytest.mark.parametrize("levels", [None, 1, 3, 256, 2.0])
def test_levels_that_are_no_whole_pixels_are_refused(levels):
    with pytest.raises(ValueError, match="levels"):
        graph_ops.PixelLevels(levels)


# --- Batch norm -------------------------------------------------------------------------------


def test_batch_norm_gradient_is_that_of_keras():
    x, upstream = normal(2, 8, 5)
    ours, theirs = (
        graph_ops.ShiftBatchNormalization(),
        keras.layers.BatchNormalization(scale=False),
    )
    for layer in (ours, theirs):
        layer.build(x.shape)
    got, expected = (
        gradient(lambda x, layer=layer: layer(x, training=True), x, upstream)
        for layer in (ours, theirs)
    )
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 5), (4, 6, 5), (4, 3, 6, 5)])
def test_batch_norm_takes_statistics_over_all_axes_but_the_last(shape):
    x, layer = 3 * normal(*shape) + 1, graph_ops.ShiftBatchNormalization(momentum=0.5)
    layer.build(shape)
    layer.beta.assign(normal(5))
    axes = tuple(range(x.ndim - 1))
    mean, variance = x.mean(axes), x.var(axes)
    expected = (x - mean) / np.sqrt(variance + 1e-3) + layer.beta.numpy()
    np.testing.assert_allclose(layer(x, training=True), expected, atol=1e-4)
    np.testing.assert_allclose(layer.moving_mean, mean / 2, atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, (1 + variance) / 2, rtol=1e-4)
    np.testing.assert_allclose(layer(x), numpy_batch_norm(x, layer), atol=1e-4)


# --- The paper's blocks -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7), (6, 6), (1, 3)])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_convolution_pads_with_zeros_and_pooling_rounds_up(shape, size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *shape, 3)).astype(np.float32)
    block = graph_ops.BinaryConv2D(4, size, pool=True, activation_quantizer=None)
    block.build(x.shape)
    norm = norm_of(block)
    norm.moving_mean.assign(rng.standard_normal(4))
    norm.moving_variance.assign(rng.uniform(0.5, 2, 4))
    norm.beta.assign(rng.standard_normal(4))
    products = numpy_convolution(x, numpy_sign(product_of(block).latent_kernel.numpy()))
    expected = numpy_batch_norm(numpy_max_pool(products), norm)
    np.testing.assert_allclose(block(x), expected, rtol=1e-4, atol=1e-4)
    assert block.compute_output_shape(x.shape) == expected.shape


def test_pooling_comes_before_batch_norm_in_training():
    x = normal(4, 6, 6, 2, seed=1)
    block = graph_ops.BinaryConv2D(3, pool=True, activation_quantizer=None)
    block.build(x.shape)
    out, norm = block(x, training=True).numpy(), norm_of(block)
    kernel = numpy_sign(product_of(block).latent_kernel.numpy())
    pooled = numpy_max_pool(numpy_convolution(x, kernel))
    mean, variance = pooled.mean((0, 1, 2)), pooled.var((0, 1, 2))
    np.testing.assert_allclose(
        out, (pooled - mean) / np.sqrt(variance + 1e-3), rtol=1e-3, atol=1e-4
    )
    # The moving averages start at 0 and 1 and follow the batch's mean and biased variance.
    np.testing.assert_allclose(norm.moving_mean, 0.01 * mean, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, 0.99 + 0.01 * variance, rtol=1e-3, atol=1e-5)


def test_no_gradient_flows_through_the_sigma_threshold():
    layer = QuantDense(4, kernel_quantizer=Ternary(sigma=0.6))
    layer.build((None, 6))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer.quantized_kernel())
    # All latent weights start well inside [−1, 1], so each passes exactly the upstream 1.
    np.testing.assert_array_equal(tape.gradient(total, layer.latent_kernel.value), np.ones((6, 4)))


def test_sigma_threshold_follows_the_latent_weights():
    block = graph_ops.BinaryDense(64, weight_quantizer="ternary", threshold_sigma=0.612)
    block.build((None, 256))
    layer, weights = product_of(block), normal(256, 64)
    for scale in (0.01, 0.1):
        layer.latent_kernel.assign(scale * weights)
        zeros = np.mean(layer.quantized_kernel().numpy() == 0)
        assert zeros == pytest.approx(np.mean(np.abs(weights) <= 0.612 * weights.std()), abs=1e-3)


@pytest.mark.parametrize(
    ("thresholds", "activations"),
    [
        ({"threshold": 0.2}, 0.2),
        ({"threshold_sigma": 0.2}, 0.2),
        ({"threshold": 0.2, "activation_threshold": 0.5}, 0.5),
        ({"threshold_sigma": 0.2, "activation_threshold": 0.0}, 0.0),
        ({"threshold": 0.0}, 0.0),
        ({}, 0.02),
    ],
)
def test_activations_have_the_weights_threshold_unless_given_another(thresholds, activations):
    both = {"weight_quantizer": "ternary", "activation_quantizer": "ternary"}
    block = graph_ops.BinaryDense(8, **both, **thresholds)
    block.build((None, 16))
    layer = product_of(block)
    layer.latent_kernel.assign(np.linspace(-1, 1, 128, dtype=np.float32).reshape(16, 8))
    values = np.linspace(-1, 1, 41, dtype=np.float32)
    np.testing.assert_array_equal(
        block.layers[-1](tf.constant(values)), numpy_ternary(values, activations)
    )
    latent = layer.latent_kernel.numpy()
    threshold = thresholds.get("threshold", 0.02)
    if "threshold_sigma" in thresholds:
        threshold = thresholds["threshold_sigma"] * latent.std()
    np.testing.assert_array_equal(layer.quantized_kernel(), numpy_ternary(latent, threshold))


def test_a_blocks_inference_is_float32_under_mixed_precision():
    x = normal(5, 16, seed=4)
    block = graph_ops.BinaryDense(8, activation_quantizer=None, dtype="mixed_bfloat16")
    twin = graph_ops.BinaryDense(8, activation_quantizer=None)
    for one in (block, twin):
        one.build(x.shape)
    twin.set_weights(block.get_weights())
    assert block(x, training=False).dtype == tf.float32
    np.testing.assert_array_equal(block(x), twin(x))
    assert product_of(block).latent_kernel.dtype == norm_of(block).moving_mean.dtype == "float32"


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_block_takes_pixels_and_floats(policy):
    x = np.random.default_rng(3).integers(0, 256, (3, 5, 5, 2), dtype=np.uint8)
    scaled = (2 * x.astype(np.float32) - 255) / 255
    keras.config.set_dtype_policy(policy)
    try:
        block = graph_ops.BinaryConv2D(4, pool=True, activation_quantizer=None)
    finally:
        keras.config.set_dtype_policy("float32")
    inputs = keras.Input((5, 5, 2), dtype="uint8")
    model = keras.Model(inputs, block(inputs))
    kernel = numpy_sign(product_of(block).latent_kernel.numpy())
    products = numpy_max_pool(numpy_convolution(np.float64(scaled), kernel))
    expected = numpy_batch_norm(products, norm_of(block))
    for found in (block(x), block(scaled), model(x)):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_latent_weights_are_clipped_after_each_step():
    block = graph_ops.BinaryDense(3, activation_quantizer=None)
    model = keras.Sequential([keras.layers.Input((4,)), block])
    model.compile(keras.optimizers.SGD(100.0), "mse")
    product_of(block).latent_kernel.assign(np.full((4, 3), 0.9))
    model.fit(normal(8, 4, seed=6), np.eye(3)[np.arange(8) % 3], verbose=0)
    assert np.abs(product_of(block).latent_kernel.numpy()).max() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_quantizer": "no such"}, "no quantizer named 'no such'"),
        ({"activation_quantizer": "no such"}, "no quantizer named 'no such'"),
        ({"weight_quantizer": "ternary", "threshold": -1.0}, "threshold must be"),
        ({"weight_quantizer": "ternary", "threshold": float("nan")}, "threshold must be"),
        (
            {"weight_quantizer": "ternary", "threshold": 0.1, "threshold_sigma": 0.6},
            "exclude each other",
        ),
        ({"activation_quantizer": "ternary", "activation_threshold": -0.1}, "threshold must be"),
    ],
)
def test_blocks_refuse_what_they_cannot_do(options, message):
    with pytest.raises(ValueError, match=message):
        graph_ops.BinaryDense(3, **options)
    with pytest.raises(ValueError, match="kernel_size must be a whole number"):
        graph_ops.BinaryConv2D(3, 0)


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (lambda **options: graph_ops.BinaryConv2D(64, **options), (4, 16, 16, 64)),
        (lambda **options: graph_ops.BinaryConv2D(64, pool=True, **options), (4, 8, 8, 64)),
        # Side by side: more than a row of images, and a kernel that wants wider gaps.
        (lambda **options: graph_ops.BinaryConv2D(32, 5, **options), (13, 7, 6, 16)),
        (lambda **options: graph_ops.BinaryDense(128, **options), (64, 512)),
    ],
    ids=["conv", "conv and pool", "narrow conv", "dense"],
)
def test_one_layers_gradients_in_bfloat16_are_those_in_float32(block, shape, runs_bfloat16):
    rng = np.random.default_rng(8)
    x = rng.choice([-1.0, 1.0], shape).astype(np.float32)
    gradients, latent, upstream = [], None, None
    for dtype in ("float32", "mixed_bfloat16"):
        # Without a quantizer: which activations rounding moves across ±1 is not at issue.
        made = block(activation_quantizer=None, dtype=dtype)
        made.build(shape)
        layer = product_of(made)
        latent = layer.latent_kernel.numpy() if latent is None else latent
        layer.latent_kernel.assign(latent)
        inputs = tf.constant(x, layer.compute_dtype)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            out = inputs
            for part in made.layers:
                out = part(out, training=True)
        upstream = rng.standard_normal(out.shape) if upstream is None else upstream
        assert out.dtype == layer.compute_dtype
        gradients.append(
            tape.gradient(
                out,
                [layer.latent_kernel.value, inputs],
                output_gradients=tf.constant(upstream, out.dtype),
            )
        )
    for exact, rounded in zip(*gradients, strict=True):
        assert cosine(exact, tf.cast(rounded, tf.float32)) >= 0.995


def test_products_with_pixels_in_bfloat16_are_those_in_float32(runs_bfloat16):
    x = tf.constant(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8))
    products = []
    for dtype in ("float32", "mixed_bfloat16"):
        options = {"kernel_initializer": keras.initializers.GlorotUniform(1), "dtype": dtype}
        layer = QuantConv2D(64, 3, None, "sign", padding="same", **options)
        products.append(tf.cast(layer(x, training=True), tf.float32).numpy())
    np.testing.assert_allclose(products[1], products[0], rtol=0.01, atol=0.01)


# --- In a model of Keras ----------------------------------------------------------------------


def test_blocks_work_in_any_keras_model(tmp_path):
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            graph_ops.BinaryConv2D(4, pool=True),
            keras.layers.Flatten(),
            graph_ops.BinaryDense(3, weight_quantizer="ternary", threshold=0.05),
            keras.layers.Dense(2),
        ]
    )
    model.compile("adam", "mse")
    x, y = normal(2, 16, 8, 8, 1, seed=5)
    model.fit(x, y[:, :2, 0, 0], verbose=0)
    model.save(tmp_path / "model.keras")
    opened = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(opened.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_new_process_opens_the_model_after_importing_graph_ops(tmp_path):
    model, x = model_of_all_layers(), normal(6, 8, 8, 2)
    model.compile("adam", "mse")
    model.fit(x, normal(6, 5), verbose=0)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    script = """if True:
        import graph_ops
        import sys
        import keras
        import numpy as np

        model = keras.models.load_model(sys.argv[1] + "/model.keras")
        x = np.load(sys.argv[1] + "/x.npy")
        np.save(sys.argv[1] + "/y.npy", model.predict(x, verbose=0))
    """
    command = [sys.executable, "-c", script, str(tmp_path)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), model.predict(x, verbose=0))
