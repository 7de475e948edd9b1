"""Networks of bits alone and recurrent networks: trained, resumed, measured, refused."""

import numpy as np
import pytest
from oracles import numpy_batch_norm, numpy_convolution, numpy_sign
from small_networks import smooth_images

import report
import run_bnn
from bnn import BinaryNeuralNetwork, NetworkParams, TrainingParams
from data.load_data import data_md5, load_data
from experiments import correlations_over_time, drift_over_time
from files import write_json
from graph_ops import LogicMerge, PixelSlices, ShiftBatchNormalization
from measure import measure_layers

# isort: split
import keras
import tensorflow as tf

KINDS = {
    "boolnet": {"network": "boolnet", "conv": [5, 5, 6], "max_pool": [0, 0, 1], "fc": [7]},
    "gru": {"network": "gru", "fc": [7]},
    "two lstm layers, ternary": {"network": "lstm", "fc": [6, 5], "levels": 3, "threshold": 0.1},
    "float gru": {"network": "gru", "fc": [7], "bin_weights": False, "bin_acts": False},
}
TRAINING = TrainingParams(epochs=2, batch_size=10, lr_start=1e-2, lr_end=1e-3)


def network_of(kind, training=TRAINING):
    return BinaryNeuralNetwork((7, 6, 2), 4, NetworkParams(**KINDS[kind]), training)


def trained(kind):
    return network_of(kind).fit(smooth_images(60), np.arange(60) % 4, verbose=0)


@pytest.fixture(scope="module", params=KINDS)
def network(request):
    return trained(request.param)


# --- Layers -----------------------------------------------------------------------------------


def test_slices_are_thresholds_of_pixels_and_of_the_floats_that_they_mean():
    layer = PixelSlices(3)
    np.testing.assert_array_equal(layer.thresholds, [64, 128, 192])
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 8, 2)
    expected = 2 * (x[..., None] >= layer.thresholds) - 1
    expected = expected.reshape(1, 16, 8, 6)
    np.testing.assert_array_equal(layer(x), expected)
    np.testing.assert_array_equal(layer((2 * x.astype(np.float32) - 255) / 255), expected)
    with pytest.raises(ValueError, match="slices must be a whole number from 1 to 255, not 0"):
        PixelSlices(0)


@pytest.mark.parametrize(("operation", "table"), [("xnor", [1, -1, -1, 1]), ("or", [-1, 1, 1, 1])])
def test_a_merge_is_its_truth_table_and_its_gradient_the_effect_of_a_flip(operation, table):
    a, b = tf.constant([-1.0, -1, 1, 1]), tf.constant([-1.0, 1, -1, 1])
    layer = LogicMerge(operation)
    with tf.GradientTape() as tape:
        tape.watch([a, b])
        merged = layer([a, b])
    np.testing.assert_array_equal(merged, table)
    flipped = (layer([-a, b]) - table) / (-2 * a), (layer([a, -b]) - table) / (-2 * b)
    for gradient, effect in zip(tape.gradient(merged, [a, b]), flipped, strict=True):
        np.testing.assert_array_equal(gradient, effect)
    with pytest.raises(ValueError, match="operation must be xnor or or, not 'and'"):
        LogicMerge("and")


def test_batch_norm_without_a_shift_normalizes_and_opens_again():
    norm = ShiftBatchNormalization(0.9, center=False)
    x = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    out = norm(x, training=True).numpy()
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    opened = ShiftBatchNormalization.from_config(norm.get_config())
    assert not opened.center
    norm.moving_mean.assign(x.mean(0))
    norm.moving_variance.assign(x.var(0))
    np.testing.assert_allclose(norm(x), out, atol=1e-4)


# --- Networks ---------------------------------------------------------------------------------


def test_a_network_of_bits_is_an_independent_forward_pass():
    network = trained("boolnet")
    x = smooth_images(20, seed=5)
    wb = {layer.name: numpy_sign(layer.latent_kernel.numpy()) for layer in network.layers}
    norms = {layer.name.removesuffix("_norm"): layer for layer in network.norms}
    limits = network.model.get_layer("slices").thresholds
    out = (2.0 * (x[..., None] >= limits) - 1).reshape(20, 7, 6, -1)

    def bits(values, name, stride=1):
        products = numpy_convolution(values, wb[name])[:, ::stride, ::stride]
        return numpy_sign(numpy_batch_norm(products, norms[name]))

    out = bits(out, "conv_1")
    out = bits(out, "conv_2") * out  # XNOR
    # SAME convolutions with a stride begin at other taps on even sizes than plain ones.
    moved = keras.ops.convert_to_numpy(
        network.model.get_layer("conv_3").dot_products(np.float32(out), wb["conv_3"])
    )
    moved = numpy_sign(numpy_batch_norm(moved, norms["conv_3"]))
    out = np.maximum(moved, bits(out, "conv_3_shortcut", 2))  # OR
    out = out.reshape(20, -1) @ wb["fc_1"]
    out = numpy_sign(numpy_batch_norm(out, norms["fc_1"])) @ wb["fc_2"]
    out = numpy_batch_norm(out, norms["fc_2"])
    np.testing.assert_allclose(network.predict(x), out, rtol=1e-4, atol=1e-4)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_a_recurrent_network_is_an_independent_forward_pass(name):
    params = NetworkParams(network=name, fc=[7], levels=3, threshold=0.1)
    network = BinaryNeuralNetwork((7, 6, 2), 4, params, TRAINING)
    network.fit(smooth_images(60), np.arange(60) % 4, verbose=0)
    layer = network.model.get_layer
    wb = {each.name: each.quantized_kernel().numpy() for each in network.layers}
    assert set(np.unique(wb[f"{name}_1_state"])) == {-1, 0, 1}
    step = layer(f"{name}_1_step")
    gains = step.input_gain.numpy(), step.state_gain.numpy()
    x = smooth_images(20, seed=5)
    rows = (x / 127.5 - 1).reshape(20, 7, 12)

    def normal(values, part):
        norm = layer(f"{name}_1_{part}_norm")
        return (values - norm.moving_mean) / np.sqrt(norm.moving_variance + 1e-3)

    state = cell = np.zeros((20, 7))
    for time in range(7):
        a = gains[0] * normal(rows[:, time] @ wb[f"{name}_1_input"], "input") + step.bias
        b = np.zeros_like(a)
        if time:
            b = gains[1] * normal(state @ wb[f"{name}_1_state"], f"state_{time}")
        a, b = (np.split(np.asarray(v), step.gates, axis=1) for v in (a, b))
        if name == "gru":
            z, r = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1])
            state = z * state + (1 - z) * np.tanh(a[2] + r * b[2])
        else:
            i, f, o, g = (v + w for v, w in zip(a, b, strict=True))
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            state = sigmoid(o) * np.tanh(cell)
    scores = numpy_batch_norm(state @ wb["fc_1"], layer("fc_1_norm"))
    np.testing.assert_allclose(network.predict(x), scores, rtol=1e-3, atol=1e-3)


def test_saved_and_opened_it_gives_the_same_scores(network, tmp_path):
    x = smooth_images(20, seed=5)
    network.save(tmp_path / "network.keras")
    opened = BinaryNeuralNetwork.load(tmp_path / "network.keras")
    np.testing.assert_array_equal(opened.predict(x), network.predict(x))
    floats = (2 * x.astype(np.float32) - 255) / 255
    np.testing.assert_allclose(network.predict(floats), network.predict(x), atol=1e-4)
    compact = tmp_path / "compact.keras"
    network.save(compact, compact=True)
    assert BinaryNeuralNetwork.load(compact).predict(x).shape == (20, 4)


@pytest.mark.parametrize(
    "kind", ["boolnet", pytest.param("two lstm layers, ternary", marks=pytest.mark.slow)]
)
def test_a_training_that_was_cut_off_ends_with_the_same_weights(kind, tmp_path):
    x, y, state = smooth_images(60), np.arange(60) % 4, tmp_path / "state.keras"

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        network_of(kind).fit(x, y, state=state, callbacks=[Stop()], verbose=0)
    resumed = network_of(kind).fit(x, y, state=state, verbose=0)
    whole = trained(kind)
    for one, other in zip(resumed.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_product_is_measured(network):
    layers = {layer.name: layer for layer in measure_layers(network, smooth_images(20))}
    assert list(layers) == [layer.name for layer in network.layers] or "shortcut" in str(layers)
    assert {name for name, layer in layers.items() if layer.first} == {network.layers[0].name}
    for name, layer in layers.items():
        assert np.isfinite(layer.weights_dot.r)
        steps = 6 if "state" in name else 7 if "_input" in name else None
        assert steps is None or layer.positions == steps


def test_correlations_over_time_are_those_of_the_steps():
    network, x = trained("gru"), smooth_images(30)
    found = correlations_over_time(network.model, x)
    assert {name: len(r) for name, r in found.items()} == {
        "gru_1_input": 7,
        "gru_1_state": 6,
        "fc_1": 1,
    }
    layer = network.model.get_layer("gru_1_input")
    rows = np.float32(x[:, 3].reshape(30, -1) / 127.5 - 1)
    pair = rows @ layer.latent_kernel.numpy(), rows @ layer.quantized_kernel().numpy()
    r = np.corrcoef(*map(np.ravel, pair))[0, 1]
    assert found["gru_1_input"][3] == pytest.approx(r, abs=1e-5)
    np.testing.assert_allclose(drift_over_time(network, network, x), 1, atol=1e-6)
    network.refit_batch_norm(x)
    other = network.with_weights(["gru_1_state"]).refit_batch_norm(x)
    drift = drift_over_time(network, other, x)
    assert drift[0] == pytest.approx(1)
    assert drift[-1] < 0.999


def test_a_recurrent_network_has_no_single_activation():
    with pytest.raises(ValueError, match="a recurrent layer has no single activation"):
        network_of("gru").inspect_network(smooth_images(2))
    inside = network_of("boolnet").inspect_network(smooth_images(2))
    assert [t["wc"].shape[-1] for t in inside["conv_tensors"]] == [5, 5, 6]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["boolnet", "gru"])
def test_the_report_judges_what_applies(kind, tmp_path):
    params = NetworkParams(**KINDS[kind])
    data = load_data("digits")
    network = BinaryNeuralNetwork((8, 8, 1), 10, params, TRAINING)
    network.fit(data.x_train[:100], data.y_train[:100], verbose=0)
    path = tmp_path / "network.keras"
    network.save(path)
    write_json(tmp_path / "run.json", {"data_set": "digits", "data_md5": data_md5("digits")})
    report.main([str(path), "--images", "40"])
    claims = {claim.id: claim for claim in report.stored_report(path).claims()}
    assert claims["first-layer"].holds is None
    assert (claims["weights-dot"].holds is None) == (kind == "gru")


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--network", "gru", "--conv", "4"],
            "gru reads the rows of images: it has no convolution",
        ),
        (["--network", "lstm", "--fc"], "lstm needs a layer"),
        (["--network", "gru", "--rotate_first", "pca"], "nothing to rotate"),
        (["--network", "gru", "--pack"], "cannot pack: its states are floats"),
        (["--network", "lstm", "--export", "x"], "cannot export: its states are floats"),
        (["--network", "boolnet", "--levels", "3"], "boolnet is a network of bits alone"),
        (["--network", "boolnet", "--continuous"], "boolnet is a network of bits alone"),
        (["--network", "boolnet", "--slices", "0"], "slices must be a whole number from 1 to 255"),
        (["--slices", "4"], "slices are thresholds of boolnet's pixels"),
    ],
)
def test_wrong_flags_get_one_line_and_exit_code_2(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_bnn.main(["--data_set", "digits", *flags, "--out_dir", str(tmp_path / "run")])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()
