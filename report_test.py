"""The measurement against NumPy on small networks, its independence of the batches, the report."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import tensorflow as tf

import geometry
import graph_ops
import report
from bnn import (
    Activations,
    BinaryNeuralNetwork,
    NetworkParams,
    TrainingParams,
    refit_layers,
    scaled,
)
from data.load_data import load_data

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
    results = [report.measure_network(network, x, x_train, size) for size in (7, 50, 500)]
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


def test_dot_products_are_those_of_patches_and_kernels(network):
    x = images(20)
    inside = network.inspect_network(x)
    measured = report.measure_layers(network, x)[1]
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
        # All but what lies beyond four root mean squares.
        assert 0.98 * x_dot.size < pairs.histogram.sum() <= x_dot.size


def test_the_covariance_of_the_same_images_predicts_r_exactly(network):
    x = images(80)
    for layer in report.measure_network(network, x, x)[2:]:  # one patch an image: all are sampled
        np.testing.assert_allclose(layer.predicted_r, layer.weights_dot.unit_r, atol=1e-5)
        assert layer.spectrum.shape == (layer.fan_in,)


def test_sampled_patches_are_patches_at_positions_of_the_images_own():
    x = np.random.default_rng(0).standard_normal((6, 5, 4, 2))
    for size in (1, 2, 3):
        sampled = report._sampled_patches(x, size, 0)
        every = geometry.image_patches(x, size).reshape(6, 20, -1)
        match = (sampled[:, :, None] == every[:, None]).all(-1)
        assert match.any(-1).all()
        assert match.any(1).sum() > 0.6 * 120  # all over the image
        np.testing.assert_array_equal(sampled[4:], report._sampled_patches(x[4:], size, 4))


def test_permuted_activations_leave_the_cosine_of_the_angle():
    params = NetworkParams(conv=[8, 48], max_pool=[0, 0], fc=[])
    network = BinaryNeuralNetwork((12, 12, 2), 2, params)
    layer = report.measure_network(network, images(300, (12, 12, 2)), images(9, (12, 12, 2)))[1]
    cosine = np.cos(layer.angles)
    assert np.mean(layer.permuted.inside_unit_r) == pytest.approx(cosine.mean(), abs=0.01)
    np.testing.assert_allclose(layer.permuted.inside_unit_r, cosine, atol=0.05)


def test_images_without_an_inside_have_no_inside_correlation():
    network = BinaryNeuralNetwork((2, 2, 1), 2, NetworkParams(conv=[3], max_pool=[0], fc=[]))
    layer = report.measure_layers(network, images(30, (2, 2, 1)))[0]
    assert np.isnan(layer.weights_dot.inside_r) and np.isfinite(layer.weights_dot.r)


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
    got = report.substitution_accuracies(network, x_train, x, y)
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


def test_refitting_makes_up_for_the_scale_of_the_latent_weights():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    x = rng.integers(0, 120, (300, 6, 6, 1)).astype(np.uint8)
    x[y == 1, :3] += 100
    params = NetworkParams(conv=[8, 16], max_pool=[0, 1], fc=[])
    training = TrainingParams(epochs=8, batch_size=20, lr_start=1e-2, lr_end=1e-3)
    network = BinaryNeuralNetwork((6, 6, 1), 2, params, training).fit(x[:200], y[:200])
    got = report.substitution_accuracies(network, x[:200], x[200:], y[200:])
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
    layer, kept = report.measure_network(network, x, x)[0], network.model.conv_layers[0]
    latent = kept.latent_kernel.numpy()
    np.testing.assert_allclose(layer.angles, geometry.unit_angles(latent, np.sign(latent)))
    assert np.mean(layer.predicted_r - layer.weights_dot.unit_r) == pytest.approx(0, abs=0.05)
    copy = network.with_weights(["conv_1"]).model.conv_layers[0]
    np.testing.assert_array_equal(copy.quantized_kernel(), kept.continuous_kernel())


def test_whitening_brings_the_first_layers_correlation_to_the_cosine():
    params = NetworkParams(conv=[64], max_pool=[0], fc=[], levels=3, threshold=0.0)
    network = BinaryNeuralNetwork((7, 6, 2), 4, params)
    x = images(500)
    got = report.rotation_correlations(network, x, x)
    cosine = np.cos(report.measure_layers(network, x[:60])[0].angles).mean()
    assert got["zca"]["weights"] == pytest.approx(cosine, abs=0.03)
    assert got["zca"]["both"] < got["zca"]["patches"] < 0.9
    assert list(got) == ["as is", "random", "pca", "zca"]


def test_rotation_correlations_are_those_of_rotated_patches():
    network = BinaryNeuralNetwork((7, 6, 2), 4, NetworkParams(conv=[5], max_pool=[0], fc=[]))
    x = images(300)
    got = report.rotation_correlations(network, x, x)
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


# --- Claims and the report ---


def dot_products(r, inside=None, units=64):
    inside = r if inside is None else inside
    units = np.ones(units)
    histogram = np.eye(4, dtype=int)
    return report.DotProducts(
        r, inside, 2.0, 0.1, r * units, inside * units, (-1, 1, -1, 1), histogram
    )


def exemplary(threshold=0.0):
    """A report in which every claim holds: Gaussian weights, correlations as published."""
    rng, layers = np.random.default_rng(0), []
    for i, d in enumerate((27, 288, 576)):
        wc = 0.18 * rng.standard_normal((3, 3, d // 9, 64))
        layer = report.LayerMeasurement(
            name=f"conv_{i + 1}",
            fan_in=d,
            convolutional=True,
            wc=wc,
            wb=np.sign(wc) * (np.abs(wc) > threshold),
            threshold=threshold,
            quantized=True,
            quantized_input=i > 0,
        )
        cosine = np.cos(layer.angles).mean()
        layer.weights_dot = dot_products(0.96 if i else 0.57)
        layer.activations_dot = dot_products(0.95) if i else None
        layer.entries = dot_products(0.8) if i else None
        layer.permuted = dot_products(0.85, cosine)
        layer.spectrum = np.array([3.0, 1.0, *np.zeros(d - 2)])
        layer.predicted_r = np.full(64, 0.96 if i else 0.56)
        layers.append(layer)
    bases = {"as is": 0.57, "random": 0.77, "pca": 0.77, "zca": 0.83}
    rotation = {
        name: dict(zip(("weights", "patches", "both"), (r, r, r / 2), strict=True))
        for name, r in bases.items()
    }
    substitution = dict.fromkeys(("none", "all", "conv_1", "conv_2", "conv_3"), (0.1, 0.89))
    about = {
        "data_set": "cifar-10",
        "test_images": 10_000,
        "test_accuracy": 0.9,
        "network_params": {},
        "seconds": 1,
        "peak_memory_mb": 1,
    }
    return report.Report("0" * 64, about, layers, rotation, substitution)


def judged(made):
    return {claim.id: claim for claim in made.claims()}


def test_an_exemplary_network_bears_out_every_claim():
    claims = judged(exemplary())
    assert {name for name, claim in claims.items() if not claim.holds} == {"ternary"}
    claims = judged(exemplary(threshold=0.02))
    assert {name for name, claim in claims.items() if not claim.holds} == {"angle-layers"}


def weights_of_shape(made, kurtosis):
    rng, layer = np.random.default_rng(1), made.layers[1]
    sample = {
        "uniform": rng.uniform(-1, 1, layer.wc.shape),
        "laplace": rng.laplace(0, 0.1, layer.wc.shape),
    }
    layer.wc = sample[kurtosis]
    layer.wb = np.sign(layer.wc)


def two_scales(made):
    """Entries of one magnitude in half of the units: the kurtosis' mean no longer tells."""
    layer = made.layers[2]
    layer.wc[..., ::2] = 0.2 * np.sign(layer.wc[..., ::2])


# Each breaks one condition only just, or one of its parts.
BREACHES = {
    "angle-layers: uniform": lambda made: weights_of_shape(made, "uniform"),
    "angle-layers: laplace": lambda made: weights_of_shape(made, "laplace"),
    "angle-layers: kurtosis": two_scales,
    "angle-scaling": two_scales,
    "weights-dot: inner": lambda made: vars(made.layers[2].weights_dot).update(r=0.899),
    "weights-dot: first": lambda made: vars(made.layers[0].weights_dot).update(r=0.97),
    "activations-dot": lambda made: vars(made.layers[1].activations_dot).update(r=0.849),
    "permutation: cosine": lambda made: vars(made.layers[1].permuted).update(
        inside_unit_r=np.full(64, 0.76)
    ),
    "permutation: fall": lambda made: vars(made.layers[1].weights_dot).update(
        inside_unit_r=np.full(64, 0.87)
    ),
    "first-layer: axis": lambda made: vars(made.layers[0]).update(spectrum=np.array([0.49, 0.51])),
    "first-layer: whitening": lambda made: made.rotation["zca"].update(weights=0.71),
    "first-layer: predicted": lambda made: vars(made.layers[0]).update(
        predicted_r=np.full(64, 0.535)
    ),
    "substitution": lambda made: made.substitution.update(conv_2=(0.9, 0.879)),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_condition_that_is_missed_is_said_and_explained(breach):
    made = exemplary()
    BREACHES[breach](made)
    claim = judged(made)[breach.split(":")[0]]
    assert claim.holds is False and claim.why
    assert f"**{claim.id}**: {claim.why}" in report.report_text(made, made.claims())


def test_layers_that_are_not_judged_change_no_verdict():
    made = exemplary()
    made.substitution["conv_1"] = made.substitution["all"] = (0.1, 0.1)
    vars(made.layers[0].permuted).update(inside_unit_r=np.full(64, 0.5))
    dense = dataclasses.replace(
        made.layers[2], name="fc_1", convolutional=False, weights_dot=dot_products(0.1)
    )
    made.layers.append(dense)
    assert [c.id for c in made.claims() if not c.holds] == ["ternary"]


def test_what_cannot_be_judged_is_not():
    params = NetworkParams(conv=[], max_pool=[], fc=[5])
    network = BinaryNeuralNetwork((7, 6, 2), 4, params)
    x, y = images(20), np.arange(20) % 4
    layers = report.measure_network(network, x, x)
    about = {**exemplary().about, "test_accuracy": 0.25}
    substitution = report.substitution_accuracies(network, x, x, y)
    made = report.Report("", about, layers, {}, substitution)
    holds = {claim.id for claim in made.claims() if claim.holds is not None}
    assert holds == {"angle-random", "angle-binary", "rotation", "weights-hist"}
    assert "fc_1" in report.report_text(made, made.claims())


SLOW = (pytest.param(kind, marks=pytest.mark.slow) for kind in ("ternary", "rotated"))


@pytest.fixture(scope="module", params=["binary", *SLOW])
def checkpoint(request, tmp_path_factory):
    """A checkpoint that takes digits, trained on a few of them."""
    kind = {"ternary": {"levels": 3}, "rotated": {"rotate_first": "pca"}}.get(request.param, {})
    params = NetworkParams(conv=[4, 6, 6], max_pool=[0, 0, 1], fc=[5], **kind)
    training = TrainingParams(epochs=1, lr_start=1e-2, lr_end=1e-2)
    data = load_data("digits")
    network = BinaryNeuralNetwork((8, 8, 1), 10, params, training)
    network.fit(data.x_train[:300], data.y_train[:300])
    path = tmp_path_factory.mktemp("run") / "network.keras"
    network.save(path)
    return path


def test_the_report_is_stored_with_its_checkpoint_alone(checkpoint, capsys):
    assert report.stored_report(checkpoint) is None
    report.main([str(checkpoint), "--images", "120"])
    capsys.readouterr()
    folder = checkpoint.parent
    stored, summary = (
        report.stored_report(checkpoint),
        json.loads((folder / "report.json").read_text()),
    )
    assert summary["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert summary["test_images"] == 120
    claims = [{**vars(claim), "condition": claim.condition} for claim in stored.claims()]
    assert claims == summary["claims"]
    assert (folder / "report.md").read_text() == report.report_text(stored, stored.claims())
    data = load_data("digits")
    network = BinaryNeuralNetwork.load(checkpoint)
    fresh = report.measure_network(network, data.x_test[:120], data.x_train)
    for ours, theirs in zip(stored.layers, fresh, strict=True):
        np.testing.assert_array_equal(ours.wb, theirs.wb)
        np.testing.assert_array_equal(ours.weights_dot.histogram, theirs.weights_dot.histogram)
        np.testing.assert_allclose(ours.predicted_r, theirs.predicted_r)
        assert ours.permuted.r == theirs.permuted.r

    for name in ("report.npz", "report.json"):
        whole = (folder / name).read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], b"[]"):
            (folder / name).write_bytes(damaged)
            assert report.stored_report(checkpoint) is None
        (folder / name).write_bytes(whole)
    assert report.stored_report(checkpoint) is not None
    network.with_weights([]).fit(data.x_train[:50], data.y_train[:50]).save(checkpoint)
    assert report.stored_report(checkpoint) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/missing.keras"], "there is no checkpoint"),
        (["{}/text.keras"], "damaged or no checkpoint"),
        (["{}/text.keras", "--images", "0"], "--images must be at least 1"),
        (["{}/cifar.keras", "--data_dir", "{}/nothing"], "nothing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    (tmp_path / "text.keras").write_text("no checkpoint")
    params = NetworkParams(conv=[2], max_pool=[0], fc=[])
    BinaryNeuralNetwork((32, 32, 3), 10, params).save(tmp_path / "cifar.keras")
    with pytest.raises(SystemExit) as stop:
        report.main([argument.format(tmp_path) for argument in arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1
    assert lines[0].startswith("report.py: error:") and message in lines[0]
    assert not (tmp_path / "report.md").exists()


# --- During training, and quantizers of one's own ---


def test_the_geometry_is_recorded_before_and_after_each_epoch(tmp_path):
    x, y, path = images(40), np.arange(40) % 4, tmp_path / "geometry.csv"
    training = TrainingParams(epochs=2, batch_size=10, lr_start=1e-2, lr_end=1e-3)
    params = NetworkParams(conv=[40], max_pool=[1], fc=[30])
    network = BinaryNeuralNetwork((7, 6, 2), 4, params, training)
    first = report.measure_layers(network, x)
    network.fit(x, y, callbacks=[report.GeometryLog(network, x, path)])
    rows = report.read_geometry(path)
    assert [(row["epochs"], row["layer"]) for row in rows] == [
        (epochs, layer) for epochs in range(3) for layer in ("conv_1", "fc_1", "fc_2")
    ]
    for row, layer in zip(rows, first + report.measure_layers(network, x) * 2, strict=True):
        if row["epochs"] != 1:
            assert row["angle"] == pytest.approx(np.degrees(layer.angles.mean()), abs=1e-3)
            assert row["r"] == pytest.approx(layer.weights_dot.r, abs=1e-3)
    assert rows[1]["angle"] == pytest.approx(30, abs=0.5)  # Uniform weights; 480 of them.

    # What a killed run had recorded beyond its last state is taken back, the rest is kept.
    log = report.GeometryLog(network, x, path)
    log.on_epoch_begin(1)
    log.on_epoch_end(1)
    resumed = report.read_geometry(path)
    assert [row["epochs"] for row in resumed] == [row["epochs"] for row in rows]
    assert resumed[:3] == rows[:3]
    log = report.GeometryLog(network, x, path)
    log.on_epoch_begin(0)
    assert {row["epochs"] for row in report.read_geometry(path)} == {0}


@pytest.fixture
def steep():
    """A straight-through gradient of one's own, as the README shows it, and gone afterwards."""

    @graph_ops.register_quantizer("steep")
    def quantizer(x, threshold=0.0):
        # The sign's gradient is that of the triangle 1 − |x| (Bi-Real Net, arXiv 1808.00278).
        @tf.custom_gradient
        def forward(x):
            slope = tf.nn.relu(1 - tf.abs(x))
            return 2 * tf.cast(x >= 0, x.dtype) - 1, lambda upstream: 2 * slope * upstream

        return forward(x)

    yield quantizer
    graph_ops.QUANTIZERS.pop("steep")


def test_a_quantizer_of_ones_own_trains_saves_reloads_and_is_measured(steep, tmp_path):
    params = NetworkParams(conv=[4, 5], max_pool=[0, 1], fc=[], quantizer="steep")
    training = TrainingParams(epochs=1, lr_start=1e-2, lr_end=1e-2)
    data = load_data("digits")
    network = BinaryNeuralNetwork((8, 8, 1), 10, params, training)
    network.fit(data.x_train[:200], data.y_train[:200]).save(tmp_path / "network.keras")
    opened = BinaryNeuralNetwork.load(tmp_path / "network.keras")
    assert {layer.weight_quantizer for layer in opened.model.quantized_layers} == {"steep"}
    assert opened.model.conv_layers[0].activation_quantizer == "steep"
    x = data.x_test[:60]
    np.testing.assert_array_equal(opened.predict(x), network.predict(x))
    made = report.measure_checkpoint(tmp_path / "network.keras", images=60)
    assert judged(made)["weights-dot"].holds is not None

    graph_ops.QUANTIZERS.pop("steep")
    with pytest.raises(ValueError, match="no quantizer named 'steep'; known are binary"):
        BinaryNeuralNetwork.load(tmp_path / "network.keras")
    graph_ops.QUANTIZERS["steep"] = steep


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


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_the_spread_ratio_is_one_for_units_that_are_alike(threshold):
    layer = exemplary(threshold).layers[1]
    assert layer.spread_ratio == pytest.approx(1, abs=0.2)
    scale = np.where(np.arange(64) % 2, 1.0, 0.5)
    for wc in (layer.wc * scale, np.abs(layer.wc) ** (2 * scale) * np.sign(layer.wc)):
        wb = np.sign(wc) * (np.abs(wc) > threshold)
        mixed = dataclasses.replace(layer, wc=wc, wb=wb)
        # Scale alone turns a sign's angle not at all, but a fixed threshold's.
        assert mixed.spread_ratio > 1.5 or (threshold == 0 and np.allclose(wb * wc, np.abs(wc)))
