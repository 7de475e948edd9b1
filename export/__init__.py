"""Pass a trained network on: as C, QONNX, SavedModel, ONNX and LiteRT.

Here is no TensorFlow until a network is exported.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from files import (
    HALF_WRITTEN,
    UMASK,
    half_written_prefix,
    sweep_half_written,
    write_json,
    write_text,
)
from utils import NetworkParams, require, require_packable

if TYPE_CHECKING:
    import keras

    from packed.run import Trained

# What tells that a folder is an export, and may be replaced by another.
RECORD = "export.json"
# The file or folder of each format, and the package without which it is not written.
FORMATS = {
    "C": ("network.c", "jinja2"),
    "SavedModel": ("saved_model", "tensorflow"),
    "LiteRT": ("network.tflite", "tensorflow"),
    "ONNX": ("network.onnx", "tf2onnx"),
    "QONNX": ("network.qonnx.onnx", "onnx"),
}
LAYOUT = "{} × {} × {} bytes an image: rows, columns, channels. A pixel x means 2x/255 − 1."


def check(params: NetworkParams | None, folder: str | os.PathLike) -> None:
    """Raise ValueError, with the reason, if a network cannot be exported or `folder` is taken.

    Parameters
    ----------
    params : NetworkParams or None
        None of a Keras model, which only its layers can tell of.
    folder : path-like
    """
    folder = Path(folder)
    try:
        if params is not None:
            require_packable(params)
    except ValueError as error:
        raise ValueError(str(error).replace("cannot pack", "cannot export")) from None
    require(str(folder) and not folder.is_file(), f"{folder} is a file: name a folder to export to")
    ours = (folder / RECORD).is_file() or not folder.is_dir() or not any(folder.iterdir())
    require(ours, f"{folder} is not empty and holds no {RECORD}: export to another folder")


def export(
    network: "keras.Model | Trained", folder: str | os.PathLike, about: dict | None = None
) -> list[str]:
    """Write a network to `folder` in all forms, whole or not at all.

    An earlier export in `folder` is replaced. Formats whose package is not installed are left out.

    Parameters
    ----------
    network : BinaryNeuralNetwork or keras.Model
        Binary or ternary; a Keras model is one that `packed.compile.compile_model` takes.
    folder : path-like
    about : dict, optional
        What the network is, text and numbers by name: data set, accuracy, checkpoint.

    Returns
    -------
    list of str
        The formats of `FORMATS` that were written.

    Raises
    ------
    ValueError
        If the network cannot be exported, or `folder` holds something else than an export.
    """
    folder = Path(folder)
    check(getattr(network, "network_params", None), folder)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    parent = folder.absolute().parent
    sweep_half_written(parent)
    half = Path(tempfile.mkdtemp(prefix=half_written_prefix(), dir=parent))
    try:
        made = _write_all(network, half, about or {})
        half.chmod(0o777 & ~UMASK)
        _replace(folder, half)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return made


def _replace(folder, half):
    """Put `half` in the place of `folder`."""
    if not folder.is_dir():
        os.replace(half, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=HALF_WRITTEN, dir=half.parent))
    os.replace(folder, old)
    try:
        os.replace(half, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_all(network, folder, about):
    # Only now, as it takes seconds.
    from export import c, keras_formats
    from packed.compile import compile_model

    model = getattr(network, "model", network)
    program = compile_model(model)
    about = {
        "network": _description(program),
        **about,
        "images": LAYOUT.format(*program.in_dim),
        "program_sha256": _digest(program),
    }
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in about.items()]
    for name, text in c.sources(program, lines).items():
        write_text(folder / name, text)
    made = [name for name, (_, package) in FORMATS.items() if importlib.util.find_spec(package)]
    for name in made:
        path = folder / FORMATS[name][0]
        if name in keras_formats.KINDS:
            keras_formats.write(model, name, path)
        elif name == "QONNX":
            from export import qonnx

            path.write_bytes(qonnx.model_of(program, about).SerializeToString())
    write_json(folder / RECORD, {**about, "formats": {name: FORMATS[name][0] for name in made}})
    return made


def _description(program):
    products = [step for step in program.steps if hasattr(step, "weights")]
    kind = "ternary" if any(step.ternary for step in products) else "binary"
    return f"{kind}, {sum(step.weights.size for step in products)} weights"


def _digest(program):
    """What tells one network from another: of the numbers that its answers depend on."""
    digest = hashlib.sha256(json.dumps([program.in_dim, program.out_dim]).encode())
    for name, array in program.arrays().items():
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()
