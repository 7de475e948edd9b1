"""`BinaryNeuralNetwork` trains, answers as NumPy does, shows its inside and refuses bad input."""

import numpy as np
import pytest
from example_networks import KINDS, random_images, small_network, trained
from oracles import (
    numpy_batch_norm,
    numpy_convolution,
    numpy_max_pool,
    numpy_sign,
    numpy_ternary,
)

from bnn import BinaryNeuralNetwork, NetworkParams, TrainingParams


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, np.uint8) for kind in KINDS), ("binary", np.float32), ("mixed", np.float32)],
)
def test_trains_saves_and_reloads(kind, dtype, tmp_path):
    x, y = random_images(dtype=dtype)
    network = small_network(**KINDS[kind]).fit(x, y, x[:8], y[:8])
    assert np.isfinite(network.history["val_loss"]).all()
    network.save(tmp_path / "network.keras")
    opened = BinaryNeuralNetwork.load(tmp_path / "network.keras")
    np.testing.assert_array_equal(opened.predict(x), network.predict(x))
    assert opened.network_params == network.network_params
    assert opened.training_params == network.training_params


@pytest.mark.parametrize("rotation", ["random", "pca", "zca"])
def test_a_rotated_first_layer_keeps_its_basis(rotation, tmp_path):
    network, x, y = trained(rotate_first=rotation)
    basis = network.layers[0].basis_matrix.numpy()
    assert not np.array_equal(basis, np.eye(len(basis)))
    if rotation != "zca":
        np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-5)
    network.save(tmp_path / "network.keras")
    opened = BinaryNeuralNetwork.load(tmp_path / "network.keras")
    np.testing.assert_array_equal(opened.predict(x), network.predict(x))
    # A second training does not choose it anew.
    np.testing.assert_array_equal(opened.fit(x, y).layers[0].basis_matrix.numpy(), basis)


def test_uint8_and_the_floats_that_it_means_have_the_same_scores():
    network, x, _ = trained()
    floats = (2 * x.astype(np.float32) - 255) / 255
    np.testing.assert_allclose(network.predict(floats), network.predict(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["binary", "ternary", "continuous", "mixed"])
def test_predict_is_an_independent_forward_pass(kind):
    network, x, _ = trained(**KINDS[kind])
    params = network.network_params
    out = (2 * x.astype(np.float64) - 255) / 255

    def quantized(values):
        if params.levels == 2:
            return numpy_sign(values)
        return numpy_ternary(values, params.threshold)

    switches = zip(params.per_layer("bin_weights"), params.per_layer("bin_acts"), strict=True)
    parts = zip(network.layers, network.norms, switches, strict=True)
    for i, (layer, norm, (weights, acts)) in enumerate(parts):
        kernel = layer.latent_kernel.numpy()
        kernel = quantized(kernel) if weights else kernel
        if i < 2:
            out = numpy_convolution(out, kernel)
            out = numpy_max_pool(out) if params.max_pool[i] else out
        else:
            out = out.reshape(len(x), -1) @ kernel
        out = numpy_batch_norm(out, norm)
        if i < len(network.layers) - 1:
            out = quantized(out) if acts else np.clip(out, -1, 1)
    np.testing.assert_allclose(network.predict(x), out, rtol=1e-4, atol=1e-4)


def test_some_layers_may_multiply_with_latent_weights():
    network, x, _ = trained()
    copy = network.with_weights(["conv_2", "fc_2"])
    assert [layer.kernel_quantizer is None for layer in copy.layers] == [False, True, False, True]
    for one, other in zip(copy.model.get_weights(), network.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(copy.predict(x), network.predict(x))
    with pytest.raises(ValueError, match=r"there is no layer \['fc_3'\]; there are conv_1, conv_2"):
        network.with_weights(["fc_3"])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32], ids=["uint8", "float32"])
def test_inspect_network_shows_what_predict_computes(dtype):
    network, _, _ = trained()
    x, _ = random_images(dtype=dtype)
    inside = network.inspect_network(x)
    np.testing.assert_allclose(inside["x"], random_images()[0] / 127.5 - 1, atol=1e-6)
    assert [t["wc"].shape for t in inside["conv_tensors"]] == [(3, 3, 2, 5), (3, 3, 5, 6)]
    assert [t["wc"].shape for t in inside["fc_tensors"]] == [(5 * 4 * 6, 7), (7, 4)]
    for tensors in (*inside["conv_tensors"], *inside["fc_tensors"][:-1]):
        np.testing.assert_array_equal(tensors["post_bin_act"], numpy_sign(tensors["pre_bin_act"]))
        np.testing.assert_array_equal(tensors["wb"], numpy_sign(tensors["wc"]))
    np.testing.assert_allclose(
        inside["fc_tensors"][-1]["post_bin_act"], network.predict(x), rtol=1e-5, atol=1e-5
    )


def test_defaults_are_the_papers_network():
    network = BinaryNeuralNetwork((32, 32, 3), 10)
    fan_ins = [np.prod(layer.latent_kernel.shape[:-1]) for layer in network.layers]
    assert fan_ins == [27, 1152, 1152, 2304, 2304, 4608, 8192, 1024, 1024]
    assert round(network.weight_count / 1e6, 1) == 14.0


def test_a_threshold_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="conv_1 without a single non-zero weight"):
        small_network(levels=3, threshold=0.99)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 9, 7, 1), np.uint8), None, "must have the shape"),
        (np.zeros((9, 7, 2), np.uint8), None, "must have the shape"),
        (np.zeros((0, 9, 7, 2), np.uint8), None, "not a single image"),
        (np.zeros((3, 9, 7, 2), complex), None, "pixels from 0 to 255 or floats, not complex128"),
        (np.full((3, 9, 7, 2), 256), None, "pixels from 0 to 255 or floats, not int64"),
        (np.full((3, 9, 7, 2), np.nan, np.float32), None, "NaN"),
        (np.zeros((3, 9, 7, 2), np.uint8), np.array([0, 1, 4]), "between 0 and 3"),
        (np.zeros((3, 9, 7, 2), np.uint8), np.array([0, -1, 1]), "between 0 and 3"),
        (np.zeros((3, 9, 7, 2), np.uint8), np.array([0, 1]), "must have the shape"),
        (np.zeros((3, 9, 7, 2), np.uint8), np.zeros(3), "must be integers"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(x, y, message):
    network = small_network()
    with pytest.raises(ValueError, match=message):
        network.predict(x) if y is None else network.fit(x, y)


@pytest.mark.parametrize(
    ("in_dim", "out_dim", "message"),
    [
        ((9, 7), 4, "in_dim must be"),
        ((9, 0, 2), 4, "in_dim must be"),
        ((9, 7, 2), 1, "out_dim must be at least 2"),
    ],
)
def test_sizes_that_make_no_network_are_refused(in_dim, out_dim, message):
    with pytest.raises(ValueError, match=message):
        BinaryNeuralNetwork(in_dim, out_dim)


def test_images_too_small_to_be_shifted_are_refused():
    training = TrainingParams(augment="crop-flip")
    params = NetworkParams(conv=[], max_pool=[], fc=[])
    network = BinaryNeuralNetwork((4, 4, 1), 2, params, training)
    with pytest.raises(ValueError, match="too small to be shifted"):
        network.fit(np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1]))
