"""Smoke test of the whole network, in under a minute: `python bnn_test.py`.

Small networks are trained, saved and opened; their scores are compared with a forward pass in
NumPy, and with those of the same network in bits. `make test` runs this and the other tests.
"""

if __name__ == "__main__":
    import argparse
    import sys

    import pytest

    form = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=form).parse_args()
    sys.exit(pytest.main([__file__, "-q"]))

import numpy as np
import pytest
from oracles import numpy_batch_norm, numpy_convolution, numpy_max_pool, numpy_sign, numpy_ternary

from bnn import BinaryNeuralNetwork, NetworkParams, PackedNetwork, TrainingParams

KINDS = {
    "binary": {},
    "ternary": {"levels": 3, "threshold": 0.05},
    "mixed": {"bin_weights": [1, 0, 1, 1], "bin_acts": [0, 1, 1, 1]},
    "residual": {"network": "residual"},
}
LAYERS = ("conv_1", "conv_2", "fc_1", "fc_2")


@pytest.fixture(scope="module", params=KINDS)
def trained(request):
    """A network after two epochs, its images and labels."""
    y = np.arange(48) % 4
    # A class is as bright as its number.
    noise = np.random.default_rng(0).integers(0, 64, (48, 8, 6, 2))
    x = (noise + 48 * y[:, None, None, None]).astype(np.uint8)
    params = NetworkParams(conv=[5, 6], max_pool=[0, 1], fc=[7], **KINDS[request.param])
    training = TrainingParams(epochs=2, batch_size=8, lr_start=1e-2, lr_end=1e-3)
    return BinaryNeuralNetwork((8, 6, 2), 4, params, training).fit(x, y, x, y), x, y


def numpy_scores(network, x):
    """The forward pass in NumPy, from latent weights and batch norm's statistics."""
    params = network.network_params
    residual = params.network == "residual"
    layers = {layer.name: layer for layer in network.model.layers}
    of_weights, of_acts = params.per_layer("bin_weights"), params.per_layer("bin_acts")

    def quantized(values):
        return numpy_sign(values) if params.levels == 2 else numpy_ternary(values, params.threshold)

    def normed(x, name, number):
        latent = layers[name].latent_kernel.numpy()
        kernel = quantized(latent) if of_weights[number] else latent
        halves = kernel.ndim == 4 and number == 1
        if kernel.ndim == 2:
            x = x.reshape(len(x), -1) @ kernel
        elif residual and halves:
            x = numpy_convolution(x, kernel, strides=(2, 2))
        else:
            x = numpy_convolution(x, kernel)
            x = numpy_max_pool(x) if halves else x
        return numpy_batch_norm(x, layers[f"{name}_norm"])

    x = normed((2 * np.float64(x) - 255) / 255, "conv_1", 0)
    for number, name in enumerate(LAYERS[1:], start=1):
        inputs = quantized(x) if of_acts[number - 1] else np.clip(x, -1, 1)
        x = normed(inputs, name, number)
        if residual and name == "conv_2":
            x = x + normed(inputs, "conv_2_shortcut", number)
    return x


def test_training_lowers_the_loss(trained):
    network, x, y = trained
    assert network.history["loss"][1] < network.history["loss"][0]
    assert network.history["val_accuracy"][-1] == pytest.approx(network.score(x, y))


def test_scores_are_those_of_numpy(trained):
    network, x, _ = trained
    np.testing.assert_allclose(network.predict(x), numpy_scores(network, x), rtol=1e-4, atol=1e-4)


def test_a_saved_network_has_the_same_scores(trained, tmp_path):
    network, x, _ = trained
    network.save(tmp_path / "network.keras")
    opened = BinaryNeuralNetwork.load(tmp_path / "network.keras")
    assert opened.network_params == network.network_params
    np.testing.assert_array_equal(opened.predict(x), network.predict(x))


def test_a_network_in_bits_has_the_same_scores(trained, tmp_path):
    network, x, _ = trained
    params = network.network_params
    if params.network == "residual" or params.bin_acts is not True:
        with pytest.raises(ValueError, match="cannot pack"):
            PackedNetwork.from_network(network)
        return
    PackedNetwork.from_network(network).save(tmp_path / "network.packed")
    packed = PackedNetwork.load(tmp_path / "network.packed")
    np.testing.assert_array_equal(packed.predict(x), network.predict(x))


def test_inspect_network_shows_what_is_computed(trained):
    network, x, _ = trained
    inside = network.inspect_network(x)
    layers = [*inside["conv_tensors"], *inside["fc_tensors"]]
    assert [layer["wc"].shape[-1] for layer in layers] == [5, 6, 7, 4]
    np.testing.assert_array_equal(layers[-1]["post_bin_act"], network.predict(x))
