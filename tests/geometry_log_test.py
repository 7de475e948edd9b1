"""The geometry that a training records."""

import numpy as np
import pytest
from small_networks import smooth_images

import measure
from bnn import BinaryNeuralNetwork, NetworkParams, TrainingParams
from geometry_log import GeometryLog, read_geometry


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
