"""Files of networks: whole, damaged, hostile, old, compact; and those of any Keras model."""

import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from example_networks import KINDS, model_of_all_layers, random_images, small_network, trained

import checkpoint
import graph_ops
import training
from bnn import BinaryNeuralNetwork

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "results" / "cifar-10_binary" / "network.keras"


def in_one_line(refusal, path):
    """The message of a refusal, which must name the file and take one line."""
    message = str(refusal.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def rewritten(source, target, change=None, **members):
    """Copy a checkpoint with its config.json changed and every check sum in order."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = members.get(name.partition(".")[0], old.read(name))
            if name == "config.json" and change is not None:
                config = json.loads(content)
                content = json.dumps(change(config) or config)
            new.writestr(name, content)


# --- Compact ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["binary", "ternary", "ternary_sigma", "mixed", "residual"])
def test_a_compact_checkpoint_answers_alike_from_fewer_bytes(kind, tmp_path):
    network = small_network(**KINDS[kind])
    rng = np.random.default_rng(0)
    for layer in network.layers:
        # Where rounding is most likely to cross a threshold: right beside it.
        beside = rng.uniform(-1e-6, 1e-6, layer.latent_kernel.shape)
        away = layer.latent_kernel.numpy() + rng.normal(0, 0.1, layer.latent_kernel.shape)
        quantizer = layer.kernel_quantizer
        threshold = 0 if quantizer is None else float(quantizer.threshold(layer.coordinates()))
        close = rng.choice([-1, 1], beside.shape) * threshold + beside
        layer.latent_kernel.assign(np.where(rng.random(beside.shape) < 0.5, close, away))
    paths = [tmp_path / "network.keras", tmp_path / "network.compact.keras"]
    network.save(paths[0])
    network.save(paths[1], compact=True)
    opened = BinaryNeuralNetwork.load(paths[1])
    for layer, own in zip(opened.layers, network.layers, strict=True):
        if layer.kernel_quantizer is not None:
            np.testing.assert_array_equal(layer.quantized_kernel(), own.quantized_kernel())
        rounded, exact = layer.latent_kernel.numpy(), own.latent_kernel.numpy()
        assert np.all(rounded.view(np.uint32) % 2**16 == 0)
        np.testing.assert_allclose(rounded, exact, rtol=2**-7)
    assert paths[1].stat().st_size < paths[0].stat().st_size
    x, _ = random_images()
    if all(layer.kernel_quantizer is not None for layer in network.layers):
        np.testing.assert_array_equal(opened.predict(x), network.predict(x))


def test_what_rounding_would_requantize_is_not_saved_compact(tmp_path, monkeypatch):
    network = small_network()
    layer = network.layers[1]
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


# --- Damaged and hostile ----------------------------------------------------------------------


def test_load_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        BinaryNeuralNetwork.load(tmp_path / "missing.keras")
    (tmp_path / "text.keras").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        BinaryNeuralNetwork.load(tmp_path / "text.keras")
    with pytest.raises(ValueError, match=r"ends in \.keras"):
        small_network().save(tmp_path / "network.h5")


def test_a_zip_of_something_else_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"registered_name": "other>Model"}))
    with pytest.raises(ValueError, match="no checkpoint of this program: it holds another model"):
        checkpoint.saved_parameters(tmp_path / "other.keras")


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
    network, _, _ = trained()
    path = tmp_path / "network.keras"
    network.save(path)
    expected, refused = network.model.get_weights(), 0
    for damaged in mutations(path.read_bytes(), 90):
        path.write_bytes(damaged)
        try:
            opened = BinaryNeuralNetwork.load(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)
        else:
            for one, other in zip(opened.model.get_weights(), expected, strict=True):
                np.testing.assert_array_equal(one, other)
    assert refused > 45


def code_objects(marker):
    """Objects that would run code which makes the file `marker`."""
    bomb = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    code = {"class_name": "__lambda__", "config": {"value": bomb}}
    layer = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": code}}
    call = {"module": "builtins", "class_name": "function", "config": "eval", "args": [bomb]}
    return layer, call


HOSTILE_NETWORKS = {
    "layer as a size": lambda c, layer, call: c["config"].update(in_dim=layer),
    "call as a size": lambda c, layer, call: c["config"]["network_params"].update(
        conv=[call], max_pool=[0]
    ),
    "call as a seed": lambda c, layer, call: c["config"]["training_params"].update(seed=call),
    "other keys": lambda c, layer, call: c["config"].update(layers=[layer], network_params=call),
    "another class": lambda c, layer, call: c.update(layer),
    "a billion filters": lambda c, layer, call: c["config"]["network_params"].update(
        conv=[10**9, 10**9]
    ),
    "another layer": lambda c, layer, call: c["config"]["network_params"].update(fc=[7, 7]),
    "huge images": lambda c, layer, call: c["config"].update(in_dim=[10**6, 10**6, 2]),
}


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.parametrize("kind", HOSTILE_NETWORKS)
def test_opening_a_hostile_checkpoint_runs_nothing(kind, tmp_path):
    small_network().save(tmp_path / "good.keras")
    marker, bad = tmp_path / "ran", tmp_path / "bad.keras"
    objects = code_objects(marker)
    rewritten(tmp_path / "good.keras", bad, lambda config: HOSTILE_NETWORKS[kind](config, *objects))
    with pytest.raises(ValueError, match=r"bad\.keras"):
        BinaryNeuralNetwork.load(bad)
    assert not marker.exists()


def gigabyte(path):
    """A zip archive of a megabyte whose configuration has a gigabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("config.json", "w") as member:
            for _ in range(64):
                member.write(b" " * 2**24)
        archive.writestr("model.weights.h5", b"")


def test_a_configuration_of_a_gigabyte_is_not_read(tmp_path):
    path = tmp_path / "bad.keras"
    gigabyte(path)
    assert path.stat().st_size < 10 * 2**20
    for opens in (checkpoint.saved_parameters, checkpoint.open_model):
        with pytest.raises(ValueError, match="its configuration has 1073741824 bytes") as refusal:
            opens(path)
        in_one_line(refusal, path)
    with pytest.raises(ValueError, match="its configuration has 1073741824 bytes"):
        checkpoint.restore_state(None, path, None)


def test_weights_with_nan_are_refused(tmp_path):
    network = small_network()
    network.layers[0].latent_kernel.assign(np.full((3, 3, 2, 5), np.nan))
    network.save(tmp_path / "network.keras")
    with pytest.raises(ValueError, match="NaN"):
        BinaryNeuralNetwork.load(tmp_path / "network.keras")


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.parametrize("lost", ["layers", "layers/quant_conv2d/vars/0", "layers/quant_dense_1"])
def test_a_file_that_lacks_weights_is_refused(lost, tmp_path):
    small_network().save(tmp_path / "good.keras")
    with zipfile.ZipFile(tmp_path / "good.keras") as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content, "a") as file:
        del file[lost]
    # As large as before, so that its size says nothing.
    content = content.getvalue().ljust(2**16, b"\0")
    rewritten(tmp_path / "good.keras", tmp_path / "bad.keras", model=content)
    with pytest.raises(ValueError, match="do not fit its parameters") as refusal:
        BinaryNeuralNetwork.load(tmp_path / "bad.keras")
    in_one_line(refusal, tmp_path / "bad.keras")


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


def test_reading_parameters_needs_no_tensorflow(tmp_path):
    small_network().save(tmp_path / "network.keras")
    script = """if True:
        import sys
        import checkpoint

        print(*checkpoint.saved_parameters(sys.argv[1])[:2])
        assert not {"tensorflow", "keras"} & set(sys.modules)
    """
    command = [sys.executable, "-c", script, str(tmp_path / "network.keras")]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert child.stdout == "[9, 7, 2] 4\n"


# --- Files from before layers were split ------------------------------------------------------


def fused_weights(network):
    """The weights of `network` as one layer for convolution, pooling and batch norm holds them."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        made = {"conv": 0, "fc": 0}
        for layer, norm in zip(network.layers, network.norms, strict=True):
            kind = layer.name.split("_")[0]
            name = "binary_conv2d" if kind == "conv" else "binary_dense"
            name += f"_{made[kind]}" if made[kind] else ""
            made[kind] += 1
            group = file.create_group(f"{kind}_layers/{name}")
            for i, weight in enumerate(layer.get_weights()):
                group[f"vars/{i}"] = weight
            for i, weight in enumerate(norm.get_weights()):
                group[f"batch_norm/vars/{i}"] = weight
    return content.getvalue()


@pytest.mark.parametrize(
    "options",
    [{}, {"levels": 3}, {"rotate_first": "random"}, {"fc": [3] * 11}, {"fc": []}],
    ids=str,
)
def test_a_file_of_fused_layers_opens(options, tmp_path):
    network, x, _ = trained(**options)
    network.save(tmp_path / "new.keras")
    weights = {"model": fused_weights(network)}
    rewritten(tmp_path / "new.keras", tmp_path / "old.keras", **weights)
    opened = BinaryNeuralNetwork.load(tmp_path / "old.keras")
    np.testing.assert_array_equal(opened.predict(x), network.predict(x))


def test_a_file_of_fused_layers_that_lacks_one_is_refused(tmp_path):
    network = small_network()
    network.save(tmp_path / "new.keras")
    content = io.BytesIO(fused_weights(network))
    with h5py.File(content, "a") as file:
        del file["fc_layers/binary_dense_1"]
    rewritten(tmp_path / "new.keras", tmp_path / "old.keras", model=content.getvalue())
    with pytest.raises(ValueError, match="do not fit its parameters"):
        BinaryNeuralNetwork.load(tmp_path / "old.keras")


def test_the_published_file_of_fused_layers_opens():
    network = BinaryNeuralNetwork.load(PUBLISHED)
    with (
        zipfile.ZipFile(PUBLISHED) as archive,
        h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r") as file,
    ):
        stored = [
            (file["conv_layers/binary_conv2d/vars/0"], network.layers[0].latent_kernel),
            (file["conv_layers/binary_conv2d_5/vars/0"], network.layers[5].latent_kernel),
            (file["fc_layers/binary_dense_2/vars/0"], network.layers[8].latent_kernel),
            (file["fc_layers/binary_dense_2/batch_norm/vars/1"], network.norms[8].moving_mean),
        ]
        for expected, found in stored:
            np.testing.assert_array_equal(found.numpy(), expected)


# --- State of a training ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """What a finished training left, and its images and labels."""
    path = tmp_path_factory.mktemp("state") / "state.keras"
    x, y = random_images()
    small_network().fit(x, y, state=path)
    return path, x, y


@pytest.mark.parametrize(
    "changes",
    [{"conv": [5, 5]}, {"levels": 3}, {"training": {"seed": 1}}, {"training": {"epochs": 3}}],
    ids=str,
)
def test_a_state_of_other_parameters_is_refused(changes, state):
    path, x, y = state
    with pytest.raises(ValueError, match="left by a training with other parameters") as refusal:
        small_network(**changes).fit(x, y, state=path)
    in_one_line(refusal, path)


def test_a_state_of_an_earlier_version_is_refused(tmp_path):
    x, y = random_images()
    network = small_network(training={"epochs": 1}).fit(x, y)
    path = tmp_path / "state.keras"
    network.model.save(path)
    with pytest.raises(ValueError, match="left by an earlier version of this program") as refusal:
        small_network().fit(x, y, state=path)
    in_one_line(refusal, path)


def test_a_damaged_state_is_refused(state, tmp_path):
    path, x, y = state
    content = path.read_bytes()
    damaged = tmp_path / "state.keras"
    for part in (b"", content[: len(content) // 2], content[:-100]):
        damaged.write_bytes(part)
        with pytest.raises(ValueError, match="damaged or no state of a training") as refusal:
            small_network().fit(x, y, state=damaged)
        in_one_line(refusal, damaged)


# --- Any Keras model --------------------------------------------------------------------------


def stock_model():
    """Layers and operations of Keras alone."""
    inputs = keras.Input((6, 4))
    x = keras.layers.LSTM(4, return_sequences=True)(inputs)
    y = keras.layers.MultiHeadAttention(2, 2)(x, x)
    x = keras.ops.relu((x + y)[..., :2] * 2.0)
    x = keras.ops.mean(keras.ops.concatenate([x, x], axis=-1), axis=1)
    inner = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, activation="gelu", kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.1),
        ]
    )
    return keras.Model(inputs, inner(x))


@pytest.mark.parametrize("make", [stock_model, model_of_all_layers])
def test_open_model_opens_models_of_known_layers(make, tmp_path):
    model = make()
    model.compile("adam", training.squared_hinge)
    model.save(tmp_path / "model.keras")
    opened = checkpoint.open_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).standard_normal((5, *model.input_shape[1:])).astype(np.float32)
    np.testing.assert_array_equal(opened.predict(x, verbose=0), model.predict(x, verbose=0))
    assert not opened.compiled


def test_open_model_opens_a_network_too(tmp_path):
    network, x, _ = trained()
    network.save(tmp_path / "network.keras")
    opened = checkpoint.open_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(opened.predict(x, verbose=0), network.predict(x))


def small_model():
    return keras.Sequential([keras.Input((3,)), graph_ops.QuantDense(2, kernel_quantizer="sign")])


def test_lambda_is_refused(tmp_path):
    path = tmp_path / "model.keras"
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x + 1)])
    model.save(path)
    with pytest.raises(ValueError, match="it names Lambda of keras") as refusal:
        checkpoint.open_model(path)
    in_one_line(refusal, path)


def in_layer(**changes):
    """A change of the configuration of the quantized layer."""
    return lambda config, *_: config["config"]["layers"][1].update(changes)


def in_options(**changes):
    return lambda config, *_: config["config"]["layers"][1]["config"].update(changes)


OF_OS = {"module": "os", "class_name": "system", "config": "touch ran", "registered_name": None}
HOSTILE_MODELS = {
    "a class of the system": in_layer(**OF_OS),
    "a class of the system by another's name": in_layer(**{**OF_OS, "registered_name": "bnn>Exec"}),
    "an initializer": in_options(kernel_initializer=OF_OS),
    "an activation": in_options(activation=OF_OS),
    "a quantizer": in_options(kernel_quantizer=OF_OS),
    "a dtype": in_options(dtype=OF_OS),
    "lambda": lambda config, layer, call: in_layer(**layer)(config),
    "lambda by a path": lambda config, layer, call: in_layer(
        **{**layer, "module": "keras", "class_name": "layers.Lambda"}
    )(config),
    "lambda as a quantizer": lambda config, layer, call: in_options(kernel_quantizer=layer)(config),
    "lambda by another's name": lambda config, layer, call: in_options(
        activation={**layer["config"]["function"], "registered_name": "bnn>Sign"}
    )(config),
    "a function by another's name": in_options(
        activation={**OF_OS, "class_name": "function", "registered_name": "bnn>binarize"}
    ),
    "a call": lambda config, layer, call: in_options(activation=call)(config),
    "a saved model": in_layer(
        module="keras.layers",
        class_name="TFSMLayer",
        config={"filepath": "/tmp"},
        registered_name=None,
    ),
    "a download": in_options(
        activation={"module": "keras.utils", "class_name": "get_file", "config": {}}
    ),
    "a class of this project that no model needs": in_layer(
        module="walk", class_name="Stream", registered_name="bnn>Stream"
    ),
    "no dictionary": lambda config, layer, call: [1, 2],
}


@pytest.mark.parametrize("kind", HOSTILE_MODELS)
def test_opening_a_hostile_model_runs_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_model().save(tmp_path / "good.keras")
    marker, bad = tmp_path / "ran", tmp_path / "bad.keras"
    objects = code_objects(marker)
    rewritten(tmp_path / "good.keras", bad, lambda config: HOSTILE_MODELS[kind](config, *objects))
    with pytest.raises(ValueError, match=r"is not opened: it names|no Keras model") as refusal:
        checkpoint.open_model(bad)
    in_one_line(refusal, bad)
    assert not marker.exists()


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model"):
        checkpoint.open_model(tmp_path / "missing.keras")
    path = tmp_path / "model.keras"
    small_model().save(path)
    content = path.read_bytes()
    for damaged in (b"", b"text", content[:-200], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged or no Keras model") as refusal:
            checkpoint.open_model(path)
        in_one_line(refusal, path)


def test_weights_that_do_not_fit_a_model_are_refused_in_one_line(tmp_path):
    path = tmp_path / "model.keras"
    small_model().save(tmp_path / "good.keras")
    rewritten(tmp_path / "good.keras", path, in_options(units=3))
    with pytest.raises(ValueError, match="cannot be opened") as refusal:
        checkpoint.open_model(path)
    in_one_line(refusal, path)
