"""Smoke test of the whole network; `python bnn_test.py` runs it without anything else."""

import itertools
import json
import os
import signal
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import graph_ops
from bnn import BinaryNeuralNetwork, NetworkParams, PackedNetwork, TrainingParams
from data.load_data import load_data, missing_files
from graph_ops_test import numpy_convolution, numpy_pool

ROOT = Path(__file__).parent
KINDS = {
    "binary": {},
    "ternary": {"levels": 3},
    "ternary_sigma": {"levels": 3, "threshold_sigma": 0.6},
    "two thresholds": {"levels": 3, "threshold_sigma": 0.6, "activation_threshold": 0.02},
    "continuous": {"bin_weights": False, "bin_acts": False},
    "mixed": {"bin_weights": [1, 0, 1, 1], "bin_acts": [0, 1, 1, 1]},
}


def small_network(**changes):
    params = {"conv": [5, 6], "max_pool": [0, 1], "fc": [7], **changes}
    training = TrainingParams(epochs=2, batch_size=8, lr_start=1e-2, lr_end=1e-3)
    return BinaryNeuralNetwork((9, 7, 2), 4, NetworkParams(**params), training)


def random_images(count=24, dtype=np.uint8):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 9, 7, 2)).astype(np.uint8)
    images = images if dtype == np.uint8 else (2 * images.astype(np.float32) - 255) / 255
    return images, rng.integers(0, 4, count)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32], ids=["uint8", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_trains_saves_and_reloads(kind, dtype, tmp_path):
    x, y = random_images(dtype=dtype)
    network = small_network(**KINDS[kind]).fit(x, y, x[:8], y[:8])
    assert np.isfinite(network.history["val_loss"]).all()
    network.save(tmp_path / "network.keras")
    opened = BinaryNeuralNetwork.load(tmp_path / "network.keras")
    np.testing.assert_array_equal(opened.predict(x), network.predict(x))
    assert opened.network_params == network.network_params
    assert opened.training_params == network.training_params


@pytest.mark.parametrize("kind", KINDS)
def test_a_compact_checkpoint_answers_alike_from_half_the_bytes(kind, tmp_path):
    network, _, _ = trained(**KINDS[kind])
    rng = np.random.default_rng(0)
    for layer in network.model.quantized_layers:
        # Where rounding is most likely to cross a threshold: right beside it.
        beside = rng.uniform(-1e-6, 1e-6, layer.latent_kernel.shape)
        away = layer.latent_kernel.numpy() + rng.normal(0, 0.1, layer.latent_kernel.shape)
        threshold = float(layer.weight_threshold(layer.latent_kernel))
        close = rng.choice([-1, 1], beside.shape) * threshold + beside
        layer.latent_kernel.assign(np.where(rng.random(beside.shape) < 0.5, close, away))
    paths = [tmp_path / "network.keras", tmp_path / "network.compact.keras"]
    network.save(paths[0])
    network.save(paths[1], compact=True)
    opened = BinaryNeuralNetwork.load(paths[1])
    both = zip(opened.model.quantized_layers, network.model.quantized_layers, strict=True)
    for layer, own in both:
        if layer.weight_quantizer != "clip":
            np.testing.assert_array_equal(layer.quantized_kernel(), own.quantized_kernel())
        rounded, exact = layer.latent_kernel.numpy(), own.latent_kernel.numpy()
        assert np.all(rounded.view(np.uint32) % 2**16 == 0)
        np.testing.assert_allclose(rounded, exact, rtol=2**-7)
    assert paths[1].stat().st_size < paths[0].stat().st_size


def test_what_rounding_would_requantize_is_not_saved_compact(tmp_path, monkeypatch):
    network, _, _ = trained()
    layer = network.model.quantized_layers[1]
    exact = layer.latent_kernel.numpy()
    # A quantizer for which no rounded weight will do.
    monkeypatch.setattr(
        type(layer),
        "quantized_kernel",
        lambda self: keras.ops.convert_to_tensor(
            np.isin(self.latent_kernel.numpy(), exact).astype("float32")
        ),
    )
    with pytest.raises(ValueError, match="save without compact"):
        network.save(tmp_path / "network.keras", compact=True)
    assert not list(tmp_path.iterdir())


def trained(**changes):
    x, y = random_images()
    return small_network(**changes).fit(x, y), x, y


@pytest.mark.parametrize("kind", ["binary", "ternary", "continuous", "mixed"])
def test_predict_is_an_independent_forward_pass(kind):
    network, x, _ = trained(**KINDS[kind])
    params = network.network_params
    out = (2 * x.astype(np.float64) - 255) / 255

    def quantized(values, wanted):
        if not wanted:
            return np.clip(values, -1, 1)
        if params.levels == 2:
            return np.where(values >= 0, 1.0, -1.0)
        return np.sign(values) * (np.abs(values) > params.threshold)

    layers = network.model.quantized_layers
    switches = zip(params.per_layer("bin_weights"), params.per_layer("bin_acts"), strict=True)
    for i, (layer, (weights, acts)) in enumerate(zip(layers, switches, strict=True)):
        kernel = quantized(layer.latent_kernel.numpy(), weights)
        if i < 2:
            out = numpy_convolution(out, kernel)
            out = numpy_pool(out) if params.max_pool[i] else out
        else:
            out = out.reshape(len(x), -1) @ kernel
        norm = layer.batch_norm
        mean, variance, beta = (
            v.numpy() for v in (norm.moving_mean, norm.moving_variance, norm.beta)
        )
        out = (out - mean) / np.sqrt(variance + 1e-3) + beta
        out = out if i == len(layers) - 1 else quantized(out, acts)
    np.testing.assert_allclose(network.predict(x), out, rtol=1e-4, atol=1e-4)


def test_inspect_network_shows_what_predict_computes():
    network, x, _ = trained()
    inside = network.inspect_network(x)
    np.testing.assert_allclose(inside["x"], x / 127.5 - 1, atol=1e-6)
    assert [t["wc"].shape for t in inside["conv_tensors"]] == [(3, 3, 2, 5), (3, 3, 5, 6)]
    assert [t["wc"].shape for t in inside["fc_tensors"]] == [(5 * 4 * 6, 7), (7, 4)]
    for tensors in (*inside["conv_tensors"], *inside["fc_tensors"][:-1]):
        signs = np.where(tensors["pre_bin_act"] >= 0, 1, -1)
        np.testing.assert_array_equal(tensors["post_bin_act"], signs)
        np.testing.assert_array_equal(tensors["wb"], np.where(tensors["wc"] >= 0, 1, -1))
    np.testing.assert_array_equal(inside["fc_tensors"][-1]["post_bin_act"], network.predict(x))


def test_defaults_are_the_papers_network():
    network = BinaryNeuralNetwork((32, 32, 3), 10)
    fan_ins = [np.prod(t.latent_kernel.shape[:-1]) for t in network.model.quantized_layers]
    assert fan_ins == [27, 1152, 1152, 2304, 2304, 4608, 8192, 1024, 1024]
    assert round(network.weight_count / 1e6, 1) == 14.0


def test_learning_rate_decays_from_the_first_epoch():
    params = TrainingParams(epochs=500)
    assert params.learning_rate(0) == 1e-3
    assert params.learning_rate(250) == pytest.approx((1e-3 * 3e-7) ** 0.5)
    params = TrainingParams(epochs=40, lr_start=3e-3, lr_end=1e-3, lr_schedule="linear")
    assert [params.learning_rate(e) for e in (0, 20, 39)] == pytest.approx([3e-3, 2e-3, 1.05e-3])


def test_the_seed_fixes_everything():
    x, y = random_images()
    first, second = (small_network().fit(x, y) for _ in range(2))
    assert first.history["loss"] == second.history["loss"]
    np.testing.assert_array_equal(first.predict(x), second.predict(x))


def test_training_learns():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, 200)
    x = rng.integers(0, 100, (200, 9, 7, 2)).astype(np.uint8)
    # Each class has a bright quarter of the image of its own.
    for image, label in zip(x, y, strict=True):
        image[4 * (label // 2) : 4 + 4 * (label // 2), 3 * (label % 2) : 3 + 3 * (label % 2)] += 150
    training = TrainingParams(epochs=10, batch_size=20, lr_start=1e-2, lr_end=1e-3)
    params = NetworkParams(conv=[8], max_pool=[1], fc=[16])
    network = BinaryNeuralNetwork((9, 7, 2), 4, params, training).fit(x[:150], y[:150])
    assert network.score(x[150:], y[150:]) > 0.9


def test_training_ends_with_statistics_of_the_final_weights():
    network, x, _ = trained()
    before = network.model.get_weights()
    assert any(np.any(layer.batch_norm.moving_mean) for layer in network.model.quantized_layers)
    after = network.refit_batch_norm(x).model.get_weights()
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_validation_sees_statistics_of_the_epochs_weights():
    x, y = random_images()
    network = small_network().fit(x, y, x, y)
    # Nothing changes the weights between the last validation and the final statistics.
    assert network.history["val_accuracy"][-1] == pytest.approx(network.score(x, y))


@pytest.mark.slow
def test_bfloat16_learns_as_much_as_float32(runs_bfloat16):
    data = load_data("digits")
    params = NetworkParams(conv=[32, 32], max_pool=[0, 1], fc=[64])
    accuracies = {"float32": [], "mixed_bfloat16": []}
    for seed, (precision, found) in itertools.product(range(3), accuracies.items()):
        training = TrainingParams(
            epochs=10, lr_start=5e-3, lr_end=1e-4, seed=seed, precision=precision
        )
        network = BinaryNeuralNetwork((8, 8, 1), 10, params, training)
        network.fit(data.x_train, data.y_train)
        found.append(network.score(data.x_test, data.y_test))
    print(accuracies)
    means = [np.mean(found) for found in accuracies.values()]
    assert min(means) > 0.9
    assert abs(means[0] - means[1]) <= 0.02


def test_a_threshold_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="conv_1 without a single non-zero weight"):
        small_network(levels=3, threshold=0.99)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 9, 7, 1), np.uint8), None, "must have the shape"),
        (np.zeros((9, 7, 2), np.uint8), None, "must have the shape"),
        (np.zeros((0, 9, 7, 2), np.uint8), None, "not a single image"),
        (np.zeros((3, 9, 7, 2)), None, "uint8 or float32, not float64"),
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


def test_load_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        BinaryNeuralNetwork.load(tmp_path / "missing.keras")
    (tmp_path / "text.keras").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        BinaryNeuralNetwork.load(tmp_path / "text.keras")
    with pytest.raises(ValueError, match=r"ends in \.keras"):
        small_network().save(tmp_path / "network.h5")


def mutations(content, count):
    """Empty, truncated and bit-flipped versions of `content`, spread over all of it."""
    yield b""
    rng = np.random.default_rng(0)
    for position in np.linspace(0, len(content) - 1, count // 3).astype(int):
        yield content[:position]
    # The directory at the end of the archive is small but everything hangs on it.
    tail = rng.integers(len(content) - 500, len(content), count // 3)
    for position in [*rng.integers(0, len(content), count // 3), *tail]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.integers(8)
        yield bytes(damaged)


def test_a_damaged_checkpoint_is_refused_or_harmless(tmp_path):
    network, x, _ = trained()
    path = tmp_path / "network.keras"
    network.save(path)
    expected, refused = network.predict(x), 0
    for damaged in mutations(path.read_bytes(), 90):
        path.write_bytes(damaged)
        try:
            opened = BinaryNeuralNetwork.load(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)
        else:
            np.testing.assert_array_equal(opened.predict(x), expected)
    assert refused > 45


def rewritten(source, target, change):
    """Copy a checkpoint with its config.json changed and every check sum in order."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config)
            new.writestr(name, content)


def hostile_configs(marker):
    bomb = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    code = {"class_name": "__lambda__", "config": {"value": bomb}}
    layer = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": code}}
    call = {"module": "builtins", "class_name": "function", "config": "eval", "args": [bomb]}
    yield lambda config: config["config"].update(in_dim=layer)
    yield lambda config: config["config"]["network_params"].update(conv=[call], max_pool=[0])
    yield lambda config: config["config"]["training_params"].update(seed=call)
    yield lambda config: config["config"].update(layers=[layer], network_params=call)
    yield lambda config: config.update(layer)
    yield lambda config: config["config"]["network_params"].update(conv=[10**9, 10**9])
    yield lambda config: config["config"]["network_params"].update(fc=[7, 7])
    yield lambda config: config["config"].update(in_dim=[10**6, 10**6, 2])


@pytest.mark.parametrize("number", range(8))
def test_opening_a_hostile_checkpoint_runs_nothing(number, tmp_path):
    network = small_network()
    network.save(tmp_path / "good.keras")
    marker, bad = tmp_path / "ran", tmp_path / "bad.keras"
    rewritten(tmp_path / "good.keras", bad, list(hostile_configs(marker))[number])
    with pytest.raises(ValueError, match=r"bad\.keras"):
        BinaryNeuralNetwork.load(bad)
    assert not marker.exists()


def test_weights_with_nan_are_refused(tmp_path):
    network = small_network()
    network.model.quantized_layers[0].latent_kernel.assign(np.full((3, 3, 2, 5), np.nan))
    network.save(tmp_path / "network.keras")
    with pytest.raises(ValueError, match="NaN"):
        BinaryNeuralNetwork.load(tmp_path / "network.keras")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on file sizes")
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    import resource

    network = small_network()
    path = tmp_path / "network.keras"
    network.save(path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot write"):
            network.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- Packed network ---------------------------------------------------------------------------

SHAPES = {
    "odd": ((9, 7, 2), {"conv": [5, 70], "max_pool": [1, 1], "fc": [65, 7]}),
    "one channel": ((8, 8, 1), {"conv": [64, 33, 3], "max_pool": [0, 1, 0], "fc": []}),
    "even filters": ((6, 5, 3), {"conv": [8, 8], "max_pool": [0, 1], "fc": [9], "filter_size": 2}),
    "1x1": ((3, 3, 3), {"conv": [4, 4], "max_pool": [0, 0], "fc": [5], "filter_size": 1}),
    "dense": ((4, 4, 2), {"conv": [], "max_pool": [], "fc": [70, 6]}),
    "only an output": ((4, 4, 1), {"conv": [], "max_pool": [], "fc": []}),
}
LEVELS = {
    "binary": {},
    "ternary": {"levels": 3, "threshold": 0.05},
    "ternary_sigma": {"levels": 3, "threshold_sigma": 0.6},
    "two thresholds": {"levels": 3, "threshold": 0.05, "activation_threshold": 0.6},
}


def network_with_history(in_dim, **params):
    """A network whose batch norm has seen something, one unit a layer being constant."""
    rng = np.random.default_rng(2)
    training = TrainingParams(epochs=1, batch_size=8, lr_start=1e-2, bn_momentum=0.5)
    network = BinaryNeuralNetwork(in_dim, 4, NetworkParams(**params), training)
    x = rng.integers(0, 256, (40, *in_dim)).astype(np.uint8)
    network.fit(x, rng.integers(0, 4, 40))
    for i, layer in enumerate(network.model.quantized_layers):
        beta = layer.batch_norm.beta
        beta.assign(rng.normal(0, 0.3, beta.shape) + 1e6 * (-1) ** i * np.eye(*beta.shape, 1)[:, 0])
    return network, x


# XLA takes seconds for each: the corners in every run, the others with make test-all.
QUICK = {("odd", "binary"), ("odd", "ternary"), ("one channel", "ternary_sigma")} | {
    ("dense", "two thresholds"),
    ("dense", "binary"),
    ("even filters", "binary"),
    ("only an output", "ternary"),
}


@pytest.mark.parametrize(
    ("shape", "level"),
    [
        pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow)
        for pair in itertools.product(SHAPES, LEVELS)
    ],
)
def test_packed_network_is_the_same_network(shape, level, tmp_path):
    in_dim, params = SHAPES[shape]
    network, x = network_with_history(in_dim, **params, **LEVELS[level])
    packed = PackedNetwork.from_network(network)
    expected = network.predict(x)
    np.testing.assert_array_equal(packed.predict(x), expected)
    np.testing.assert_array_equal(packed.predict(x[:1]), expected[:1])
    on_grid = (2 * x.astype(np.float32) - 255) / 255
    np.testing.assert_array_equal(packed.predict(on_grid), expected)
    packed.save(tmp_path / "network.packed")
    opened = PackedNetwork.load(tmp_path / "network.packed")
    np.testing.assert_array_equal(opened.predict(x), expected)


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize(
    "data_set",
    ["digits", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cifar-10", "MNIST"))],
)
def test_scores_are_equal_on_whole_test_sets(data_set, levels):
    if missing_files(data_set):
        pytest.skip(f"{data_set} is not here")
    data = load_data(data_set)
    params = NetworkParams(conv=[24, 70], max_pool=[1, 1], fc=[65], levels=levels)
    training = TrainingParams(epochs=3, lr_start=1e-2, lr_end=1e-3, bn_momentum=0.9)
    network = BinaryNeuralNetwork(data.x_test.shape[1:], 10, params, training)
    network.fit(data.x_train[:1000], data.y_train[:1000])
    packed = PackedNetwork.from_network(network)
    np.testing.assert_array_equal(packed.predict(data.x_test), network.predict(data.x_test))


@pytest.mark.slow
def test_published_packed_network_is_the_published_checkpoint():
    if missing_files("cifar-10"):
        pytest.skip("cifar-10 is not here")
    data, folder = load_data("cifar-10"), ROOT / "results" / "cifar-10_binary"
    scores = PackedNetwork.load(folder / "network.packed").predict(data.x_test)
    network = BinaryNeuralNetwork.load(folder / "network.keras")
    np.testing.assert_array_equal(scores, network.predict(data.x_test))
    record = json.loads((folder / "run.json").read_text())
    assert np.mean(scores.argmax(axis=1) == data.y_test) == pytest.approx(record["test_accuracy"])


@pytest.mark.slow
def test_published_ternary_packed_network_scores_what_its_report_says():
    if missing_files("cifar-10"):
        pytest.skip("cifar-10 is not here")
    data, folder = load_data("cifar-10"), ROOT / "results" / "cifar-10_ternary"
    labels = PackedNetwork.load(folder / "network.packed").classify(data.x_test)
    report = json.loads((folder / "report.json").read_text())
    assert np.mean(labels == data.y_test) == pytest.approx(report["test_accuracy"])


@pytest.mark.parametrize(("levels", "megabytes"), [(2, 1.9), (3, 3.7)])
def test_size_of_the_papers_network_on_disk(levels, megabytes, tmp_path):
    network = BinaryNeuralNetwork((32, 32, 3), 10, NetworkParams(levels=levels))
    PackedNetwork.from_network(network).save(tmp_path / "network.packed")
    assert (tmp_path / "network.packed").stat().st_size <= megabytes * 1e6


@pytest.mark.parametrize("level", ["binary", "ternary"])
def test_hidden_bits_are_the_activations(level):
    in_dim, params = SHAPES["odd"]
    network, x = network_with_history(in_dim, **params, **LEVELS[level])
    inside = network.inspect_network(x)
    hidden = [t["post_bin_act"] for t in (*inside["conv_tensors"], *inside["fc_tensors"][:-1])]
    for bits, expected in zip(
        PackedNetwork.from_network(network).hidden_bits(x), hidden, strict=True
    ):
        expected = expected if expected.ndim == 4 else expected[:, None, None]
        if level == "binary":
            bits, packed = [bits], [graph_ops.pack_bits(expected)]
        else:
            packed = graph_ops.pack_ternary(expected)
        for got, plane in zip(bits, packed, strict=True):
            np.testing.assert_array_equal(got, plane)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"bin_weights": False, "bin_acts": False}, "bin_weights leaves layers unquantized"),
        ({"bin_acts": [1, 0, 1, 1]}, "bin_acts leaves layers unquantized"),
    ],
)
def test_what_cannot_be_packed_is_refused(params, reason):
    with pytest.raises(ValueError, match=reason):
        PackedNetwork.from_network(small_network(**params))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((1, 9, 7, 2), 0.1, np.float32), "whole numbers"),
        (np.full((1, 9, 7, 2), np.nan, np.float32), "whole numbers"),
        (np.full((1, 9, 7, 2), 3, np.float32), "whole numbers"),
        (np.zeros((1, 9, 7, 2)), "uint8 or float32"),
        (np.zeros((1, 7, 9, 2), np.uint8), "must have the shape"),
        (np.zeros((0, 9, 7, 2), np.uint8), "must have the shape"),
    ],
)
def test_packed_network_refuses_other_images(x, message):
    packed = PackedNetwork.from_network(small_network())
    with pytest.raises(ValueError, match=message):
        packed.predict(x)


def test_a_damaged_packed_file_is_refused_or_harmless(tmp_path):
    network, x, _ = trained(levels=3)
    path = tmp_path / "network.packed"
    PackedNetwork.from_network(network).save(path)
    expected, refused = network.predict(x), 0
    for damaged in mutations(path.read_bytes(), 60):
        path.write_bytes(damaged)
        try:
            opened = PackedNetwork.load(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)
        else:
            np.testing.assert_array_equal(opened.predict(x), expected)
    assert refused > 30


def test_a_hostile_packed_file_is_not_unpickled(tmp_path):
    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    np.savez(tmp_path / "bad.npz", header=np.array([Touch()], dtype=object))
    with pytest.raises(ValueError, match="damaged or no packed network"):
        PackedNetwork.load(tmp_path / "bad.npz")
    assert not (tmp_path / "ran").exists()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", "--import-mode=importlib"]))
