"""Substituted weights and rotated first layers, against networks that do it themselves."""

import numpy as np
import pytest
from small_networks import KINDS, smooth_images, trained_network

import geometry
import graph_ops
import measure
from bnn import BinaryNeuralNetwork, NetworkParams, TrainingParams, scaled
from experiments import control_measurements, rotation_correlations, substitution_accuracies
from stream import Stream


@pytest.fixture(scope="module", params=KINDS)
def network(request):
    return trained_network(request.param)


# --- Latent weights in place of quantized ones ---


def test_substituted_layers_multiply_with_their_latent_weights(network):
    copy = network.with_weights(["conv_2", "fc_2"])
    for layer in copy.layers:
        latent = np.array_equal(layer.quantized_kernel(), layer.latent_kernel)
        assert latent == (layer.name in ("conv_2", "fc_2") or not network.network_params.bin_acts)
    with pytest.raises(ValueError, match="there is no layer"):
        network.with_weights(["conv_3"])


def test_layers_below_the_substituted_one_are_left_alone(network):
    x_train, x, y = smooth_images(60, seed=1), smooth_images(110, seed=3), np.arange(110) % 4
    got = substitution_accuracies(network, x_train, x, y)
    names = [layer.name for layer in network.layers]
    if not network.network_params.bin_weights:
        assert list(got) == ["none", "all"]
        return
    assert list(got) == ["none", "all", *names]
    for name, start in (("all", 0), ("fc_1", 2)):
        copy = network.with_weights(names if name == "all" else [name])
        assert got[name][0] == pytest.approx(copy.score(x, y), abs=0.011)
        stream = Stream(copy.model, x_train)
        for _ in range(start):
            stream.advance()
        stream.refit()
        assert got[name][1] == pytest.approx(copy.score(x, y), abs=0.011)


@pytest.mark.parametrize("levels", [2, 3])
def test_substitution_counts_in_bits_what_it_would_multiply(levels, monkeypatch):
    # From 64 channels on layers are counted.
    params = NetworkParams(conv=[64, 66, 3], max_pool=[0, 1, 0], fc=[7], levels=levels)
    network = BinaryNeuralNetwork((7, 6, 2), 4, params)
    x, y = smooth_images(30), np.arange(30) % 4

    def measured():
        copy = network.with_weights([]).refit_batch_norm(x)
        return substitution_accuracies(network, x, x, y), copy.model.get_weights()

    used, counts = [], graph_ops.QuantConv2D._counts
    with monkeypatch.context() as patch:
        patch.setattr(
            graph_ops.QuantConv2D, "_counts", lambda *a: used.append(counts(*a)) or used[-1]
        )
        counted, statistics = measured()
    assert any(used)
    monkeypatch.setattr(graph_ops.QuantConv2D, "_counts", lambda self, inputs: False)
    multiplied, expected = measured()
    assert counted == multiplied
    for ours, theirs in zip(statistics, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_refitting_makes_up_for_the_scale_of_the_latent_weights():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    x = rng.integers(0, 120, (300, 6, 6, 1)).astype(np.uint8)
    x[y == 1, :3] += 100
    params = NetworkParams(conv=[8, 16], max_pool=[0, 1], fc=[])
    training = TrainingParams(epochs=8, batch_size=20, lr_start=1e-2, lr_end=1e-3)
    network = BinaryNeuralNetwork((6, 6, 1), 2, params, training).fit(x[:200], y[:200])
    got = substitution_accuracies(network, x[:200], x[200:], y[200:])
    assert got["none"][0] > 0.95
    assert got["conv_2"][0] < 0.8 < 0.95 < got["conv_2"][1]


# --- The first layer in other bases ---


def rotated_network(kind, **changes):
    params = NetworkParams(conv=[6, 8], max_pool=[0, 1], fc=[], rotate_first=kind, **changes)
    training = TrainingParams(epochs=2, batch_size=10, lr_start=1e-2, lr_end=1e-3)
    network = BinaryNeuralNetwork((7, 6, 2), 4, params, training)
    return network.fit(smooth_images(60, seed=1), np.arange(60) % 4)


@pytest.mark.parametrize("kind", ["random", "pca", "zca"])
def test_a_rotated_first_layer_trains_and_reopens(kind, tmp_path):
    network, x = rotated_network(kind), smooth_images(30)
    network.save(tmp_path / "network.keras")
    opened = BinaryNeuralNetwork.load(tmp_path / "network.keras")
    np.testing.assert_array_equal(opened.predict(x), network.predict(x))
    basis = opened.layers[0].basis_matrix.numpy()
    opened.fit(smooth_images(60, seed=9), np.arange(60) % 4)  # keeps the basis that it came with
    np.testing.assert_array_equal(opened.layers[0].basis_matrix, basis)


@pytest.mark.parametrize("kind", ["random", "pca"])
def test_a_rotated_first_layer_convolves_with_the_rotated_binarization(kind):
    layer = rotated_network(kind).layers[0]
    rotation, latent = layer.basis_matrix.numpy(), layer.latent_kernel.numpy().reshape(18, 6)
    assert not np.allclose(rotation, np.eye(18), atol=0.1)
    expected = geometry.rotated_binarization(latent.T, rotation).T
    np.testing.assert_allclose(layer.quantized_kernel().numpy().reshape(18, 6), expected, atol=1e-5)
    np.testing.assert_allclose(layer.continuous_kernel(), layer.latent_kernel, atol=1e-5)


def test_a_whitened_first_layer_binarizes_weights_of_whitened_patches():
    network, x = rotated_network("zca"), smooth_images(60, seed=1)
    layer = network.layers[0]
    patches = geometry.image_patches(scaled(x), 3).reshape(-1, 18)
    whitened = (patches - patches.mean(0)) @ layer.basis_matrix.numpy()
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(18), atol=0.2)
    signs = np.where(layer.latent_kernel.numpy().reshape(18, 6) >= 0, 1, -1)
    dots = layer.dot_products(x, layer.quantized_kernel()).numpy().reshape(-1, 6)
    difference = dots - whitened @ signs  # the mean's share, which batch norm takes away
    np.testing.assert_allclose(difference - difference[0], 0, atol=2e-4)


def test_a_rotated_first_layer_is_measured_in_its_basis():
    network, x = rotated_network("zca"), smooth_images(200)
    layer, kept = measure.measure_network(network, x, x)[0], network.layers[0]
    latent = kept.latent_kernel.numpy()
    np.testing.assert_allclose(layer.angles, geometry.unit_angles(latent, np.sign(latent)))
    assert np.mean(layer.predicted_r - layer.weights_dot.unit_r) == pytest.approx(0, abs=0.05)
    copy = network.with_weights(["conv_1"]).layers[0]
    np.testing.assert_array_equal(copy.quantized_kernel(), kept.continuous_kernel())


def test_whitening_brings_the_first_layers_correlation_to_the_cosine():
    params = NetworkParams(conv=[64], max_pool=[0], fc=[], levels=3, threshold=0.0)
    network = BinaryNeuralNetwork((7, 6, 2), 4, params)
    x = smooth_images(500)
    got = rotation_correlations(network, x, x)
    cosine = np.cos(measure.measure_layers(network, x[:60])[0].angles).mean()
    assert got["zca"]["weights"] == pytest.approx(cosine, abs=0.03)
    assert got["zca"]["both"] < got["zca"]["patches"] < 0.9
    assert list(got) == ["as is", "random", "pca", "zca"]


def test_rotation_correlations_are_those_of_rotated_patches():
    network = BinaryNeuralNetwork((7, 6, 2), 4, NetworkParams(conv=[5], max_pool=[0], fc=[]))
    x = smooth_images(300)
    got = rotation_correlations(network, x, x)
    patches = geometry.image_patches(scaled(x), 3).reshape(-1, 18).astype(float)
    w = network.layers[0].latent_kernel.numpy().reshape(18, 5)
    rotation = geometry.random_rotation(18, 0)
    turned = geometry.rotated_binarization(patches, rotation)
    turned_w = geometry.rotated_binarization(w.T, rotation).T
    for name, dots in (
        ("weights", patches @ turned_w),
        ("patches", turned @ w),
        ("both", turned @ turned_w),
    ):
        expected = np.corrcoef((patches @ w).ravel(), dots.ravel())[0, 1]
        assert got["random"][name] == pytest.approx(expected, abs=0.03)


# --- Controls ---


def test_controls_against_networks_and_patches_of_their_own():
    network, floating = trained_network("binary"), trained_network("continuous")
    x, x_train = smooth_images(40), smooth_images(60, seed=1)
    got = control_measurements(network, floating, x, x_train)
    assert list(got) == ["trained", "untrained", "float", "shuffled"]
    for control, one in (("trained", network), ("float", floating)):
        for layer in measure.measure_layers(one, x):
            angle, r = got[control][layer.name]
            assert angle == pytest.approx(layer.angles.mean())
            assert r == layer.weights_dot.r
    # Uniform weights, as they are initialized, stand at 30°.
    assert np.degrees(got["untrained"]["fc_1"][0]) == pytest.approx(30, abs=2)
    # The first layer's weights are the first to be shuffled.
    w = network.layers[0].latent_kernel.numpy()
    columns = np.random.default_rng(0).permuted(w.reshape(18, 5), axis=0)
    patches = geometry.image_patches(scaled(x), 3).reshape(-1, 18).astype(float)
    dots = patches @ columns, patches @ np.where(columns >= 0, 1, -1)
    expected = np.corrcoef(*(values.ravel() for values in dots))[0, 1]
    angle, r = got["shuffled"]["conv_1"]
    assert r == pytest.approx(expected, abs=1e-4)
    for name, (angle, _) in got["shuffled"].items():
        assert angle == pytest.approx(got["trained"][name][0], abs=1e-6)
    assert list(control_measurements(network, None, x, x_train)) == [
        "trained",
        "untrained",
        "shuffled",
    ]
