"""Every layer's geometry before the first epoch and after each, in a file and in TensorBoard."""

import csv
import os
from pathlib import Path

import geometry
from bnn import BinaryNeuralNetwork
from files import atomic_path
from measure import layer_weights, measure_layers
from plotting import plot_dot_products
from utils import require

# isort: split
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf


class GeometryLog(keras.callbacks.Callback):
    """Record every layer's geometry before the first epoch and after each.

    The file has a row per layer and number of finished epochs, angles in degrees; see
    `read_geometry`. `flips` is the share of quantized weights that the epoch changed, 0 before
    the first. A training that is resumed goes on with it.

    Parameters
    ----------
    network : bnn.BinaryNeuralNetwork
        The one in training.
    x : ndarray, shape (n, height, width, channels)
        Images on which r is measured: a hundred or two will do.
    path : path-like
        The CSV file.
    tensorboard : path-like, optional
        Folder of TensorBoard's files. They show angle, r, flips and the share of saturated
        weights of each layer, its latent weights as a histogram, and the figure of dot products.
    """

    COLUMNS = ("epochs", "layer", "angle", "angle_sd", "kurtosis", "r", "flips")

    def __init__(
        self,
        network: BinaryNeuralNetwork,
        x: np.ndarray,
        path: str | os.PathLike,
        tensorboard: str | os.PathLike | None = None,
    ):
        super().__init__()
        self.network, self.x, self.path = network, x, Path(path)
        self._tensorboard, self._board = tensorboard, None
        self._rows, self._quantized = None, {}

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self._rows is None:
            # A resumed training keeps what it had recorded before it was cut off.
            earlier = read_geometry(self.path) if epoch else []
            self._rows = [row for row in earlier if row["epochs"] <= epoch]
            recorded = any(row["epochs"] == epoch for row in self._rows)
            layers = layer_weights(self.network) if recorded else self._record(epoch)
            self._quantized = {layer.name: layer.wb for layer in layers}

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._record(epoch + 1)

    def _flips(self, layer):
        before = self._quantized.get(layer.name, layer.wb)
        self._quantized[layer.name] = layer.wb
        return np.mean(layer.wb != before)

    def _record(self, epochs):
        layers = measure_layers(self.network, self.x)
        for layer in layers:
            angles = np.degrees(layer.angles)
            values = np.nanmean(angles), np.nanstd(angles), layer.kurtosis, layer.weights_dot.r
            values = *values, self._flips(layer)
            row = (epochs, layer.name, *(round(float(value), 4) for value in values))
            self._rows.append(dict(zip(self.COLUMNS, row, strict=True)))
        with (
            atomic_path(self.path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.COLUMNS)
            writer.writeheader()
            writer.writerows(self._rows)
        if self._tensorboard is not None:
            self._show(epochs, layers, self._rows[-len(layers) :])
        return layers

    def _show(self, epochs, layers, rows):
        if self._board is None:
            self._board = tf.summary.create_file_writer(str(self._tensorboard))
        with self._board.as_default(epochs):
            for layer, row in zip(layers, rows, strict=True):
                scalars = {name: row[name] for name in ("angle", "r", "flips")}
                scalars["saturation"] = geometry.saturated_share(layer.wc)
                for name, value in scalars.items():
                    tf.summary.scalar(f"{name}/{layer.name}", value)
                tf.summary.histogram(f"latent weights/{layer.name}", layer.wc)
            pixels = _pixels(plot_dot_products(layers, "weights_dot"))
            tf.summary.image("dot products", pixels[None])
        self._board.flush()


def _pixels(figure):
    """Draw `figure` as uint8 pixels, shape (height, width, 4), and close it."""
    figure.canvas.draw()
    pixels = np.array(figure.canvas.buffer_rgba())
    plt.close(figure)
    return pixels


def read_geometry(path: str | os.PathLike) -> list[dict]:
    """What a `GeometryLog` has recorded, a dict per row; nothing where there is no file.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    if not Path(path).exists():
        return []
    whole = {"epochs": int, "layer": str}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
        missing = {"epochs", "layer", "angle", "r"} - set(reader.fieldnames or [])
        require(not missing, f"it has no column {' or '.join(sorted(missing))}")
        rows = [{name: whole.get(name, float)(row[name]) for name in row} for row in rows]
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return rows
