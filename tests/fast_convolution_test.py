"""Gradients of convolutions, and products counted in bits, against the framework's own."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from oracles import gradients_of, relative_error, signs, ternaries

from fast import convolution


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_filters_see_the_same_images_side_by_side(size):
    rng = np.random.default_rng(size)
    # Small whole numbers: every sum is exact in bfloat16's float32 accumulators.
    images = rng.integers(-1, 2, (13, 3, 6, 4)).astype(np.float32)
    upstream = rng.integers(-1, 2, (13, 3, 6, 2)).astype(np.float32)
    found = []
    for dtype in (tf.float32, tf.bfloat16):
        with tf.GradientTape() as tape:
            kernel = tf.zeros((size, size, 4, 2), dtype)
            tape.watch(kernel)
            products = convolution.convolve(tf.constant(images, dtype), kernel)
        found.append(tape.gradient(products, kernel, tf.constant(upstream, dtype)).numpy())
    assert np.abs(found[0]).max() > 5
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("rows", "columns", "channels", "filters"),
    [(8, 8, 40, 24), (5, 7, 32, 3), (1, 1, 33, 5), (14, 2, 32, 32), (32, 32, 64, 32)],
)
def test_winograd_gradients_are_those_of_the_convolution(rows, columns, channels, filters):
    rng = np.random.default_rng(rows)
    shapes = [(3, rows, columns, channels), (3, 3, channels, filters), (3, rows, columns, filters)]
    exact = [rng.standard_normal(shape) for shape in shapes]
    expected = gradients_of(lambda *tensors: tf.nn.conv2d(*tensors, 1, "SAME"), *exact)
    found = convolution.winograd_gradients(*[tf.constant(t, tf.float32) for t in exact])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert relative_error(ours.numpy(), theirs) < 1e-5


@pytest.mark.parametrize(
    ("size", "channels", "dtype", "used"),
    [
        (3, 32, "float32", True),
        (3, 31, "float32", False),
        (5, 32, "float32", False),
        (1, 32, "float32", False),
        (3, 32, "bfloat16", False),
    ],
)
def test_winograd_is_for_float32_filters_of_3_by_3_with_many_channels(
    size, channels, dtype, used, monkeypatch
):
    asked, winograd = [], convolution.winograd_gradients
    monkeypatch.setattr(
        convolution, "winograd_gradients", lambda *args: asked.append(args) or winograd(*args)
    )
    rng = np.random.default_rng(0)
    # Whole numbers small enough for bfloat16.
    images, kernel, upstream = (
        rng.integers(-1, 2, shape).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        for shape in ((2, 6, 6, channels), (size, size, channels, 2), (2, 6, 6, 2))
    )
    found = gradients_of(convolution.convolve, images, kernel, upstream)
    assert bool(asked) == used
    exact = [t.astype(np.float64) for t in (images, kernel, upstream)]
    expected = gradients_of(lambda *tensors: tf.nn.conv2d(*tensors, 1, "SAME"), *exact)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours.astype(np.float64), theirs) < 1e-5


def test_images_of_unknown_size_have_gradients_too():
    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 32))])
    def gradient(images):
        return tf.gradients(convolution.convolve(images, tf.ones((3, 3, 32, 2))), images)[0]

    np.testing.assert_array_equal(
        gradient(tf.zeros((1, 3, 3, 32)))[0, :, :, 0], [[8, 12, 8], [12, 18, 12], [8, 12, 8]]
    )


@pytest.mark.parametrize("values", [signs, ternaries], ids=["binary", "ternary"])
@pytest.mark.parametrize("channels, size", [(64, 3), (70, 2), (5, 1)])
def test_counted_convolution_has_the_products_and_gradients_of_the_multiplied_one(
    values, channels, size
):
    rng = np.random.default_rng(channels)
    images = tf.constant(values(rng, 3, 5, 4, channels), tf.float32)
    kernel = tf.constant(values(rng, size, size, channels, 33), tf.float32)
    upstream = tf.constant(rng.standard_normal((3, 5, 4, 33)), tf.float32)

    def counted(images, kernel):
        return convolution.counted_conv2d(images, kernel, values is ternaries)

    products = counted(images, kernel)
    np.testing.assert_array_equal(products, tf.nn.conv2d(images, kernel, 1, "SAME"))
    tensors = images, kernel, upstream
    for ours, theirs in zip(
        gradients_of(counted, *tensors),
        gradients_of(convolution.convolve, *tensors),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
