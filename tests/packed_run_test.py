"""A packed network beside the float network it was made from: the same bits, the same scores."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import graph_ops
from bnn import BinaryNeuralNetwork, NetworkParams, PackedNetwork, TrainingParams
from data.load_data import load_data, missing_files

# isort: split
import keras

RESULTS = Path(__file__).parent.parent / "results"
SHAPES = {
    "odd": ((9, 7, 2), {"conv": [5, 70], "max_pool": [1, 1], "fc": [65, 7]}),
    "one channel": ((8, 8, 1), {"conv": [64, 33, 3], "max_pool": [0, 1, 0], "fc": []}),
    "even filters": ((6, 5, 3), {"conv": [8, 8], "max_pool": [0, 1], "fc": [9], "filter_size": 2}),
    "strided": ((9, 8, 1), {"conv": [6, 33], "max_pool": [0, 1], "stride": [2, 1]}),
    "few levels": ((6, 5, 2), {"conv": [8], "max_pool": [1], "fc": [9], "input_levels": 4}),
    "black and white": ((5, 4, 1), {"conv": [], "max_pool": [], "fc": [9], "input_levels": 2}),
    "1x1": ((3, 3, 3), {"conv": [4, 4], "max_pool": [0, 0], "fc": [5], "filter_size": 1}),
    "dense": ((4, 4, 2), {"conv": [], "max_pool": [], "fc": [70, 6]}),
    "only an output": ((4, 4, 1), {"conv": [], "max_pool": [], "fc": []}),
}
BOOLEAN = {
    "odd": ((9, 7, 2), {"conv": [5, 70, 70], "max_pool": [1, 0, 1], "fc": [65]}),
    "one channel": ((8, 8, 1), {"conv": [64, 64], "max_pool": [0, 0], "fc": [], "slices": 3}),
    "no convolution": ((4, 4, 2), {"conv": [], "max_pool": [], "fc": [9]}),
}
LEVELS = {
    "binary": {},
    "ternary": {"levels": 3, "threshold": 0.05},
    "ternary_sigma": {"levels": 3, "threshold_sigma": 0.6},
    "two thresholds": {"levels": 3, "threshold": 0.05, "activation_threshold": 0.6},
}


def give_history(norms):
    """Batch norms that look trained, one unit of each being constant."""
    rng = np.random.default_rng(2)
    for i, norm in enumerate(norms):
        shape = norm.beta.shape
        norm.moving_mean.assign(rng.normal(0, 2, shape))
        norm.moving_variance.assign(rng.uniform(0.1, 30, shape))
        norm.beta.assign(rng.normal(0, 0.3, shape) + 1e6 * (-1) ** i * np.eye(*shape, 1)[:, 0])


def network_with_history(in_dim, **params):
    """A trained network, one unit a layer being constant."""
    rng = np.random.default_rng(2)
    training = TrainingParams(epochs=1, batch_size=8, lr_start=1e-2, bn_momentum=0.5)
    network = BinaryNeuralNetwork(in_dim, 4, NetworkParams(**params), training)
    x = rng.integers(0, 256, (40, *in_dim)).astype(np.uint8)
    network.fit(x, rng.integers(0, 4, 40))
    for i, norm in enumerate(network.norms):
        shape = norm.beta.shape
        norm.beta.assign(rng.normal(0, 0.3, shape) + 1e6 * (-1) ** i * np.eye(*shape, 1)[:, 0])
    return network, x


# XLA takes seconds for each: the corners in every run, the others with make test-all.
QUICK = {("odd", "binary"), ("odd", "ternary"), ("one channel", "ternary_sigma")} | {
    ("dense", "two thresholds"),
    ("dense", "binary"),
    ("even filters", "binary"),
    ("strided", "ternary_sigma"),
    ("few levels", "binary"),
    ("black and white", "ternary"),
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


@pytest.mark.parametrize("shape", BOOLEAN)
def test_a_packed_network_of_bits_is_the_same_network(shape, tmp_path):
    in_dim, params = BOOLEAN[shape]
    network, x = network_with_history(in_dim, network="boolnet", **params)
    packed = PackedNetwork.from_network(network)
    np.testing.assert_array_equal(packed.predict(x), network.predict(x))
    packed.save(tmp_path / "network.packed")
    opened = PackedNetwork.load(tmp_path / "network.packed")
    np.testing.assert_array_equal(opened.predict(x), network.predict(x))
    used = {step.kind for step in opened.program.steps}
    assert used >= ({"slices", "product", "scores"} | ({"logic"} if params["conv"] else set()))
    assert "pixels product" not in used


# --- Models built by hand ---------------------------------------------------------------------


def conv(filters, size=3, inputs="sign", kernel="sign", **options):
    return graph_ops.QuantConv2D(
        filters, size, inputs, kernel, use_bias=False, **{"padding": "same", **options}
    )


def dense(units, inputs="sign", kernel="sign"):
    return graph_ops.QuantDense(units, inputs, kernel, use_bias=False)


norm, pool, flatten = (
    graph_ops.ShiftBatchNormalization,
    graph_ops.MaxPooling2D,
    keras.layers.Flatten,
)


def first(filters=20, size=3, **options):
    return [conv(filters, size, None, **options), norm()]


def output():
    return [flatten(), dense(4), norm(), keras.layers.Activation("linear")]


MODELS = {
    "strides": lambda: [
        *first(strides=2),
        *(conv(70, 3, strides=(2, 1)), norm()),
        *(conv(9, 2, strides=3), norm()),
        *output(),
    ],
    "stride 2 on an even size": lambda: [
        *first(strides=(1, 2)),
        *(conv(66, 3, strides=2), norm()),
        *output(),
    ],
    "valid": lambda: [
        *first(padding="valid"),
        *(conv(33, (2, 3), padding="valid", strides=(2, 1)), norm()),
        *output(),
    ],
    "1x1": lambda: [*first(20, 1, strides=2), *(conv(65, 1, strides=2), norm()), *output()],
    "even kernels": lambda: [
        *first(8, (4, 2), strides=(2, 1)),
        *(conv(30, (2, 4), strides=2), pool(), norm()),
        *output(),
    ],
    "ternary, strided and valid": lambda: [
        *first(kernel="ternary", strides=2),
        *(conv(70, 3, "ternary", "ternary", strides=2), norm()),
        *(conv(9, 2, "ternary", "ternary", padding="valid"), norm()),
        *(flatten(), dense(4, "ternary", "ternary"), norm()),
    ],
    "signs beside ternary values": lambda: [
        *first(kernel="ternary"),
        *(conv(70, 3, "sign", "ternary", strides=2), pool(), norm()),
        *(conv(9, 3, graph_ops.Ternary(0.4), "sign"), norm()),
        *(flatten(), dense(6, "sign", "ternary"), norm(), dense(4, "ternary", "sign"), norm()),
    ],
    "pooling after batch norm": lambda: [*first(), pool(), conv(9), norm(), pool(), *output()],
    "convolutions to the end": lambda: [
        *first(strides=4),
        *(conv(4, (3, 2), padding="valid"), flatten(), norm()),
    ],
    "a matrix at every position": lambda: [dense(9, None), norm(), dense(70), norm(), *output()],
    "blocks": lambda: [
        graph_ops.BinaryConv2D(20, pool=True),
        graph_ops.BinaryConv2D(30, weight_quantizer="ternary", activation_quantizer="ternary"),
        keras.layers.Flatten(),
        graph_ops.BinaryDense(4, activation_quantizer=None),
    ],
    "only an output": lambda: [flatten(), dense(4, None), norm()],
}


def with_bits_added():
    """A residual network whose shortcuts are of one bit: sign(batch norm + bit)."""
    images = keras.Input((9, 8, 3), dtype="uint8")
    sign = lambda x: keras.layers.Activation(graph_ops.Sign())(x)  # noqa: E731
    b = sign(norm()(conv(70, 3, None)(images)))
    b = sign(keras.layers.Add()([norm()(conv(70)(b)), b]))
    moved = sign(norm()(conv(33, 1, strides=2)(b)))
    x = keras.layers.Add()([moved, norm()(conv(33, 3, strides=2, kernel="ternary")(b))])
    x = norm()(dense(4)(flatten()(pool()(x))))
    return keras.Model(images, x)


def with_bits_joined():
    """Slices of pixels, and shortcuts joined by XNOR and OR, one of them after pooling."""
    images = keras.Input((9, 8, 3), dtype="uint8")
    sign = lambda x: keras.layers.Activation(graph_ops.Sign())(x)  # noqa: E731
    b = graph_ops.PixelSlices(30)(images)
    b = sign(norm()(conv(70)(b)))
    b = graph_ops.LogicMerge("xnor")([sign(norm()(conv(70)(b))), b])
    y = sign(norm()(pool()(conv(70, kernel="ternary")(b))))
    b = graph_ops.LogicMerge("or")([y, pool()(b)])
    x = norm()(dense(4)(flatten()(b)))
    return keras.Model(images, x)


MODELS |= {"bits added": with_bits_added, "bits joined": with_bits_joined}


def model_by_hand(layers, in_dim=(9, 8, 3)):
    if isinstance(layers, keras.Model):
        model = layers
    else:
        model = keras.Sequential([keras.Input(in_dim, dtype="uint8"), *layers])
    give_history(layer for layer in model._flatten_layers() if isinstance(layer, norm))
    return model


def images(in_dim, count=13):
    return np.random.default_rng(0).integers(0, 256, (count, *in_dim)).astype(np.uint8)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_built_by_hand_is_packed(name, tmp_path):
    keras.utils.set_random_seed(0)
    model = model_by_hand(MODELS[name]())
    x = images(model.inputs[0].shape[1:])
    expected = model.predict(x, verbose=0)
    packed = PackedNetwork.from_network(model)
    np.testing.assert_array_equal(packed.predict(x), expected)
    packed.save(tmp_path / "network.packed")
    np.testing.assert_array_equal(
        PackedNetwork.load(tmp_path / "network.packed").predict(x), expected
    )


# --- Whole data sets --------------------------------------------------------------------------


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


# --- Published files --------------------------------------------------------------------------


def test_the_published_file_scores_what_the_published_checkpoint_scores(tmp_path):
    folder, x = RESULTS / "cifar-10_binary", images((32, 32, 3), 200)
    network = BinaryNeuralNetwork.load(folder / "network.keras")
    expected = network.predict(x)
    opened = PackedNetwork.load(folder / "network.packed")
    np.testing.assert_array_equal(opened.predict(x), expected)
    # And so it does when it is written again, in the present format.
    opened.save(tmp_path / "network.packed")
    again = PackedNetwork.load(tmp_path / "network.packed").program
    made = PackedNetwork.from_network(network).program
    for program in (again, made):
        assert [type(s) for s in program.steps] == [type(s) for s in opened.program.steps]
        arrays = opened.program.arrays()
        for name, array in program.arrays().items():
            np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_published_packed_networks_score_what_their_reports_say(kind):
    if missing_files("cifar-10"):
        pytest.skip("cifar-10 is not here")
    data, folder = load_data("cifar-10"), RESULTS / f"cifar-10_{kind}"
    labels = PackedNetwork.load(folder / "network.packed").classify(data.x_test)
    report = json.loads((folder / "report.json").read_text())
    assert np.mean(labels == data.y_test) == pytest.approx(report["test_accuracy"])


@pytest.mark.parametrize(("levels", "megabytes"), [(2, 1.9), (3, 3.7)])
def test_size_of_the_papers_network_on_disk(levels, megabytes, tmp_path):
    network = BinaryNeuralNetwork((32, 32, 3), 10, NetworkParams(levels=levels))
    PackedNetwork.from_network(network).save(tmp_path / "network.packed")
    assert (tmp_path / "network.packed").stat().st_size <= megabytes * 1e6


# --- Bits, and images that do not fit ---------------------------------------------------------


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
    params = NetworkParams(conv=[5, 6], max_pool=[0, 1], fc=[7])
    packed = PackedNetwork.from_network(BinaryNeuralNetwork((9, 7, 2), 4, params))
    with pytest.raises(ValueError, match=message):
        packed.predict(x)
