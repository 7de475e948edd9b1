"""Batch norm's statistics, layer after layer, against plain NumPy."""

import keras
import numpy as np
import pytest
from example_networks import random_images, small_network
from oracles import numpy_convolution, numpy_max_pool, numpy_sign

import graph_ops
import stream
import walk
from graph_ops import QuantConv2D, QuantDense, ShiftBatchNormalization, Sign

RNG = np.random.default_rng(0)
# Several batches, the last of them smaller.
X = RNG.standard_normal((230, 6, 5, 2)).astype(np.float32)


def normalized(x, norm):
    """`x` normalized by its own statistics, which must be those of the layer `norm`."""
    axes = tuple(range(x.ndim - 1))
    mean, variance = np.mean(x, axes, np.float64), np.var(x, axes, np.float64)
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-5, atol=1e-5)
    scale = norm.gamma.numpy() if norm.scale else 1
    return (x - mean) / np.sqrt(variance + norm.epsilon) * scale + norm.beta.numpy()


def sign_of(layer):
    return numpy_sign(layer.latent_kernel.numpy())


def test_statistics_of_a_sequential_model_are_exact():
    model = keras.Sequential(
        [
            keras.Input((6, 5, 2)),
            QuantConv2D(4, 3, kernel_quantizer="sign", padding="same", use_bias=False),
            graph_ops.MaxPooling2D(),
            ShiftBatchNormalization(),
            keras.layers.Flatten(),
            QuantDense(7, Sign(), Sign()),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3, activation="relu"),
        ]
    )
    assert stream.refit_batch_norm(model, X) == "exact"
    conv, _, first, _, dense, second, last = model.layers
    x = normalized(numpy_max_pool(numpy_convolution(X, sign_of(conv))), first)
    x = numpy_sign(x).reshape(len(X), -1) @ sign_of(dense) + dense.bias.numpy()
    x = normalized(x, second)
    expected = np.maximum(x @ last.kernel.numpy() + last.bias.numpy(), 0)
    np.testing.assert_allclose(model.predict(X, verbose=0), expected, rtol=1e-3, atol=1e-4)


def test_statistics_of_a_residual_network_are_exact():
    x, _ = random_images(130)
    network = small_network(network="residual", conv=[5, 5, 6], max_pool=[0, 0, 1])
    rng = np.random.default_rng(0)
    for norm in network.norms:
        norm.beta.assign(rng.normal(0, 0.3, norm.beta.shape))
    network.refit_batch_norm(x)
    layers = {layer.name: layer for layer in network.model.layers}

    def convolved(x, name, strides=(1, 1)):
        products = numpy_convolution(x, sign_of(layers[name]), strides)
        return normalized(products, layers[f"{name}_norm"])

    out = convolved((2 * np.float64(x) - 255) / 255, "conv_1")
    out = out + convolved(numpy_sign(out), "conv_2")
    shortcut = convolved(numpy_sign(out), "conv_3_shortcut", (2, 2))
    out = shortcut + convolved(numpy_sign(out), "conv_3", (2, 2))
    out = out.reshape(len(x), -1)
    for name in ("fc_1", "fc_2"):
        out = normalized(numpy_sign(out) @ sign_of(layers[name]), layers[f"{name}_norm"])
    np.testing.assert_allclose(network.predict(x), out, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kept", [0, 2**40])
def test_products_that_are_not_computed_again_change_nothing(kept, monkeypatch):
    x, _ = random_images(130)
    network = small_network(network="residual", conv=[5, 5, 6], max_pool=[0, 0, 1])
    expected = network.with_weights([])
    expected.refit_batch_norm(x)
    monkeypatch.setattr(stream, "KEPT", kept)
    computed = []
    run = walk.Step.run
    monkeypatch.setattr(
        walk.Step,
        "run",
        lambda step, *a, **k: (computed.append(step.layer.name), run(step, *a, **k)),
    )
    network.refit_batch_norm(x)
    np.testing.assert_array_equal(network.predict(x), expected.predict(x))
    # Two batches; without memory each product is computed for its batch norm and after it.
    assert computed.count("fc_1") == (2 if kept else 4)


def test_statistics_of_a_nested_functional_model_are_exact():
    inner_inputs = keras.Input((6, 5, 4))
    inner = graph_ops.BinaryConv2D(4, input_quantizer="binary", activation_quantizer=None)
    inner = keras.Model(inner_inputs, keras.layers.Add()([inner_inputs, inner(inner_inputs)]))
    inputs = keras.Input((6, 5, 2))
    x = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    x = ShiftBatchNormalization(name="outer")(x)
    # Two channels are read past the inner model.
    y = keras.layers.Concatenate()([inner(x), x[..., :2]])
    model = keras.Model(inputs, keras.layers.BatchNormalization(name="last")(y))
    assert stream.refit_batch_norm(model, X) == "exact"
    conv, block = model.layers[1], inner.layers[1]
    x = numpy_convolution(X, conv.kernel.numpy()) + conv.bias.numpy()
    x = normalized(x, model.get_layer("outer"))
    product, norm = block.layers
    inside = x + normalized(numpy_convolution(numpy_sign(x), sign_of(product)), norm)
    out = normalized(np.concatenate([inside, x[..., :2]], axis=-1), model.get_layer("last"))
    np.testing.assert_allclose(model.predict(X, verbose=0), out, rtol=1e-3, atol=1e-3)


class Subclassed(keras.Model):
    """What it does only its code knows."""

    def __init__(self):
        super().__init__()
        self.dense, self.norm = keras.layers.Dense(4), ShiftBatchNormalization(momentum=0.9)

    def call(self, x, training=False):
        return self.norm(self.dense(x), training=training)


def test_statistics_of_a_subclassed_model_are_averages_over_batches():
    model, x = Subclassed(), RNG.standard_normal((200, 3)).astype(np.float32)
    assert stream.refit_batch_norm(model, x) == "averaged"
    products = x @ model.dense.kernel.numpy()
    batches = np.split(products, 2)
    means, variances = ([f(b, axis=0) for b in batches] for f in (np.mean, np.var))
    np.testing.assert_allclose(model.norm.moving_mean, np.mean(means, axis=0), atol=1e-5)
    np.testing.assert_allclose(model.norm.moving_variance, np.mean(variances, axis=0), rtol=1e-4)
    assert model.norm.momentum == 0.9


@pytest.mark.parametrize("network", ["paper", "residual"])
def test_a_stream_stops_before_each_product_and_ends_with_the_outputs(network):
    x, y = random_images(130)
    network = small_network(network=network).fit(x, y)
    followed, names = stream.Stream(network.model, x), []
    while followed.next_product is not None:
        names.append(followed.next_product)
        np.testing.assert_array_equal(followed.outputs()[0], network.predict(x))
        followed.advance()
    assert sorted(names) == sorted(layer.name for layer in network.layers)
    np.testing.assert_array_equal(followed.outputs()[0], network.predict(x))


def test_a_stream_goes_on_along_another_network():
    x, y = random_images(130)
    network = small_network().fit(x, y)
    other = network.with_weights(["fc_1"])
    followed = stream.Stream(network.model, x)
    while followed.next_product != "fc_1":
        followed.advance()
    (outputs,) = followed.outputs(other.model)
    np.testing.assert_allclose(outputs, other.predict(x), rtol=1e-5, atol=1e-5)
    refitted = network.with_weights(["fc_1"])
    followed.along(refitted.model).refit()
    expected = network.with_weights(["fc_1"]).refit_batch_norm(x)
    both = followed.outputs(other.model, refitted.model)
    np.testing.assert_array_equal(both[0], outputs)
    np.testing.assert_allclose(both[1], expected.predict(x), rtol=1e-4, atol=1e-4)
    # The first network is where it was, and as it was.
    assert followed.next_product == "fc_1"
    np.testing.assert_array_equal(followed.outputs()[0], network.predict(x))


def test_a_model_without_steps_or_with_two_inputs_has_no_stream():
    with pytest.raises(ValueError, match="is not functional"):
        stream.Stream(Subclassed(), X)
    inputs = [keras.Input((3,)), keras.Input((3,))]
    model = keras.Model(inputs, keras.layers.Add()(inputs))
    with pytest.raises(ValueError, match="has several inputs"):
        stream.Stream(model, X)
