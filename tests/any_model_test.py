"""Models that this project did not build: trained, saved, opened in a fresh process, measured."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from data.load_data import load_data
from graph_ops import MaxPooling2D, QuantConv2D, QuantDense, ShiftBatchNormalization, Sign, Ternary
from training import fit
from utils import TrainingParams

ROOT = Path(__file__).resolve().parent.parent
BINARY = {"input_quantizer": Sign(), "kernel_quantizer": Sign(), "use_bias": False}


def residual():
    def normed(x, name):
        return ShiftBatchNormalization(name=f"{name}_norm")(x)

    images = keras.Input((8, 8, 1))
    x = QuantConv2D(8, 3, padding="same", use_bias=False, kernel_quantizer="sign", name="conv_1")(
        images
    )
    x = normed(x, "conv_1")
    y = QuantConv2D(16, 3, strides=2, padding="same", name="conv_2", **BINARY)(x)
    shortcut = QuantConv2D(16, 1, strides=2, padding="same", name="shortcut", **BINARY)(x)
    x = keras.layers.Add()([normed(y, "conv_2"), normed(shortcut, "shortcut")])
    x = keras.layers.Flatten()(MaxPooling2D()(x))
    ternary = {"input_quantizer": Ternary(0.3), "kernel_quantizer": Ternary(sigma=0.6)}
    return keras.Model(images, normed(QuantDense(10, name="fc", **ternary)(x), "fc"))


def recurrent():
    return keras.Sequential(
        [
            keras.Input((8, 8)),
            keras.layers.LSTM(12, name="lstm"),
            keras.layers.Dense(10, name="scores"),
        ]
    )


def subclassed():
    from own_models import Subclassed

    return Subclassed()


def quantized_cell():
    from own_models import BinaryCell

    return keras.Sequential(
        [
            keras.Input((8, 8)),
            keras.layers.RNN(BinaryCell(12, name="cell"), name="rnn"),
            QuantDense(10, input_quantizer="sign", kernel_quantizer="sign", name="scores"),
        ]
    )


BUILDERS = {f.__name__: f for f in (residual, recurrent, subclassed, quantized_cell)}

FRESH = """
import json, sys
sys.path[:0] = {paths!r}
import keras, numpy as np
import graph_ops, own_models
from measure import measure_layers

model = keras.models.load_model(sys.argv[1])
x = np.load(sys.argv[2])
layers = measure_layers(model, x)
print(json.dumps(
    [
        {{
            "name": layer.name,
            "d": layer.fan_in,
            "first": layer.first,
            "angles": layer.angles.tolist(),
            "weights_dot": layer.weights_dot.r,
            "activations_dot": layer.activations_dot and layer.activations_dot.r,
        }}
        for layer in layers
    ]
))
np.save(sys.argv[3], model.predict(x, verbose=0))
"""


def correlation(x, y):
    return np.corrcoef(np.ravel(x), np.ravel(y))[0, 1]


def theta(x, quantizer):
    if quantizer is None:
        return np.asarray(x, np.float64)
    if quantizer.levels == 2:
        return np.where(x >= 0, 1.0, -1.0)
    threshold = float(quantizer.threshold(np.asarray(x, np.float32)))
    return np.sign(x) * (np.abs(x) > threshold)


def angles(wc, wb):
    wc, wb = (w.reshape(-1, w.shape[-1]) for w in (wc, wb))
    norms = np.linalg.norm(wc, axis=0) * np.linalg.norm(wb, axis=0)
    return np.arccos(np.clip((wc * wb).sum(axis=0) / norms, -1, 1))


def convolution(x, kernel, strides):
    """SAME padding by TensorFlow's rule, position by position."""
    n, height, width, _ = x.shape
    size, _, _, units = kernel.shape
    rows, columns = -(-height // strides), -(-width // strides)
    totals = [
        max((o - 1) * strides + size - length, 0)
        for o, length in ((rows, height), (columns, width))
    ]
    x = np.pad(x, ((0, 0), *((t // 2, t - t // 2) for t in totals), (0, 0)))
    out = np.empty((n, rows, columns, units))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, i * strides : i * strides + size, j * strides : j * strides + size]
            out[:, i, j] = np.tensordot(patch, kernel, 3)
    return out


def norm(x, layer):
    mean, variance, beta = (
        np.float64(v.numpy()) for v in (layer.moving_mean, layer.moving_variance, layer.beta)
    )
    return (x - mean) / np.sqrt(variance + 1e-3) + beta


class Expected:
    """Angles and correlations of each product, in NumPy."""

    def __init__(self):
        self.found = {}

    def add(self, name, dot, a, w, input_quantizer=None, kernel_quantizer=None):
        """The products A^b·w^b, which are also returned."""
        own = kernel_quantizer is not None
        a, w = np.asarray(a, np.float64), np.asarray(w, np.float64)
        ab, wb = theta(a, input_quantizer), theta(w, kernel_quantizer or Sign())
        pairs = self.found.setdefault(name, {"angles": angles(w, wb), "w": [], "a": []})
        pairs["w"].append((dot(ab, w), dot(ab, wb)))
        if input_quantizer is not None:
            pairs["a"].append((dot(a, wb), dot(ab, wb)))
        return dot(ab, wb if own else w)

    def layer(self, layer, a, strides=1):
        w = layer.latent_kernel.numpy()

        def dot(x, kernel):
            return convolution(x, kernel, strides) if kernel.ndim == 4 else x @ kernel

        out = self.add(layer.name, dot, a, w, layer.input_quantizer, layer.kernel_quantizer)
        return out + layer.bias.numpy() if layer.use_bias else out

    def r(self, name, which):
        pairs = self.found[name][which]
        x, y = (np.concatenate([np.ravel(pair[i]) for pair in pairs]) for i in (0, 1))
        return correlation(x, y)


def expected_residual(model, x):
    found = Expected()

    def normed(name, x, strides=1):
        products = found.layer(model.get_layer(name), x, strides)
        return norm(products, model.get_layer(f"{name}_norm"))

    h = normed("conv_1", x)
    h = normed("conv_2", h, 2) + normed("shortcut", h, 2)
    n, rows, columns, channels = h.shape
    h = h.reshape(n, rows // 2, 2, columns // 2, 2, channels).max((2, 4))
    normed("fc", h.reshape(n, -1))
    return found


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def expected_recurrent(model, x):
    cell, found = model.get_layer("lstm").cell, Expected()
    kernel, recurrent, bias = (v.numpy() for v in (cell.kernel, cell.recurrent_kernel, cell.bias))
    h = c = np.zeros((len(x), 12))
    for t in range(x.shape[1]):
        gates = found.add("lstm_cell.kernel", np.matmul, x[:, t], kernel) + bias
        gates = gates + found.add("lstm_cell.recurrent_kernel", np.matmul, h, recurrent)
        i, f, g, o = np.split(gates, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    found.add("scores", np.matmul, h, model.get_layer("scores").kernel.numpy())
    return found


def expected_subclassed(model, x):
    found = Expected()
    h = norm(found.layer(model.inner.product, x), model.inner.norm)
    h = norm(found.layer(model.second, h.reshape(len(x), -1)), model.norm)
    w = model.scores.kernel.numpy()
    found.add("scores", np.matmul, h, w)
    return found


def expected_quantized_cell(model, x):
    cell, found = model.get_layer("rnn").cell, Expected()
    h = np.zeros((len(x), 12))
    for t in range(x.shape[1]):
        h = np.tanh(found.layer(cell.of_input, x[:, t]) / 3 + found.layer(cell.of_state, h) / 3)
    found.layer(model.get_layer("scores"), h)
    return found


FIRST = {
    "residual": {"conv_1"},
    "recurrent": {"lstm_cell.kernel"},
    "subclassed": {"product"},
    "quantized_cell": {"of_input"},
}


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_model_of_ones_own_is_trained_saved_opened_and_measured(kind, tmp_path):
    keras.utils.clear_session()
    data, model = load_data("digits"), BUILDERS[kind]()
    images = [(2 * x.astype(np.float32) - 255) / 255 for x in (data.x_train, data.x_test[:40])]
    shape = model.input_shape if kind != "subclassed" else (None, 8, 8, 1)
    x_train, x = (part.reshape(-1, *shape[1:]) for part in images)
    model(x[:1])
    fit(model, x_train, data.y_train, TrainingParams(epochs=2, batch_size=50, lr_start=1e-2))
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    paths = [str(ROOT), str(ROOT / "tests")]
    done = subprocess.run(
        [sys.executable, "-c", FRESH.format(paths=paths), "model.keras", "x.npy", "scores.npy"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    scores = np.load(tmp_path / "scores.npy")
    np.testing.assert_allclose(scores, model.predict(x, verbose=0), rtol=1e-5, atol=1e-5)
    found = globals()[f"expected_{kind}"](model, np.float64(x))
    assert {layer["name"] for layer in measured} == set(found.found)
    for layer in measured:
        name = layer["name"]
        np.testing.assert_allclose(layer["angles"], found.found[name]["angles"], atol=1e-5)
        assert layer["weights_dot"] == pytest.approx(found.r(name, "w"), abs=1e-5)
        if found.found[name]["a"]:
            assert layer["activations_dot"] == pytest.approx(found.r(name, "a"), abs=1e-5)
        else:
            assert layer["activations_dot"] is None
    assert {layer["name"] for layer in measured if layer["first"]} == FIRST[kind]
