"""The survey against NumPy, layer type by layer type; plans, quantized models, the command line."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from own_models import Subclassed

import survey
import survey_inputs
import survey_measure
import walk
from bnn import BinaryNeuralNetwork, NetworkParams
from checkpoint import open_model
from data.load_data import load_data
from graph_ops import QuantConv2D, QuantDense
from survey_report import html, markdown

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("sign", "ternary", "uniform_4", "sign_per_tensor", "uniform_2_per_tensor")


@pytest.fixture(autouse=True)
def seeded():
    """Layers start from the same weights in every run."""
    keras.utils.set_random_seed(0)


def random(*shape, seed=0):
    # Each channel has a mean and a size of its own.
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * rng.uniform(0.2, 2, shape[-1]) + 0.3).astype(np.float32)


# --- NumPy ------------------------------------------------------------------------------------


def quantized(w, name):
    """Columns of a matrix, quantized."""
    kind, axis = name.removesuffix("_per_tensor"), 0
    if kind != name:
        axis = None
    rms = np.sqrt(np.mean(w**2, axis=axis, keepdims=True))
    if kind == "sign":
        return np.where(w >= 0, 1, -1) * rms * np.sqrt(2 / np.pi)
    if kind == "ternary":
        return np.sign(w) * (np.abs(w) > 0.6120032 * rms) * 1.2240064 * rms
    steps = 2 ** (int(kind[-1]) - 1) - 1
    largest = np.abs(w).max(axis=axis, keepdims=True)
    return np.round(w / largest * steps) * largest / steps


def mean_angle(w, q):
    # Weights that all become zero are at right angles to what they were.
    norms = np.linalg.norm(w, axis=0) * np.linalg.norm(q, axis=0)
    cosines = (w * q).sum(0) / np.where(norms > 0, norms, 1)
    return np.degrees(np.arccos(np.minimum(cosines, 1))).mean()


def mean_r(x, y):
    units = x.shape[-1]
    pairs = zip(x.reshape(-1, units).T, y.reshape(-1, units).T, strict=True)
    return np.mean([np.corrcoef(*pair)[0, 1] if np.ptp(pair[1]) else 0 for pair in pairs])


def sqnr(w, q):
    return 10 * np.log10(np.sum(w**2) / np.sum((w - q) ** 2))


# --- Every type of layer ----------------------------------------------------------------------


def last(w):
    return w.reshape(-1, w.shape[-1])


def of_last(columns, shape):
    return columns.reshape(shape)


def transposed(w):
    return np.swapaxes(w, -1, -2).reshape(-1, w.shape[-2])


def of_transposed(columns, shape):
    return np.swapaxes(columns.reshape(*shape[:-2], shape[-1], shape[-2]), -1, -2)


def depthwise(w):
    return w.reshape(-1, w.shape[-1] * w.shape[-2])


def of_einsum(columns, shape):
    return columns.reshape(shape)


ONE_KERNEL = {
    "dense": (lambda: layers.Dense(5), (7,), last, of_last),
    "dense of a sequence": (lambda: layers.Dense(5), (6, 4), last, of_last),
    "conv 1d, causal": (lambda: layers.Conv1D(4, 3, padding="causal"), (9, 3), last, of_last),
    "conv 1d, strides": (lambda: layers.Conv1D(4, 3, 2, "same"), (9, 3), last, of_last),
    "conv 2d": (lambda: layers.Conv2D(4, (3, 2), 2, "same"), (7, 6, 3), last, of_last),
    "conv 2d, dilated": (
        lambda: layers.Conv2D(4, 3, padding="same", dilation_rate=2),
        (7, 6, 3),
        last,
        of_last,
    ),
    "conv 3d": (lambda: layers.Conv3D(4, 2, padding="same"), (4, 3, 5, 2), last, of_last),
    "conv 1d transposed": (
        lambda: layers.Conv1DTranspose(4, 3, 2, "same"),
        (6, 3),
        transposed,
        of_transposed,
    ),
    "conv 2d transposed": (
        lambda: layers.Conv2DTranspose(4, (3, 2), 2),
        (4, 5, 3),
        transposed,
        of_transposed,
    ),
    "conv 2d transposed, same": (
        lambda: layers.Conv2DTranspose(4, 4, 2, "same"),
        (4, 5, 3),
        transposed,
        of_transposed,
    ),
    "conv 3d transposed": (
        lambda: layers.Conv3DTranspose(3, 2, 1, "same"),
        (3, 4, 2, 2),
        transposed,
        of_transposed,
    ),
    "depthwise 1d": (
        lambda: layers.DepthwiseConv1D(3, 2, "same", depth_multiplier=2),
        (9, 4),
        depthwise,
        of_last,
    ),
    "depthwise 2d": (
        lambda: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
        (6, 5, 4),
        depthwise,
        of_last,
    ),
    "einsum": (
        lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 5)),
        (3, 4),
        lambda w: w.reshape(w.shape[0], -1),
        of_einsum,
    ),
}


def check(found, w, dots):
    """`dots(columns)` are the products of the odd images with the kernel of these columns."""
    assert (found["fan_in"], found["units"]) == w.shape
    exact = dots(w)
    for name, values in found["quantizers"].items():
        q = quantized(w, name)
        assert values["angle_deg"] == pytest.approx(mean_angle(w, q), abs=2e-3)
        assert values["sqnr_db"] == pytest.approx(sqnr(w, q), abs=1e-3)
        assert values["r"] == pytest.approx(mean_r(exact, dots(q)), abs=1e-4)
        assert abs(values["predicted_r"] - values["r"]) < 0.25


@pytest.mark.parametrize("kind", ONE_KERNEL)
def test_angle_r_and_sqnr_are_numpys(kind):
    build, shape, columns_of, in_place = ONE_KERNEL[kind]
    layer, x = build(), random(12, *shape)
    model = keras.Sequential([keras.Input(shape), layer])
    (found,) = survey.survey(model, x, quantizers=NAMES)["layers"]
    kernel = layer.get_weights()[0]

    def dots(columns):
        # The layer itself, without its bias.
        layer.set_weights([in_place(columns, kernel.shape), *layer.get_weights()[1:]])
        outputs = np.asarray(layer(x[1::2]), np.float64)
        return outputs.reshape(-1, columns.shape[1])

    check(found, columns_of(kernel).astype(float), dots)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_separable_convolution_is_two_products(rank):
    build = getattr(layers, f"SeparableConv{rank}D")
    layer, shape = build(6, 3, padding="same", depth_multiplier=2), (*(8, 7)[:rank], 4)
    x = random(12, *shape)
    model = keras.Sequential([keras.Input(shape), layer])
    first, second = survey.survey(model, x, quantizers=NAMES)["layers"]
    one = getattr(layers, f"DepthwiseConv{rank}D")(3, padding="same", depth_multiplier=2)
    one.build((None, *shape))
    kernel, pointwise = layer.get_weights()[:2]

    def dots(columns):
        one.set_weights([columns.reshape(kernel.shape), np.zeros(8)])
        return np.asarray(one(x[1::2]), np.float64)

    columns = depthwise(kernel).astype(float)
    check(first, columns, dots)
    between = dots(columns)
    check(second, last(pointwise).astype(float), lambda w: between @ w)
    assert second["name"] == f"{layer.name}.pointwise_kernel"


@pytest.mark.parametrize("kind", [layers.SimpleRNN, layers.LSTM, layers.GRU])
def test_both_kernels_of_a_recurrent_layer(kind):
    layer, x = kind(5, return_sequences=True), random(12, 7, 4)
    model = keras.Sequential([keras.Input((7, 4)), layer])
    of_input, of_state = survey.survey(model, x, quantizers=NAMES)["layers"]
    states = np.asarray(layer(x), np.float64)
    states = np.concatenate([np.zeros((12, 1, 5)), states[:, :-1]], axis=1)
    kernel, recurrent = (w.astype(float) for w in layer.get_weights()[:2])
    check(of_input, kernel, lambda w: x[1::2] @ w)
    check(of_state, recurrent, lambda w: states[1::2] @ w)


def test_an_embedding_is_one_hot_inputs_times_its_table():
    layer, x = layers.Embedding(9, 4), np.random.default_rng(0).integers(0, 9, (40, 6))
    model = keras.Sequential([keras.Input((6,), dtype="int32"), layer])
    (found,) = survey.survey(model, x, quantizers=NAMES)["layers"]
    check(found, layer.get_weights()[0].astype(float), lambda w: w[x[1::2]])
    assert set(found["left_out"].values()) == {"its inputs are numbers of rows"}


def test_the_projections_of_attention():
    images = keras.Input((6, 8))
    attention = layers.MultiHeadAttention(2, 3)
    model, x = keras.Model(images, attention(images, images)), random(12, 6, 8)
    found = survey.survey(model, x, quantizers=NAMES)["layers"]
    assert [layer["name"] for layer in found] == ["query", "key", "value", "attention_output"]
    weights = attention.get_weights()[0].reshape(8, 6).astype(float)
    check(found[0], weights, lambda w: x[1::2] @ w)
    assert (found[3]["fan_in"], found[3]["units"]) == (6, 8)


def test_inputs_are_quantized_before_they_are_padded():
    layer, x = layers.Conv2D(4, 3, padding="same"), random(12, 6, 5, 3)
    model = keras.Sequential([keras.Input((6, 5, 3)), layer])
    (found,) = survey.survey(model, x, quantizers=["sign", "uniform_4"])["layers"]
    values = found["inputs"]["sign"]
    signs = np.where(x >= 0, 1, -1).astype(np.float32)
    r = mean_r(np.asarray(layer(x[1::2])), np.asarray(layer(signs[1::2])))
    assert values["r"] == pytest.approx(r, abs=1e-4)
    assert values["scale"] == pytest.approx(np.sqrt(np.mean(patches_of(x[::2]) ** 2)), rel=1e-4)


def patches_of(x):
    """Entries of SAME 3×3 patches, without the padding."""
    rows = [min(i + 2, x.shape[1]) - max(i - 1, 0) for i in range(x.shape[1])]
    columns = [min(j + 2, x.shape[2]) - max(j - 1, 0) for j in range(x.shape[2])]
    # A pixel lies under as many kernels as its own patch has pixels.
    counts = np.multiply.outer(rows, columns)
    return np.repeat(x.transpose(1, 2, 0, 3).reshape(counts.size, -1), counts.ravel(), axis=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_dense_layers_grid_is_that_of_keras(bits):
    layer = layers.Dense(6)
    model = keras.Sequential([keras.Input((10,)), layer])
    kernel = layer.kernel.numpy()
    with survey_measure.quantized_weights(
        survey_inputs.sites(model, random(4, 10))[0], [f"uniform_{bits}"]
    ):
        ours = layer.kernel.numpy()
    np.testing.assert_array_equal(layer.kernel, kernel)
    x = np.eye(10, dtype=np.float32)
    assert not np.allclose(ours, kernel, atol=1e-5)
    per_unit = keras.quantizers.Int4QuantizationConfig(block_size=-1)
    layer.quantize(f"int{bits}", config=per_unit if bits == 4 else None)
    # Keras quantizes inputs, too: those of a unit matrix are exact.
    np.testing.assert_allclose(layer(x) - layer.bias, ours, atol=1e-3 * np.abs(kernel).max())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_theory_of_the_uniform_quantizer_holds_for_gaussian_weights(bits):
    w = np.random.default_rng(0).standard_normal((3000, 4))
    largest, rms = np.abs(w).max(0), np.sqrt(np.mean(w**2, 0))
    quantizer = survey_measure.quantizer_named(f"uniform_{bits}")
    expected = survey_measure.theory(quantizer, 3000, np.mean(largest / rms))
    assert mean_angle(w, quantized(w, f"uniform_{bits}")) == pytest.approx(
        np.degrees(expected), rel=0.03
    )


# --- Sampling ---------------------------------------------------------------------------------


def network():
    images = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(images)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.SeparableConv2D(12, 3, strides=2, name="separable")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(images, layers.Dense(10, name="scores")(layers.Flatten()(x)))


def test_patches_do_not_depend_on_the_batches(monkeypatch):
    monkeypatch.setattr(survey_inputs, "ROWS", 60)
    monkeypatch.setattr(survey_inputs, "PASS_FLOATS", 1000)
    model, x = network(), random(25, 8, 8, 1)
    found = {}
    for batch in (4, 25):
        sites = survey_inputs.sites(model, x)[0]
        found[batch] = {s.name: s.patches for s in survey_inputs.collected(model, x, sites, batch)}
    assert list(found[4]) == [
        "conv",
        "separable.depthwise_kernel",
        "separable.pointwise_kernel",
        "scores",
    ]
    for name, patches in found[4].items():
        assert 25 <= len(patches) <= 60
        np.testing.assert_allclose(patches, found[25][name], atol=1e-5)


def test_inputs_that_are_the_same_for_all_images():
    class Places(keras.Model):
        def __init__(self):
            super().__init__()
            self.letters = layers.Embedding(9, 4, name="letters")
            self.places = layers.Embedding(6, 4, name="places")
            self.scores = layers.Dense(9, name="scores")

        def call(self, tokens):
            return self.scores(self.letters(tokens) + self.places(keras.ops.arange(6)))

    model = Places()
    x = np.random.default_rng(0).integers(0, 9, (30, 6))
    found = survey.survey(model, x, x, quantizers=["sign"])
    assert {layer["name"]: layer["patches"] for layer in found["layers"]} == {
        "letters": 180,
        "places": 6,
        "scores": 180,
    }


# --- Plans ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    data, model = load_data("digits"), network()
    x_train, x_test = (np.float32(x) / 255 for x in (data.x_train, data.x_test))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(x_train, data.y_train, epochs=8, verbose=0)
    return model, x_test, data.y_test


QUANTIZERS = ("sign", "ternary", "uniform_4", "uniform_8")


@pytest.fixture(scope="module")
def surveyed(trained):
    return survey.survey(*trained, quantizers=QUANTIZERS, lose=2)


def accuracy(model, x, y):
    return np.mean(model.predict(x, verbose=0).argmax(1) == y)


def test_a_plan_costs_no_more_than_it_may(trained, surveyed):
    plan = surveyed["plan"]
    assert surveyed["accuracy"] == pytest.approx(accuracy(*trained))
    assert plan["refitted_accuracy"] >= surveyed["accuracy"] - 0.02
    assert plan["bytes"] < plan["float_bytes"] / 3
    for by in ("predicted", "measured"):
        tried = [point for point in plan["tried"] if point["by"] == by]
        # The higher the limit, the fewer the bytes.
        assert [p["limit"] for p in tried] == sorted((p["limit"] for p in tried), reverse=True)
        within = [p for p in tried if p["refitted_accuracy"] >= surveyed["accuracy"] - 0.02]
        assert plan["bytes"] <= min(point["bytes"] for point in within)
    assert set(plan["quantizers"]) == {layer["name"] for layer in surveyed["layers"]}
    for order in ("predicted", "measured"):
        curve = surveyed["curve"][order]
        assert [point["layer"] for point in curve] == [None, *surveyed["order"][order]]
        assert curve[0]["accuracy"] == surveyed["accuracy"]


def test_a_model_is_left_as_it_was(trained, surveyed):
    model, x, y = trained
    before = model.get_weights()
    survey.survey(model, x[:20], y[:20], quantizers=["sign"])
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_accuracy_with_one_layer_quantized(trained, surveyed):
    model, x, y = trained
    copy = survey.apply(model, {"conv": "sign"})
    (conv, *_) = surveyed["layers"]
    assert accuracy(copy, x, y) == pytest.approx(conv["quantizers"]["sign"]["accuracy"])
    assert "inputs, sign" in conv["left_out"]  # Pixels are never negative.


def test_a_plans_model_is_what_was_measured_saved_and_trained(trained, surveyed, tmp_path):
    model, x, y = trained
    plan = surveyed["plan"]
    copy = survey.apply(model, plan, x)
    assert accuracy(copy, x, y) == pytest.approx(plan["refitted_accuracy"])
    assert isinstance(copy.get_layer("conv"), QuantConv2D)
    assert isinstance(copy.get_layer("scores"), QuantDense)
    weights = model.get_layer("separable").get_weights()[1]
    expected = quantized(last(weights), plan["quantizers"]["separable.pointwise_kernel"])
    written = last(copy.get_layer("separable").get_weights()[1])
    np.testing.assert_allclose(written, expected, atol=1e-6)
    copy.save(tmp_path / "quantized.keras")
    opened = open_model(tmp_path / "quantized.keras")
    np.testing.assert_allclose(opened.predict(x, verbose=0), copy.predict(x, verbose=0), atol=1e-5)
    copy.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    latent = copy.get_layer("conv").latent_kernel.numpy()
    copy.fit(x, y, verbose=0)
    assert not np.array_equal(latent, copy.get_layer("conv").latent_kernel)


def test_a_plan_of_another_model():
    with pytest.raises(ValueError, match="no layer other"):
        survey.apply(network(), {"other": "sign"})


def test_a_subclassed_model():
    model, x = Subclassed(), random(20, 8, 8, 1)
    model(x)
    found = survey.survey(model, x, np.arange(20) % 10, quantizers=["sign", "uniform_8"])
    assert [layer["name"] for layer in found["layers"]] == ["scores"]
    assert found["left_out"] == dict.fromkeys(
        ("product", "second"), "it quantizes its weights itself"
    )
    copy = survey.apply(model, {"scores": "uniform_8"}, x)
    assert not np.array_equal(copy.scores.kernel, model.scores.kernel)
    np.testing.assert_allclose(copy.scores.kernel, model.scores.kernel, atol=0.01)


# --- Does geometry predict harm? --------------------------------------------------------------


def test_rank_correlations():
    def layer(r, accuracy, kurtosis):
        values = {"predicted_r": r, "r": r, "angle_deg": 37.0, "sqnr_db": 10 * r}
        return {"quantizers": {"sign": {**values, "accuracy": accuracy}}, "kurtosis": kurtosis}

    made = [layer(0.9, 0.88, 3.0), layer(0.8, 0.8, 2.0), layer(0.7, 0.5, 1.0), layer(0.6, 0.4, 0.0)]
    surveyed = {"accuracy": 0.9, "quantizers": ["sign"], "layers": made}
    values, together = survey.rank_correlations(surveyed)
    assert (values["layers"], values["loss"]) == (4, "as it is")
    assert values["predicted_r"] == values["sqnr_db"] == pytest.approx([1, 0])
    assert values["kurtosis"] == pytest.approx([-1, 0])
    assert values["angle_deg"] is None
    assert together["quantizer"] == "all" and together["r"] == [values["r"][0], None]
    # Of a quantizer that leaves nothing of a layer, that layer does not count.
    made[3]["quantizers"]["sign"]["r"] = None
    made[2]["quantizers"]["sign"]["r"] = 0.85
    values, together = survey.rank_correlations(surveyed)
    assert values["r"][0] == pytest.approx(0.5)
    assert values["r"][1] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="labels"):
        survey.rank_correlations({"accuracy": None})


# --- Reports ----------------------------------------------------------------------------------


def test_reports_hold_what_was_measured_and_nothing_that_runs(surveyed):
    named = json.loads(json.dumps(surveyed).replace("conv", "<script>"))
    page, text = html(named), markdown(named)
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page
    for title in ("## Plan", "## Weights: ternary", "## Left out", "## Inputs: uniform_8"):
        assert title in text
    # Where nothing has labels there is no accuracy.
    bare = {**surveyed, "accuracy": None, "plan": None, "curve": None, "why_no_accuracy": "none"}
    bare.pop("correlations")
    assert html(bare).count("data:image/png") == 2


STOCK = """
import sys
import keras, numpy as np
x = np.random.default_rng(0).standard_normal((30, 10, 4)).astype("float32")
inputs = keras.Input((10, 4))
h = keras.layers.Conv1D(6, 3, padding="causal", activation="relu")(inputs)
h = keras.layers.Bidirectional(keras.layers.LSTM(5, return_sequences=True))(h)
h = keras.layers.MultiHeadAttention(2, 4)(h, h)
h = keras.layers.GlobalAveragePooling1D()(h)
model = keras.Model(inputs, keras.layers.Dense(3)(h))
model.save("stock.keras")
np.savez("data.npz", x=x, y=model.predict(x, verbose=0).argmax(1))
"""


def test_a_network_of_this_project_is_surveyed_by_the_command(tmp_path):
    params = NetworkParams(conv=[4], max_pool=[1], fc=[], bin_weights=False, bin_acts=False)
    BinaryNeuralNetwork((8, 8, 1), 10, params).save(tmp_path / "network.keras")
    command = [sys.executable, str(ROOT / "survey.py"), "network.keras", "--data_set", "digits"]
    options = ["--quantizers", "sign", "--images", "50"]
    run = {"cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run([*command, *options], **run)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "survey.json").read_text())["layers"]) == 2


def test_a_stock_model_of_another_process_is_surveyed_by_the_command(tmp_path):
    run = {"cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", STOCK], **run)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, str(ROOT / "survey.py"), "stock.keras", "--npz", "data.npz"]
    options = ["--quantizers", "sign", "uniform_8", "--images", "25", "--lose", "4"]
    done = subprocess.run([*command, *options, "--save", "quantized.keras"], **run)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "survey.json").read_text())
    assert found["images"] == 25 and found["accuracy"] == 1 and found["left_out"] == {}
    assert len(found["layers"]) == 1 + 4 + 4 + 1
    first = found["layers"][0]
    assert (first["type"], first["fan_in"], first["units"]) == ("Conv1D", 12, 6)
    assert {"angle_deg", "theory_deg", "r", "predicted_r", "sqnr_db", "accuracy"} <= first[
        "quantizers"
    ]["sign"].keys()
    names = {path.name for path in tmp_path.iterdir()}
    reports = {"survey.md", "survey.json", "survey.html"}
    assert names == {"stock.keras", "data.npz", "quantized.keras", *reports}
    open_model(tmp_path / "quantized.keras")
    # An earlier survey is replaced, a model is not.
    done = subprocess.run([*command, "--save", "quantized.keras"], **run)
    assert done.returncode == 2 and "already" in done.stderr


# --- Bad input --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    network().save(folder / "model.keras")
    lambdas = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x), layers.Dense(2)])
    lambdas.save(folder / "lambda.keras")
    x, y = random(6, 8, 8, 1), np.arange(6)
    np.savez(folder / "good.npz", x=x, y=y)
    np.savez(folder / "no_x.npz", images=x)
    np.savez(folder / "objects.npz", x=np.array([{}, {}]))
    np.savez(folder / "shape.npz", x=x[:, :5])
    np.savez(folder / "few_labels.npz", x=x, y=y[:4])
    np.savez(folder / "classes.npz", x=x, y=y + 10)
    np.savez(folder / "fractions.npz", x=x, y=y / 2)
    np.savez(folder / "nan.npz", x=np.where(x > 2, np.nan, x), y=y)
    np.savez(folder / "text.npz", x=np.array(["a", "b"]))
    (folder / "noise.npz").write_bytes(b"noise")
    (folder / "taken").mkdir()
    (folder / "taken" / "survey.md").write_text("my own notes")
    return folder


BAD = {
    "none.keras --npz good.npz": "there is no model",
    "model.keras --npz none.npz": "there is no file",
    "model.keras --npz no_x.npz": "holds no array x; it holds images",
    "model.keras --npz objects.npz": "no .npz file of numbers",
    "model.keras --npz noise.npz": "damaged or no .npz file",
    "model.keras --npz shape.npz": r"takes inputs of shape \(8, 8, 1\), the data have \(5, 8, 1\)",
    "model.keras --npz few_labels.npz": r"y has shape \(4,\) for 6 rows",
    "model.keras --npz classes.npz": "labels from 10 to 15 for 10 classes",
    "model.keras --npz fractions.npz": "labels must be whole numbers",
    "model.keras --npz nan.npz": "NaN or infinity",
    "model.keras --npz text.npz": "the model takes inputs of shape|numbers",
    "model.keras --npz good.npz --images 0": "--images must be at least 1",
    "model.keras --npz good.npz --lose -1": "--lose must be",
    "model.keras --npz good.npz --out taken": "belongs to no earlier survey",
    "model.keras --npz good.npz --quantizers sgn": "no quantizer 'sgn'",
    "model.keras --npz good.npz --save model.keras": "already",
    "model.keras --npz good.npz --save model.h5": "must name a .keras file",
    "lambda.keras --npz good.npz": "is not opened: it names Lambda",
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_is_answered_in_one_line(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = {path.name for path in folder.iterdir()}
    with pytest.raises((ValueError, OSError), match=BAD[command]) as raised:
        survey.run(command.split())
    assert "\n" not in str(raised.value)
    assert {path.name for path in folder.iterdir()} == before


def test_bad_input_ends_with_exit_code_2(folder, capsys):
    with pytest.raises(SystemExit) as raised:
        survey.main([str(folder / "none.keras"), "--npz", "x.npz"])
    assert raised.value.code == 2
    assert capsys.readouterr().err.startswith("survey.py: error: there is no model")


def test_arguments_are_read_before_tensorflow_is_imported():
    code = (
        "import survey, sys\n"
        "try: survey.run(['no.keras', '--npz', 'no.npz'])\n"
        "except FileNotFoundError: assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_words_that_a_table_lacks_do_not_fit():
    model = keras.Sequential([keras.Input((6,), dtype="int32"), layers.Embedding(9, 4)])
    with pytest.raises(ValueError, match="do not fit the model"):
        survey.survey(model, np.full((4, 6), 12), quantizers=["sign"])


@keras.saving.register_keras_serializable("tests")
class Strange(layers.Layer):
    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 3))

    def call(self, x):
        return x @ self.matrix


def test_layers_that_cannot_be_measured_are_listed():
    images = keras.Input((6, 6, 4))
    x = layers.Conv2D(4, 3, groups=2, name="grouped")(images)
    x = layers.Flatten()(x)
    x = Strange(name="strange")(x)
    model = keras.Model(images, layers.Dense(2, name="scores")(x))
    reasons = {
        "grouped": "it has groups",
        "strange": "it is not known how a Strange multiplies",
    }
    assert walk.unknown_layers(model) == reasons
    found = survey.survey(model, random(8, 6, 6, 4), quantizers=["sign"])
    assert found["left_out"] == reasons
    assert [layer["name"] for layer in found["layers"]] == ["scores"]
    assert found["plan"] is None and "labels" in found["why_no_accuracy"]
