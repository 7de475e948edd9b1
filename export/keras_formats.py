"""The float graph of a network in the formats of other runtimes: SavedModel, ONNX and LiteRT.

Keras writes them all. They take uint8 images and give the float network's scores.
"""

import contextlib
import os

import keras
import numpy as np
import tensorflow as tf

# What Keras calls each format.
KINDS = {"SavedModel": "tf_saved_model", "LiteRT": "litert", "ONNX": "onnx"}


def write(model: keras.Model, name: str, path: str | os.PathLike) -> None:
    """Write a Keras model to the file or folder `path`.

    Parameters
    ----------
    model : keras.Model
        From uint8 images to scores.
    name : {'SavedModel', 'LiteRT', 'ONNX'}
    path : path-like
    """
    # A model of Keras' own class, once called, as its writer for ONNX demands.
    plain = keras.Model(model.input, model.output, name=model.name)
    plain(np.zeros((1, *model.input_shape[1:]), np.uint8))
    with _inlined_functions() if name == "ONNX" else contextlib.nullcontext():
        plain.export(str(path), format=KINDS[name], verbose=False)


@contextlib.contextmanager
def _inlined_functions():
    """Let TensorFlow write the operations of its functions into the graph that calls them."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)
