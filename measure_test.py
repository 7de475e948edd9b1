"""The measurement against NumPy on small networks, and its independence of the batches."""

import numpy as np
import pytest
import tensorflow as tf

import geometry
import graph_ops
import measure
from bnn import (
    Activations,
    BinaryNeuralNetwork,
    NetworkParams,
    TrainingParams,
    refit_layers,
    scaled,
)

KINDS = {
    "binary": {},
    "ternary": {"levels": 3, "threshold": 0.05},
    "continuous": {"bin_weights": False, "bin_acts": False},
}


def images(count, shape=(7, 6, 2), seed=0):
    """Smooth images, as patches of noise would be uncorrelated."""
    noise = np.random.default_rng(seed).standard_normal((count, *shape))
    smooth = (
        noise
        + np.roll(noise, 1, 1)
        + np.roll(noise, 1, 2)
        + 2 * noise.mean((1, 2, 3))[:, None, None, None]
    )
    return np.clip(128 + 40 * smooth, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=KINDS)
def network(request):
    params = NetworkParams(conv=[5, 8], max_pool=[0, 1], fc=[7], **KINDS[request.param])
    training = TrainingParams(epochs=2, batch_size=10, lr_start=1e-2, lr_end=1e-3)
    made = BinaryNeuralNetwork((7, 6, 2), 4, params, training)
    return made.fit(images(60, seed=1), np.arange(60) % 4)


def pairs_of(layer):
    return [layer.weights_dot, layer.permuted] + [layer.activations_dot] * (
        layer.activations_dot is not None
    )


def test_the_batch_size_changes_nothing(network):
    x, x_train = images(70), images(70, seed=1)
    results = [measure.measure_network(network, x, x_train, size) for size in (7, 50, 500)]
    for layers in zip(*results, strict=True):
        for same in zip(*map(pairs_of, layers), strict=True):
            for other in same[1:]:
                for name in ("r", "inside_r", "slope", "unit_r", "inside_unit_r"):
                    values = getattr(same[0], name), getattr(other, name)
                    np.testing.assert_allclose(*values, atol=1e-6, err_msg=name)
                assert other.extent == pytest.approx(same[0].extent)
        for layer in layers[1:]:
            np.testing.assert_allclose(layer.predicted_r, layers[0].predicted_r, atol=1e-6)
            np.testing.assert_allclose(layer.spectrum, layers[0].spectrum, atol=1e-5)


def test_a_compact_checkpoint_has_the_same_geometry(network, tmp_path):
    network.save(tmp_path / "network.keras", compact=True)
    compact = BinaryNeuralNetwork.load(tmp_path / "network.keras")
    x = images(70)
    measured = (measure.measure_layers(one, x) for one in (network, compact))
    for exact, rounded in zip(*measured, strict=True):
        np.testing.assert_allclose(rounded.angles, exact.angles, atol=np.radians(0.1))
        for same in zip(pairs_of(exact), pairs_of(rounded), strict=True):
            if None not in same:
                assert same[1].r == pytest.approx(same[0].r, abs=1e-3)


def test_dot_products_are_those_of_patches_and_kernels(network):
    x = images(20)
    inside = network.inspect_network(x)
    measured = measure.measure_layers(network, x)[1]
    before, after = (
        geometry.image_patches(inside["conv_tensors"][0][name].astype(float), 3)
        for name in ("pre_bin_act", "post_bin_act")
    )
    wc, wb = (inside["conv_tensors"][1][name].reshape(-1, 8) for name in ("wc", "wb"))
    for pairs, x_dot, y_dot in (
        (measured.weights_dot, after @ wc, after @ wb),
        (measured.activations_dot, before @ wb, after @ wb),
    ):
        assert pairs.r == pytest.approx(np.corrcoef(x_dot.ravel(), y_dot.ravel())[0, 1], abs=1e-5)
        slope = np.polyfit(x_dot.ravel(), y_dot.ravel(), 1)[0]
        assert pairs.slope == pytest.approx(slope, rel=1e-4)
        assert pairs.sign_changes == pytest.approx(np.mean(x_dot * y_dot < -1e-5), abs=2e-3)
        cropped = x_dot[:, 1:-1, 1:-1], y_dot[:, 1:-1, 1:-1]
        for unit in range(8):
            for got, (a, b) in (
                (pairs.unit_r, (x_dot, y_dot)),
                (pairs.inside_unit_r, cropped),
            ):
                expected = np.corrcoef(a[..., unit].ravel(), b[..., unit].ravel())[0, 1]
                assert got[unit] == pytest.approx(expected, abs=1e-5)
        assert pairs.histogram.sum() == x_dot.size


def test_the_covariance_of_the_same_images_predicts_r_exactly(network):
    x = images(80)
    for layer in measure.measure_network(network, x, x)[2:]:  # one patch an image: all are sampled
        np.testing.assert_allclose(layer.predicted_r, layer.weights_dot.unit_r, atol=1e-5)
        assert layer.spectrum.shape == (layer.fan_in,)


def test_without_its_first_axis_a_covariance_predicts_the_correlation_of_the_rest(network):
    x = images(80)
    layer = measure.measure_network(network, x, x)[0]
    statistics = network.first_patches(x)  # All of them, where the measurement samples.
    patches = geometry.image_patches(scaled(x), 3).reshape(-1, 18).astype(float)
    axis = geometry.principal_axes(statistics.covariance)[0]
    patches -= np.outer(patches @ axis, axis)
    wc, wb = (w.reshape(18, -1) for w in (layer.wc, layer.wb))
    for unit, predicted in enumerate(layer.deflated_r):
        rest = np.corrcoef(patches @ wc[:, unit], patches @ wb[:, unit])[0, 1]
        assert predicted == pytest.approx(rest, abs=0.05)
    assert not np.allclose(layer.deflated_r, layer.predicted_r, atol=0.02) or not layer.quantized


def test_empty_background_is_left_out_of_the_textured_positions():
    params = NetworkParams(conv=[5, 8], max_pool=[0, 1], fc=[])
    network = BinaryNeuralNetwork((12, 12, 2), 4, params).refit_batch_norm(images(9, (12, 12, 2)))
    x = images(30, (12, 12, 2))
    assert measure.measure_network(network, x, x)[1].textured[0] == 1
    x[:, :, 5:] = 77
    layer = measure.measure_network(network, x, x)[1]
    # Columns 6 to 10 of the activations see neither drawing nor padding, nor do rows 1 to 10; a
    # patch of these that is the same all over has its centre one further in.
    kept = np.ones((12, 12), bool)
    kept[2:10, 7:10] = False
    inside = network.inspect_network(x)["conv_tensors"]
    before, after = (inside[0][name].astype(float) for name in ("pre_bin_act", "post_bin_act"))
    wb = inside[1]["wb"].reshape(-1, 8)
    dots = (geometry.image_patches(values, 3) @ wb for values in (before, after))
    expected = [
        np.corrcoef(a[:, kept].ravel(), b[:, kept].ravel())[0, 1]
        for a, b in ((before, after), dots)
    ]
    np.testing.assert_allclose(layer.textured, [kept.mean(), *expected], atol=1e-5)


def test_sampled_patches_are_patches_at_positions_of_the_images_own():
    x = np.random.default_rng(0).standard_normal((6, 5, 4, 2))
    for size in (1, 2, 3):
        sampled = measure._sampled_patches(x, size, 0)
        every = geometry.image_patches(x, size).reshape(6, 20, -1)
        match = (sampled[:, :, None] == every[:, None]).all(-1)
        assert match.any(-1).all()
        assert match.any(1).sum() > 0.6 * 120  # all over the image
        np.testing.assert_array_equal(sampled[4:], measure._sampled_patches(x[4:], size, 4))


def test_permuted_activations_leave_the_cosine_of_the_angle():
    params = NetworkParams(conv=[8, 48], max_pool=[0, 0], fc=[])
    network = BinaryNeuralNetwork((12, 12, 2), 2, params)
    layer = measure.measure_network(network, images(300, (12, 12, 2)), images(9, (12, 12, 2)))[1]
    cosine = np.cos(layer.angles)
    assert np.mean(layer.permuted.inside_unit_r) == pytest.approx(cosine.mean(), abs=0.01)
    np.testing.assert_allclose(layer.permuted.inside_unit_r, cosine, atol=0.05)


def test_images_without_an_inside_have_no_inside_correlation():
    network = BinaryNeuralNetwork((2, 2, 1), 2, NetworkParams(conv=[3], max_pool=[0], fc=[]))
    layer = measure.measure_layers(network, images(30, (2, 2, 1)))[0]
    assert np.isnan(layer.weights_dot.inside_r) and np.isfinite(layer.weights_dot.r)


# --- Tables ---


def test_the_papers_network_costs_what_is_counted_by_hand():
    network = BinaryNeuralNetwork((32, 32, 3), 10)
    lines = [
        line.split() for line in measure.cost_table(measure.layer_weights(network)).split("\n")
    ]
    rows = {name: [int(n.replace(",", "")) for n in figures] for name, *figures in lines[1:]}
    # Weights 3·3·channels·filters; products of those at each of 32², 16² or 8² positions.
    assert rows["conv_1"] == [27 * 128, 0, 27 * 128 * 1024, 4 * 27 * 128, 27 * 16]
    assert rows["conv_2"] == [147_456, 150_994_944, 0, 589_824, 18_432]
    assert rows["conv_3"] == [294_912, 75_497_472, 0, 1_179_648, 36_864]
    assert rows["conv_6"] == [2_359_296, 150_994_944, 0, 9_437_184, 294_912]
    assert rows["fc_1"] == [8_388_608, 8_388_608, 0, 33_554_432, 1_048_576]
    assert rows["fc_3"] == [10_240, 10_240, 0, 40_960, 1_280]
    # 14.0 M weights, 617 M multiply-adds, 56 MB.
    assert rows["sum"] == [14_022_016, 613_427_200, 3_538_944, 56_088_064, 1_752_752]


@pytest.mark.parametrize(
    ("options", "bits", "packed"),
    [
        ({}, [0, 4320, 672, 28], [12, 45, 84, 4]),
        ({"levels": 3}, [0, 4320, 672, 28], [23, 90, 168, 7]),
        ({"bin_acts": (True, False, True, True)}, [0, 4320, 0, 28], [12, 45, 84, 4]),
        ({"bin_weights": (True, False, True, True)}, [0, 0, 672, 28], [12, 1440, 84, 4]),
        ({"rotate_first": "pca"}, [0, 4320, 672, 28], [360, 45, 84, 4]),
        ({"quantizer": "scaled_sign"}, [0] * 4, [360, 1440, 2688, 112]),
    ],
)
def test_what_is_no_bits_costs_floats(options, bits, packed):
    params = NetworkParams(conv=[5, 8], max_pool=[1, 0], fc=[7], **options)
    network = BinaryNeuralNetwork((7, 6, 2), 4, params)
    table = measure.cost_table(measure.layer_weights(network))
    assert ("2-bit multiply-adds" in table) == (params.levels == 3)
    rows = [[int(n.replace(",", "")) for n in line.split()[1:]] for line in table.split("\n")[1:-1]]
    total = [18 * 5 * 42, 45 * 8 * 12, 96 * 7, 28]  # 7 × 6 positions, after pooling 4 × 3
    for row, on_bits, all_products, bytes_packed in zip(rows, bits, total, packed, strict=True):
        assert row[1:3] == [on_bits, all_products - on_bits]
        assert row[4] == bytes_packed


def test_the_printed_table_has_geometry_and_cost(network):
    table = measure.format_table(measure.measure_layers(network, images(20)))
    assert max(map(len, table.split("\n"))) <= 100
    for layer in network.model.quantized_layers:
        assert table.count(f"\n{layer.name} ") == 2


# --- Latent weights in place of quantized ones ---


def test_refit_batch_norm_gives_the_statistics_of_the_whole_set(network):
    x = images(130, seed=2)
    copy = network.with_weights([])
    np.testing.assert_array_equal(copy.predict(x), network.predict(x))
    copy.refit_batch_norm(x)
    inputs = x
    for layer in copy.model.quantized_layers:
        if layer.latent_kernel.ndim == 2:
            inputs = np.reshape(inputs, (len(x), -1))
        products = layer.pooled_products(inputs).numpy().astype(float)
        axes = tuple(range(products.ndim - 1))
        np.testing.assert_allclose(layer.batch_norm.moving_mean, products.mean(axes), atol=1e-4)
        np.testing.assert_allclose(layer.batch_norm.moving_variance, products.var(axes), rtol=1e-4)
        inputs = layer(inputs)


def test_activations_come_back_as_they_were(network):
    stored, x = Activations(images(130)), images(130)
    for layer in network.model.quantized_layers:
        if layer.latent_kernel.ndim == 2:
            x = np.reshape(x, (len(x), -1))
        x, stored = layer(x).numpy(), stored.through(layer)
        got = np.concatenate(list(stored.batches()))
        np.testing.assert_allclose(got, x, atol=2e-5)


def test_substituted_layers_multiply_with_their_latent_weights(network):
    copy = network.with_weights(["conv_2", "fc_2"])
    for layer in copy.model.quantized_layers:
        latent = np.array_equal(layer.quantized_kernel(), layer.latent_kernel)
        assert latent == (layer.name in ("conv_2", "fc_2") or not network.network_params.bin_acts)
    with pytest.raises(ValueError, match="there is no layer"):
        network.with_weights(["conv_3"])


def test_layers_below_the_substituted_one_are_left_alone(network):
    x_train, x, y = images(60, seed=1), images(110, seed=3), np.arange(110) % 4
    got = measure.substitution_accuracies(network, x_train, x, y)
    names = [layer.name for layer in network.model.quantized_layers]
    if not network.network_params.bin_weights:
        assert list(got) == ["none", "all"]
        return
    assert list(got) == ["none", "all", *names]
    for name, start in (("all", 0), ("fc_1", 2)):
        copy = network.with_weights(names if name == "all" else [name])
        assert got[name][0] == pytest.approx(copy.score(x, y), abs=0.011)
        hidden = x_train
        for layer in copy.model.quantized_layers[:start]:
            hidden = layer(hidden).numpy()
        refit_layers(copy.model.quantized_layers[start:], Activations(hidden))
        assert got[name][1] == pytest.approx(copy.score(x, y), abs=0.011)


@pytest.mark.parametrize("levels", [2, 3])
def test_substitution_counts_in_bits_what_it_would_multiply(levels, monkeypatch):
    # From 64 channels on layers are counted.
    params = NetworkParams(conv=[64, 66, 3], max_pool=[0, 1, 0], fc=[7], levels=levels)
    network = BinaryNeuralNetwork((7, 6, 2), 4, params)
    x, y = images(30), np.arange(30) % 4

    def measured():
        copy = network.with_weights([]).refit_batch_norm(x)
        return measure.substitution_accuracies(network, x, x, y), copy.model.get_weights()

    counted, statistics = measured()
    convs = network.model.conv_layers
    assert [layer._counts() for layer in convs] == [False, True, True]
    monkeypatch.setattr(type(convs[0]), "_counts", lambda self: False)
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
    got = measure.substitution_accuracies(network, x[:200], x[200:], y[200:])
    assert got["none"][0] > 0.95
    assert got["conv_2"][0] < 0.8 < 0.95 < got["conv_2"][1]


# --- The first layer in other bases ---


def rotated_network(kind, **changes):
    params = NetworkParams(conv=[6, 8], max_pool=[0, 1], fc=[], rotate_first=kind, **changes)
    training = TrainingParams(epochs=2, batch_size=10, lr_start=1e-2, lr_end=1e-3)
    network = BinaryNeuralNetwork((7, 6, 2), 4, params, training)
    return network.fit(images(60, seed=1), np.arange(60) % 4)


@pytest.mark.parametrize("kind", ["random", "pca", "zca"])
def test_a_rotated_first_layer_trains_and_reopens(kind, tmp_path):
    network, x = rotated_network(kind), images(30)
    network.save(tmp_path / "network.keras")
    opened = BinaryNeuralNetwork.load(tmp_path / "network.keras")
    np.testing.assert_array_equal(opened.predict(x), network.predict(x))
    basis = opened.model.conv_layers[0].basis_matrix.numpy()
    opened.fit(images(60, seed=9), np.arange(60) % 4)  # keeps the basis that it came with
    np.testing.assert_array_equal(opened.model.conv_layers[0].basis_matrix, basis)


@pytest.mark.parametrize("kind", ["random", "pca"])
def test_a_rotated_first_layer_convolves_with_the_rotated_binarization(kind):
    layer = rotated_network(kind).model.conv_layers[0]
    rotation, latent = layer.basis_matrix.numpy(), layer.latent_kernel.numpy().reshape(18, 6)
    assert not np.allclose(rotation, np.eye(18), atol=0.1)
    expected = geometry.rotated_binarization(latent.T, rotation).T
    np.testing.assert_allclose(layer.quantized_kernel().numpy().reshape(18, 6), expected, atol=1e-5)
    np.testing.assert_allclose(layer.continuous_kernel(), layer.latent_kernel, atol=1e-5)


def test_a_whitened_first_layer_binarizes_weights_of_whitened_patches():
    network, x = rotated_network("zca"), images(60, seed=1)
    layer = network.model.conv_layers[0]
    patches = geometry.image_patches(scaled(x), 3).reshape(-1, 18)
    whitened = (patches - patches.mean(0)) @ layer.basis_matrix.numpy()
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(18), atol=0.2)
    signs = np.where(layer.latent_kernel.numpy().reshape(18, 6) >= 0, 1, -1)
    dots = layer.dot_products(x, layer.quantized_kernel()).numpy().reshape(-1, 6)
    difference = dots - whitened @ signs  # the mean's share, which batch norm takes away
    np.testing.assert_allclose(difference - difference[0], 0, atol=2e-4)


def test_a_rotated_first_layer_is_measured_in_its_basis():
    network, x = rotated_network("zca"), images(200)
    layer, kept = measure.measure_network(network, x, x)[0], network.model.conv_layers[0]
    latent = kept.latent_kernel.numpy()
    np.testing.assert_allclose(layer.angles, geometry.unit_angles(latent, np.sign(latent)))
    assert np.mean(layer.predicted_r - layer.weights_dot.unit_r) == pytest.approx(0, abs=0.05)
    copy = network.with_weights(["conv_1"]).model.conv_layers[0]
    np.testing.assert_array_equal(copy.quantized_kernel(), kept.continuous_kernel())


def test_whitening_brings_the_first_layers_correlation_to_the_cosine():
    params = NetworkParams(conv=[64], max_pool=[0], fc=[], levels=3, threshold=0.0)
    network = BinaryNeuralNetwork((7, 6, 2), 4, params)
    x = images(500)
    got = measure.rotation_correlations(network, x, x)
    cosine = np.cos(measure.measure_layers(network, x[:60])[0].angles).mean()
    assert got["zca"]["weights"] == pytest.approx(cosine, abs=0.03)
    assert got["zca"]["both"] < got["zca"]["patches"] < 0.9
    assert list(got) == ["as is", "random", "pca", "zca"]


def test_rotation_correlations_are_those_of_rotated_patches():
    network = BinaryNeuralNetwork((7, 6, 2), 4, NetworkParams(conv=[5], max_pool=[0], fc=[]))
    x = images(300)
    got = measure.rotation_correlations(network, x, x)
    patches = geometry.image_patches(scaled(x), 3).reshape(-1, 18).astype(float)
    w = network.model.conv_layers[0].latent_kernel.numpy().reshape(18, 5)
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


# --- During training, and quantizers of one's own ---


def test_the_geometry_is_recorded_before_and_after_each_epoch(tmp_path):
    x, y, path = images(40), np.arange(40) % 4, tmp_path / "geometry.csv"
    training = TrainingParams(epochs=2, batch_size=10, lr_start=1e-2, lr_end=1e-3)
    params = NetworkParams(conv=[40], max_pool=[1], fc=[30])
    network = BinaryNeuralNetwork((7, 6, 2), 4, params, training)
    first = measure.measure_layers(network, x)
    network.fit(x, y, callbacks=[measure.GeometryLog(network, x, path)])
    rows = measure.read_geometry(path)
    assert [(row["epochs"], row["layer"]) for row in rows] == [
        (epochs, layer) for epochs in range(3) for layer in ("conv_1", "fc_1", "fc_2")
    ]
    for row, layer in zip(rows, first + measure.measure_layers(network, x) * 2, strict=True):
        if row["epochs"] != 1:
            assert row["angle"] == pytest.approx(np.degrees(layer.angles.mean()), abs=1e-3)
        # Batch norm, re-estimated after the last epoch, changes what the layers above see.
        if row["epochs"] == 0 or (row["epochs"] == 2 and row["layer"] == "conv_1"):
            assert row["r"] == pytest.approx(layer.weights_dot.r, abs=1e-3)
    assert rows[1]["angle"] == pytest.approx(30, abs=0.5)  # Uniform weights; 480 of them.

    # What a killed run had recorded beyond its last state is taken back, the rest is kept.
    log = measure.GeometryLog(network, x, path)
    log.on_epoch_begin(1)
    log.on_epoch_end(1)
    resumed = measure.read_geometry(path)
    assert [row["epochs"] for row in resumed] == [row["epochs"] for row in rows]
    assert resumed[:3] == rows[:3]
    log = measure.GeometryLog(network, x, path)
    log.on_epoch_begin(0)
    assert {row["epochs"] for row in measure.read_geometry(path)} == {0}
    assert measure.read_geometry(tmp_path / "missing.csv") == []


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
        quantized = graph_ops.quantizer_named("scaled_sign")(x, 0.0)
    np.testing.assert_array_equal(tape.gradient(quantized, x), np.abs(w) <= 1)
    signs = np.where(w >= 0, 1, -1)
    for unit in range(5):
        scale = np.linalg.lstsq(signs[..., unit].reshape(-1, 1), w[..., unit].ravel())[0][0]
        np.testing.assert_allclose(quantized[..., unit], scale * signs[..., unit], rtol=1e-4)
    params = NetworkParams(conv=[3], max_pool=[0], fc=[], quantizer="scaled_sign")
    assert params.kind == "scaled_sign"
    layer = BinaryNeuralNetwork((7, 6, 2), 4, params).model.conv_layers[0]
    assert (layer.weight_quantizer, layer.activation_quantizer) == ("scaled_sign", "binary")


def test_an_untrained_network_has_the_spread_of_the_published_initialization():
    network = BinaryNeuralNetwork((8, 8, 1), 10, NetworkParams(conv=[64, 96], max_pool=[0, 1]))
    layers = measure.layer_weights(network)
    np.testing.assert_allclose([layer.sd_over_initial for layer in layers], 1, rtol=0.05)
    layers[1].wc = 3 * layers[1].wc
    assert layers[1].sd_over_initial == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_the_spread_ratio_is_one_for_units_that_are_alike(threshold):
    def ratio(wc):
        wb = np.sign(wc) * (np.abs(wc) > threshold)
        return measure.LayerMeasurement("", 288, True, wc, wb, threshold, True, True).spread_ratio

    wc = 0.18 * np.random.default_rng(0).standard_normal((3, 3, 32, 64))
    assert ratio(wc) == pytest.approx(1, abs=0.2)
    scale = np.where(np.arange(64) % 2, 1.0, 0.5)
    assert ratio(np.abs(wc) ** (2 * scale) * np.sign(wc)) > 1.5
    if threshold:  # Scale alone turns no vector of signs, but one of a fixed threshold.
        assert ratio(scale * wc) > 1.5
