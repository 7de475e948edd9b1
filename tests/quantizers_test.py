"""Quantizers of one's own."""

import numpy as np
import pytest
import tensorflow as tf

import graph_ops
from bnn import BinaryNeuralNetwork, NetworkParams


def test_a_quantizers_name_is_taken_once():
    for name, activations, message in (
        ("binary", None, "there is a quantizer 'binary' already"),
        ("new", "missing", "no quantizer named 'missing'"),
    ):
        with pytest.raises(ValueError, match=message):
            graph_ops.register_quantizer(name, activations)
    with pytest.raises(ValueError, match="quantizer must be the name"):
        NetworkParams(quantizer="")


def test_the_scaled_sign_is_the_nearest_multiple_of_the_signs():
    w = np.random.default_rng(0).standard_normal((3, 3, 4, 5)).astype(np.float32)
    w[0, 0, 0, 0] = 0
    x = tf.constant(w)
    with tf.GradientTape() as tape:
        tape.watch(x)
        quantized = graph_ops.get_quantizer("scaled_sign")(x)
    np.testing.assert_array_equal(tape.gradient(quantized, x), np.abs(w) <= 1)
    signs = np.where(w >= 0, 1, -1)
    for unit in range(5):
        scale = np.linalg.lstsq(signs[..., unit].reshape(-1, 1), w[..., unit].ravel())[0][0]
        np.testing.assert_allclose(quantized[..., unit], scale * signs[..., unit], rtol=1e-4)
    params = NetworkParams(conv=[3], max_pool=[0], fc=[], quantizer="scaled_sign")
    assert params.kind == "scaled_sign"
    first, second = BinaryNeuralNetwork((7, 6, 2), 4, params).layers
    assert first.kernel_quantizer == second.kernel_quantizer == graph_ops.Registered("scaled_sign")
    assert second.input_quantizer == graph_ops.Sign()
