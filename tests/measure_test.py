"""The measurement against NumPy on small networks, and its independence of the batches."""

import keras
import numpy as np
import pytest
from small_networks import KINDS, smooth_images, trained_network

import geometry
import measure
from bnn import BinaryNeuralNetwork, NetworkParams, TrainingParams, scaled
from graph_ops import Ternary
from walk import Window


@pytest.fixture(scope="module", params=KINDS)
def network(request):
    return trained_network(request.param)


def pairs_of(layer):
    return [layer.weights_dot, layer.permuted] + [layer.activations_dot] * (
        layer.activations_dot is not None
    )


def test_the_batch_size_changes_nothing(network):
    x, x_train = smooth_images(70), smooth_images(70, seed=1)
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
    x = smooth_images(70)
    measured = (measure.measure_layers(one, x) for one in (network, compact))
    for exact, rounded in zip(*measured, strict=True):
        np.testing.assert_allclose(rounded.angles, exact.angles, atol=np.radians(0.1))
        for same in zip(pairs_of(exact), pairs_of(rounded), strict=True):
            if None not in same:
                assert same[1].r == pytest.approx(same[0].r, abs=1e-3)


def test_dot_products_are_those_of_patches_and_kernels(network):
    x = smooth_images(20)
    inside = network.inspect_network(x)
    measured = measure.measure_layers(network, x)[1]
    before, after = (
        geometry.image_patches(inside["conv_tensors"][0][name].astype(float), 3)
        for name in ("pre_bin_act", "post_bin_act")
    )
    wc, wb = (inside["conv_tensors"][1][name].reshape(-1, 8) for name in ("wc", "wb"))
    wb = wb if measured.quantized else geometry.quantized(wc)  # Floats: against their signs.
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
    x = smooth_images(80)
    for layer in measure.measure_network(network, x, x)[2:]:  # one patch an image: all are sampled
        np.testing.assert_allclose(layer.predicted_r, layer.weights_dot.unit_r, atol=1e-5)
        assert layer.spectrum.shape == (layer.fan_in,)


def test_without_its_first_axis_a_covariance_predicts_the_correlation_of_the_rest(network):
    x = smooth_images(80)
    layer = measure.measure_network(network, x, x)[0]
    statistics = network.first_patches(x)  # All of them, where the measurement samples.
    patches = geometry.image_patches(scaled(x), 3).reshape(-1, 18).astype(float)
    axis = geometry.principal_axes(statistics.covariance)[0]
    patches -= np.outer(patches @ axis, axis)
    wc, wb = (w.reshape(18, -1) for w in (layer.wc, layer.wb))
    for unit, predicted in enumerate(layer.deflated_r):
        rest = np.corrcoef(patches @ wc[:, unit], patches @ wb[:, unit])[0, 1]
        assert predicted == pytest.approx(rest, abs=0.05)
    assert not np.allclose(layer.deflated_r, layer.predicted_r, atol=0.02)


def test_empty_background_is_left_out_of_the_textured_positions():
    params = NetworkParams(conv=[5, 8], max_pool=[0, 1], fc=[])
    network = BinaryNeuralNetwork((12, 12, 2), 4, params).refit_batch_norm(
        smooth_images(9, (12, 12, 2))
    )
    x = smooth_images(30, (12, 12, 2))
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
        sampled = measure.sampled_patches(x, Window((size, size)), 0)
        every = geometry.image_patches(x, size).reshape(6, 20, -1)
        match = (sampled[:, :, None] == every[:, None]).all(-1)
        assert match.any(-1).all()
        assert match.any(1).sum() > 0.6 * 120  # all over the image
        np.testing.assert_array_equal(
            sampled[4:], measure.sampled_patches(x[4:], Window((size, size)), 4)
        )


def test_permuted_activations_leave_the_cosine_of_the_angle():
    params = NetworkParams(conv=[8, 48], max_pool=[0, 0], fc=[])
    network = BinaryNeuralNetwork((12, 12, 2), 2, params)
    layer = measure.measure_network(
        network, smooth_images(300, (12, 12, 2)), smooth_images(9, (12, 12, 2))
    )[1]
    cosine = np.cos(layer.angles)
    assert np.mean(layer.permuted.inside_unit_r) == pytest.approx(cosine.mean(), abs=0.01)
    np.testing.assert_allclose(layer.permuted.inside_unit_r, cosine, atol=0.05)


def test_images_without_an_inside_have_no_inside_correlation():
    network = BinaryNeuralNetwork((2, 2, 1), 2, NetworkParams(conv=[3], max_pool=[0], fc=[]))
    layer = measure.measure_layers(network, smooth_images(30, (2, 2, 1)))[0]
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
    table = measure.format_table(measure.measure_layers(network, smooth_images(20)))
    assert max(map(len, table.split("\n"))) <= 100
    for layer in network.layers:
        assert table.count(f"\n{layer.name} ") == 2


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
        return measure.LayerMeasurement(
            "", 288, Window((3, 3)), False, wc, wb, threshold, True, True
        ).spread_ratio

    wc = 0.18 * np.random.default_rng(0).standard_normal((3, 3, 32, 64))
    assert ratio(wc) == pytest.approx(1, abs=0.2)
    scale = np.where(np.arange(64) % 2, 1.0, 0.5)
    assert ratio(np.abs(wc) ** (2 * scale) * np.sign(wc)) > 1.5
    if threshold:  # Scale alone turns no vector of signs, but one of a fixed threshold.
        assert ratio(scale * wc) > 1.5


# --- Any Keras model ---


def float_model():
    images = keras.Input((7, 6, 2))
    x = keras.layers.Conv2D(5, (3, 2), strides=2, padding="valid", activation="relu")(images)
    return keras.Model(images, keras.layers.Dense(4)(keras.layers.Flatten()(x)))


def test_a_float_layer_is_measured_against_the_quantizer_that_is_asked_for():
    model, x = float_model(), scaled(smooth_images(40))
    conv, dense = measure.measure_layers(model, x)
    assert not conv.quantized and conv.activations_dot is None
    np.testing.assert_array_equal(np.unique(conv.wb), [-1, 1])
    ternary = measure.measure_layers(model, x, quantizer=Ternary(sigma=0.6))[1]
    expected = geometry.quantized(dense.wc, 0.6 * dense.wc.std())
    np.testing.assert_array_equal(ternary.wb, expected)


def test_strided_and_valid_convolutions_have_their_patches_and_covariances():
    model, x = float_model(), scaled(smooth_images(500))
    layer = measure.measure_network(model, x, x)[0]
    assert (layer.fan_in, layer.positions, layer.window.border) == (12, 3 * 3, 0)
    np.testing.assert_allclose(layer.predicted_r, layer.weights_dot.unit_r, atol=0.03)


def test_a_huge_batch_size_takes_no_more_memory(monkeypatch):
    sizes, visit = set(), measure.walk.visit

    def noted(model, x, visitor, **options):
        sizes.add(len(x))
        return visit(model, x, visitor, **options)

    monkeypatch.setattr(measure.walk, "visit", noted)
    monkeypatch.setattr(measure, "BATCH_FLOATS", 2000)
    model, x = float_model(), scaled(smooth_images(60))
    small = measure.measure_layers(model, x, batch_size=10**9)
    assert max(sizes) < 20
    monkeypatch.setattr(measure, "BATCH_FLOATS", 2**27)
    for one, other in zip(small, measure.measure_layers(model, x), strict=True):
        assert one.weights_dot.r == pytest.approx(other.weights_dot.r, abs=1e-6)


def test_what_stands_for_the_latent_weights_of_bop():
    options = {"optimizer": "bop", "bop_gamma": 0.2, "bop_threshold": 1e-2}
    params = NetworkParams(conv=[5], max_pool=[0], fc=[7])
    training = TrainingParams(epochs=2, batch_size=10, lr_start=1e-2, **options)
    network = BinaryNeuralNetwork((7, 6, 2), 4, params, training)
    network.fit(smooth_images(60, seed=1), np.arange(60) % 4)
    x = smooth_images(40)
    layer = measure.measure_network(network, x, x)[0]
    wb, m = network.layers[0].latent_kernel.numpy(), network.gradient_averages["conv_1"]
    np.testing.assert_array_equal(layer.wb, wb)
    np.testing.assert_array_equal(layer.wc, -m)
    assert layer.sign_agreement == np.mean(np.sign(-m) == wb) < 1
    cosines = [
        np.dot(-m[..., i].ravel(), wb[..., i].ravel()) / np.linalg.norm(m[..., i]) / 18**0.5
        for i in range(5)
    ]
    np.testing.assert_allclose(np.cos(layer.angles), cosines, atol=1e-6)
    patches = geometry.image_patches(scaled(x), 3).reshape(-1, 18).astype(float)
    dots = patches @ -m.reshape(18, 5), patches @ wb.reshape(18, 5)
    expected = np.corrcoef(*(values.ravel() for values in dots))[0, 1]
    assert layer.weights_dot.r == pytest.approx(expected, abs=1e-4)
    # Asked for, they stand for latent weights that there are, too.
    latent = {"conv_1": 2 * m}
    other = measure.measure_layers(network, x, latent=latent)[0]
    assert other.weights_dot.r == pytest.approx(-expected, abs=1e-4)
    assert measure.measure_layers(network, x, latent={})[0].weights_dot.r == pytest.approx(1)
