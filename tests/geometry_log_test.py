"""The geometry that a training records."""

import numpy as np
import pytest
from small_networks import smooth_images

import measure
from bnn import BinaryNeuralNetwork, NetworkParams, TrainingParams
from geometry_log import GeometryLog, read_geometry

# isort: split
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_the_geometry_is_recorded_before_and_after_each_epoch(tmp_path):
    x, y, path = smooth_images(40), np.arange(40) % 4, tmp_path / "geometry.csv"
    training = TrainingParams(epochs=2, batch_size=10, lr_start=1e-2, lr_end=1e-3)
    params = NetworkParams(conv=[40], max_pool=[1], fc=[30])
    network = BinaryNeuralNetwork((7, 6, 2), 4, params, training)
    first = measure.measure_layers(network, x)
    network.fit(x, y, callbacks=[GeometryLog(network, x, path)])
    rows = read_geometry(path)
    assert [(row["epochs"], row["layer"]) for row in rows] == [
        (epochs, layer) for epochs in range(3) for layer in ("conv_1", "fc_1", "fc_2")
    ]
    for row, layer in zip(rows, first + measure.measure_layers(network, x) * 2, strict=True):
        if row["epochs"] != 1:
            assert row["angle"] == pytest.approx(np.degrees(layer.angles.mean()), abs=1e-3)
        # Batch norm, re-estimated after the last epoch, changes what the layers above see.
        if row["epochs"] == 0 or (row["epochs"] == 2 and row["layer"] == "conv_1"):
            assert row["r"] == pytest.approx(layer.weights_dot.r, abs=1e-3)
    assert rows[1]["angle"] == pytest.approx(30, abs=0.5)  # Uniform weights; 480 of them.

    # What a killed run had recorded beyond its last state is taken back, the rest is kept.
    log = GeometryLog(network, x, path)
    log.on_epoch_begin(1)
    log.on_epoch_end(1)
    resumed = read_geometry(path)
    assert [row["epochs"] for row in resumed] == [row["epochs"] for row in rows]
    assert resumed[:3] == rows[:3]
    log = GeometryLog(network, x, path)
    log.on_epoch_begin(0)
    assert {row["epochs"] for row in read_geometry(path)} == {0}
    assert read_geometry(tmp_path / "missing.csv") == []


def test_tensorboard_shows_what_the_file_holds(tmp_path):
    x, y = smooth_images(40), np.arange(40) % 4
    training = TrainingParams(epochs=2, batch_size=10, lr_start=1e-2, lr_end=1e-3)
    network = BinaryNeuralNetwork(
        (7, 6, 2), 4, NetworkParams(conv=[4], max_pool=[1], fc=[]), training
    )
    log = GeometryLog(network, x, tmp_path / "geometry.csv", tmp_path / "board")
    network.fit(x, y, callbacks=[log])
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    assert len(events.Tags()["tensors"]) == 2 * 5 + 1

    def shown(tag):
        return {e.step: tf.make_ndarray(e.tensor_proto) for e in events.Tensors(tag)}

    for name in ("angle", "r", "flips"):
        for layer in ("conv_1", "fc_1"):
            rows = [r for r in read_geometry(tmp_path / "geometry.csv") if r["layer"] == layer]
            assert len(rows) == 3
            expected = {row["epochs"]: np.float32(row[name]) for row in rows}
            assert shown(f"{name}/{layer}") == expected
    last = measure.layer_weights(network)[0].wc
    assert shown("saturation/conv_1")[2] == np.mean(np.abs(last) == 1)
    counts = shown("latent weights/conv_1")[2][:, 2]
    assert counts.sum() == last.size
    width, height, png, *_ = shown("dot products")[2]
    assert tf.io.decode_png(png).shape == (int(height), int(width), 4)
