"""Open and save networks safely: parameters are checked and sizes known before anything is built.

Reading parameters needs no TensorFlow. No code from a file runs.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import ml_dtypes  # NumPy's bfloat16; TensorFlow brings it.
import numpy as np

from files import atomic_path
from utils import NetworkParams, TrainingParams, is_whole, require

if TYPE_CHECKING:
    import keras

# In a .keras file: the model's configuration, its weights and, in a training's state, what trained.
CONFIG, WEIGHTS, TRAINING = "config.json", "model.weights.h5", "training.json"
# The averages of gradients that Bop keeps, beside them.
AVERAGES = "gradient_averages.npz"
# A configuration of a thousand layers has one megabyte.
LARGEST_CONFIG = 64 * 2**20
# A compact checkpoint has half the size of its weights.
LARGEST_RATIO = 20


# --- Parameters -------------------------------------------------------------------------------


def saved_parameters(path: str | os.PathLike) -> tuple:
    """Parameters in the checkpoint at `path`, once every part of it has its stored check sum.

    Returns
    -------
    tuple
        (in_dim, out_dim, NetworkParams, TrainingParams).

    Raises
    ------
    FileNotFoundError
        If there is no file at `path`.
    ValueError
        If it is no checkpoint of this program, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        return _parameters_in(path)
    # Whatever goes wrong while a damaged or hostile file is taken apart, and zipfile and its
    # decompressors raise a dozen kinds of errors, means the same to the reader.
    except Exception as error:
        raise ValueError(f"{path} is damaged or no checkpoint of this program: {error}") from None


def require_teacher(path: str | os.PathLike, in_dim: Sequence[int], out_dim: int) -> None:
    """Raise unless the checkpoint at `path` takes these images and tells these classes apart.

    Raises
    ------
    FileNotFoundError
        If there is no file at `path`.
    ValueError
        If it is of other images or classes, no checkpoint of this program, or damaged.
    """
    theirs, classes, *_ = saved_parameters(path)
    require(
        (tuple(theirs), classes) == (tuple(in_dim), out_dim),
        f"the teacher {path} takes images of shape {tuple(theirs)} with {classes} classes, this "
        f"network {tuple(in_dim)} with {out_dim}: take another teacher",
    )


def _parameters_in(path):
    with zipfile.ZipFile(path) as archive:
        saved = _config_in(archive)
        require(saved.get("registered_name") == "bnn>BinaryModel", "it holds another model")
        weight_bytes = archive.getinfo(WEIGHTS).file_size
    config = saved["config"]
    network = NetworkParams(**config["network_params"])
    in_dim, out_dim = config["in_dim"], config["out_dim"]
    sizes = [*in_dim, out_dim]
    require(
        len(sizes) == 4 and all(is_whole(size) and size > 0 for size in sizes) and out_dim > 1,
        f"its images have the shape {in_dim} and {out_dim} classes",
    )
    # Before anyone allocates what the parameters ask for.
    weights = network.weight_count(in_dim, out_dim)
    require(4 * weights <= weight_bytes, "weights are missing")
    require(weight_bytes <= 16 * weights + LARGEST_CONFIG, "it holds more than its weights")
    return in_dim, out_dim, network, TrainingParams(**config["training_params"])


def _config_in(archive):
    """The model's configuration, once its size is known and all check sums are right."""
    size = archive.getinfo(CONFIG).file_size
    require(size <= LARGEST_CONFIG, f"its configuration has {size} bytes")
    damaged = archive.testzip()
    require(damaged is None, f"the check sum of {damaged} is wrong")
    return json.loads(archive.read(CONFIG))


# --- Weights ----------------------------------------------------------------------------------


def load_weights(model: keras.Model, path: str | os.PathLike) -> None:
    """Give `model` the weights of the checkpoint at `path`, of the same network.

    Raises
    ------
    ValueError
        If they do not fit, or hold NaN or infinity.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = _weights_in(archive)
        fused = _weights_of_fused_layers(content)
        if fused is None:
            model.load_weights(path)
        else:
            model.set_weights(fused)
    # As in `saved_parameters`: HDF5 has its own dozen kinds of errors.
    except Exception as error:
        raise ValueError(
            f"the weights in {path} do not fit its parameters: {_cause(error)}"
        ) from None
    require(
        all(np.isfinite(w).all() for w in model.get_weights()),
        f"the weights in {path} hold NaN or infinity",
    )
    variances = (w.numpy() for w in model.weights if w.name == "moving_variance")
    require(
        all((variance >= 0).all() for variance in variances),
        f"the weights in {path} hold a negative variance",
    )


def _weights_in(archive):
    """The HDF5 file of weights, once it is known to hold plain arrays, no larger than itself."""
    info = archive.getinfo(WEIGHTS)
    most = LARGEST_RATIO * info.compress_size + LARGEST_CONFIG
    require(info.file_size <= most, f"its weights would unpack to {info.file_size} bytes")
    content, sizes = io.BytesIO(archive.read(WEIGHTS)), []

    def look(name, link):
        require(isinstance(link, h5py.HardLink), f"{name} is a link to another place")
        if not isinstance(file[name], h5py.Dataset):
            return
        array = file[name]
        require(array.dtype.kind in "biuf", f"{name} holds no numbers")
        require(not array.is_virtual and not array.external, f"{name} lies in another file")
        sizes.append(array.nbytes)

    with h5py.File(content, "r") as file:
        file.visititems_links(look)
    require(sum(sizes) <= info.file_size, "its arrays exceed the file")
    return content


def _weights_of_fused_layers(content):
    """Weights in the order of `get_weights`, of a file from before layers were split, or None.

    One layer then held convolution, pooling, batch norm and quantizer.
    """
    with h5py.File(content, "r") as file:
        if "conv_layers" not in file or "fc_layers" not in file:
            return None
        layers = [
            file[kind][name]
            for kind in ("conv_layers", "fc_layers")
            for name in sorted(file[kind], key=_number_at_end)
        ]
        return [
            np.asarray(part[str(i)])
            for layer in layers
            for part in (layer["vars"], layer["batch_norm/vars"])
            for i in range(len(part))
        ]


def _number_at_end(name):
    number = re.search(r"_(\d+)$", name)
    return int(number[1]) if number else 0


# --- Saving -----------------------------------------------------------------------------------


def gradient_averages(model: keras.Model, path: str | os.PathLike) -> dict:
    """The averages of gradients in the checkpoint at `path`: an array by its layer's name.

    Returns
    -------
    dict
        Empty if the checkpoint holds none.

    Raises
    ------
    ValueError
        If they do not fit `model`, or hold NaN or infinity.
    """
    shapes = {
        layer.name: tuple(layer.latent_kernel.shape)
        for layer in model.layers
        if hasattr(layer, "latent_kernel")
    }
    try:
        with zipfile.ZipFile(path) as archive:
            if AVERAGES not in archive.namelist():
                return {}
            weight_bytes = archive.getinfo(WEIGHTS).file_size
            require(archive.getinfo(AVERAGES).file_size <= 2 * weight_bytes, "they are too large")
            with np.load(io.BytesIO(archive.read(AVERAGES)), allow_pickle=False) as arrays:
                averages = dict(arrays)
        for name, average in averages.items():
            require(average.shape == shapes.get(name), f"{name} has the shape {average.shape}")
            require(average.dtype == np.float32, f"{name} holds {average.dtype}")
            require(np.isfinite(average).all(), f"{name} holds NaN or infinity")
    # As in `saved_parameters`.
    except Exception as error:
        raise ValueError(f"the averages of gradients in {path} do not fit: {error}") from None
    return averages


def save(
    model: keras.Model, path: str | os.PathLike, compact: bool = False, averages: dict | None = None
) -> None:
    """Write a model that was never compiled to a `.keras` file, whole or not at all.

    Parameters
    ----------
    model : keras.Model
    path : path-like
    compact : bool
        Round latent weights to bfloat16, in `model` too, and compress the file. Quantized weights,
        and so all answers, stay what they are.
    averages : dict, optional
        Averages of gradients that `gradient_averages` shall find there.

    Raises
    ------
    ValueError
        If `path` does not end in `.keras`, or rounding would change a quantized weight.
    """
    require(Path(path).suffix == ".keras", f"a checkpoint ends in .keras, not {path}")
    if compact:
        for layer in model.layers:
            if hasattr(layer, "latent_kernel"):
                _round_latent_weights(layer)
    with atomic_path(path) as temporary:
        model.save(temporary)
        if averages:
            arrays = io.BytesIO()
            np.savez(arrays, **averages)
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.writestr(AVERAGES, arrays.getvalue())
        if compact:
            _compress(temporary)


def _round_latent_weights(layer):
    """Round the latent weights of `layer` to bfloat16, up or down so that none is requantized."""
    exact, wb = layer.latent_kernel.numpy(), layer.quantized_kernel().numpy()
    nearest = exact.astype(ml_dtypes.bfloat16)
    layer.latent_kernel.assign(nearest.astype(np.float32))
    if layer.kernel_quantizer is None:
        return
    beyond = np.where(exact > nearest, np.inf, -np.inf).astype(ml_dtypes.bfloat16)
    other = np.nextafter(nearest, beyond).astype(np.float32)
    changed = layer.quantized_kernel().numpy() != wb
    layer.latent_kernel.assign(np.where(changed, other, layer.latent_kernel.numpy()))
    require(
        np.array_equal(layer.quantized_kernel().numpy(), wb),
        f"rounded weights would be quantized otherwise in layer {layer.name}: save without compact",
    )


def _compress(path):
    """Deflate the members of the archive at `path`."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


# --- State of a training ----------------------------------------------------------------------


def save_state(model: keras.Model, path: str | os.PathLike, params: TrainingParams) -> None:
    """Write weights, optimizer and `params`, the TrainingParams, to a `.keras` file."""
    with atomic_path(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(TRAINING, json.dumps(dataclasses.asdict(params)))


def restore_state(
    model: keras.Model, path: str | os.PathLike | None, params: TrainingParams
) -> None:
    """Give the compiled `model` the state at `path`, if there is one.

    Raises
    ------
    ValueError
        If it was left by a training of another network or with other parameters, by an earlier
        version of this program, or is damaged.
    """
    if path is None or not Path(path).exists():
        return
    try:
        with zipfile.ZipFile(path) as archive:
            saved = _config_in(archive)
            trained = None
            if TRAINING in archive.namelist():
                trained = TrainingParams(**json.loads(archive.read(TRAINING)))
    except Exception as error:
        raise ValueError(f"{path} is damaged or no state of a training: {error}") from None
    require(
        trained is not None,
        f"{path} was left by an earlier version of this program: start afresh in another folder, "
        "or finish the training with that version",
    )
    same = saved["config"] == json.loads(json.dumps(model.get_config())) and trained == params
    require(
        same,
        f"{path} was left by a training with other parameters: repeat its command, "
        "or start afresh in another folder",
    )
    load_weights(model, path)


# --- Any Keras model --------------------------------------------------------------------------

# What this project registers and a file may name.
OWN_CLASSES = (
    "BinaryModel",
    "Block",
    "Clip",
    "Kurtosis",
    "GRUStep",
    "LSTMStep",
    "LloydMax",
    "LogicMerge",
    "MaxPooling2D",
    "PixelLevels",
    "PixelSlices",
    "QuantConv2D",
    "QuantDense",
    "Registered",
    "RotatedConv2D",
    "ShiftBatchNormalization",
    "Sign",
    "Ternary",
    "Uniform",
    "WeightClip",
    "binarize",
    "clip",
)
# Parts of a configuration that are no objects of a class.
PLAIN_PARTS = ("__keras_tensor__", "__tuple__", "__slice__", "__ellipsis__", "__numpy__")
# Layers that run code which the file brings, or which lies elsewhere.
REFUSED_LAYERS = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")


def open_model(path: str | os.PathLike) -> keras.Model:
    """Open any Keras model that consists of Keras' own layers and those of this project.

    Parameters
    ----------
    path : path-like
        A `.keras` file.

    Returns
    -------
    keras.Model
        Not compiled.

    Raises
    ------
    FileNotFoundError
        If there is no file at `path`.
    ValueError
        If it is damaged, or names a class that could run code of its own, as Lambda does.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no model {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            config = _config_in(archive)
            _weights_in(archive)
    except Exception as error:
        raise ValueError(f"{path} is damaged or no Keras model: {error}") from None
    require(isinstance(config, dict), f"{path} is damaged or no Keras model")
    config.pop("compile_config", None)  # It is not opened.

    import quantizers  # noqa: F401 (registers them)

    # isort: split
    import keras

    for module, name, registered in _classes_in(config):
        require(
            _is_allowed(keras, module, name, registered),
            f"{path} is not opened: it names {name} of {module}, which is not among the layers "
            "of Keras and this project that run no code of a file",
        )
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be opened: {_cause(error)}") from None


def _cause(error):
    """One line of what Keras says: the innermost of the errors that it nests."""
    cause = str(error).rpartition("Exception encountered: ")[2].partition("\n")[0]
    # Keras adds whole configurations.
    return cause if len(cause) <= 300 else f"{cause[:300]}…"


def _classes_in(value):
    """(module, class, registered name) of every object that Keras would build."""
    if isinstance(value, dict):
        if "class_name" in value:
            # A function's name stands where the options of a class do.
            registered = "config" if value["class_name"] == "function" else "registered_name"
            yield tuple(str(value.get(k)) for k in ("module", "class_name", registered))
        for part in value.values():
            yield from _classes_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _classes_in(part)


def _is_allowed(keras, module, name, registered):
    if registered.startswith("bnn>"):
        return name != "__lambda__" and registered.removeprefix("bnn>") in OWN_CLASSES
    if name in PLAIN_PARTS:
        return True
    bases = {
        "keras": (keras.Model, keras.DTypePolicy),
        "keras.layers": keras.Layer,
        "keras.initializers": keras.initializers.Initializer,
        "keras.regularizers": keras.regularizers.Regularizer,
        "keras.constraints": keras.constraints.Constraint,
        "keras.dtype_policies": keras.DTypePolicy,
    }
    if module == "keras.src.models.functional":
        return name == "Functional"
    if module not in bases:
        return _is_operation(keras, module, name)
    room = keras if module == "keras" else getattr(keras, module.removeprefix("keras."))
    found = getattr(room, name, None)
    named = isinstance(found, type) and issubclass(found, bases[module])
    return named and name not in REFUSED_LAYERS


def _is_operation(keras, module, name):
    """Is it an operation of `keras.ops`, as a functional model saves those between its layers?"""
    parts = module.split(".")
    if parts[:3] != ["keras", "src", "ops"] or not all(part.isidentifier() for part in parts):
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    return isinstance(found, type) and issubclass(found, keras.Operation)
