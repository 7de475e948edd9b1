"""The example trainings: models of stock layers, trained with interruptions, written whole."""

import argparse
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from checkpoint import open_model
from data.load_data import load_data
from examples import characters, residual_cifar, rows_mnist, separable_cifar, training

EXAMPLES = Path(training.__file__).parent
NETWORKS = {
    "residual_cifar": residual_cifar.network,
    "separable_cifar": separable_cifar.network,
    "rows_mnist": rows_mnist.network,
    "characters": lambda: characters.network(50),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_small_and_of_stock_layers(name):
    model = NETWORKS[name]()
    assert model.name == name and model.count_params() < 2e6
    for layer in model._flatten_layers(include_self=False):
        assert type(layer).__module__.startswith("keras.")
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 80


def network():
    images = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    return keras.Model(images, keras.layers.Dense(10, dtype="float32")(x), name="tiny")


def test_an_interrupted_training_goes_on(tmp_path, monkeypatch):
    class Interrupted(keras.callbacks.BackupAndRestore):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            raise KeyboardInterrupt

    data = load_data("digits")
    args = argparse.Namespace(out=tmp_path, epochs=3, steps=None)

    def train():
        def optimizer(steps):
            return keras.optimizers.Adam(training.one_cycle(0.01, steps))

        training.train(network, data, args, optimizer, 64, "crop-flip")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(keras.callbacks, "BackupAndRestore", Interrupted)
        train()
    assert not (tmp_path / "tiny.keras").exists()
    train()
    record = json.loads((tmp_path / "tiny.json").read_text(encoding="utf-8"))
    assert record["epochs"] == 3 and record["epochs_in_these_seconds"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.keras", "tiny.npz", "tiny.json"}
    model, held_out = open_model(tmp_path / "tiny.keras"), np.load(tmp_path / "tiny.npz")
    right = model.predict(held_out["x"], verbose=0).argmax(1) == held_out["y"]
    assert right.mean() == pytest.approx(record["validation_accuracy"])
    np.testing.assert_array_equal(held_out["x"], data.x_valid)
