"""Flips and drift of weights, against counts from every step."""

import keras
import numpy as np
import pytest
from example_networks import random_images, small_network

import flips


class _Record(keras.callbacks.Callback):
    """All kernels, latent and quantized, after every step of the last epoch."""

    def __init__(self, network):
        super().__init__()
        self._network, self.steps = network, []

    def _take(self):
        self.steps.append(
            [
                (one.latent_kernel.numpy(), one.quantized_kernel().numpy())
                for one in _quantized(self)
            ]
        )

    def on_epoch_begin(self, epoch, logs=None):
        self.steps = []
        self._take()

    def on_train_batch_end(self, batch, logs=None):
        self._take()


def _quantized(record):
    return [layer for layer in record._network.layers if layer.kernel_quantizer is not None]


KINDS = {}, {"levels": 3, "threshold": 0.1}, {"bin_weights": [0, 1, 1, 1]}


@pytest.mark.parametrize("kind", KINDS)
def test_flips_and_drift_are_those_of_every_step(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(flips, "DRIFT_EVERY", 1)
    network, path = small_network({"epochs": 3}, **kind), tmp_path / "flips.npz"
    x, y = random_images(80)
    record = _Record(network)
    network.fit(x, y, callbacks=[flips.FlipLog(path), record])
    steps, layers = flips.read_flips(path)
    assert steps == 10 == len(record.steps) - 1
    assert list(layers) == [layer.name for layer in _quantized(record)]
    threshold = kind.get("threshold", 0)
    edges, total = flips.drift_distances(), 0
    for number, (name, measured) in enumerate(layers.items()):
        latent, quantized = (
            np.array([step[number][part] for step in record.steps]) for part in (0, 1)
        )
        count = (quantized[1:] != quantized[:-1]).sum(0)
        np.testing.assert_array_equal(measured["flips"], count, err_msg=name)
        total += count.sum()
        # The change of the distance to the threshold on the weight's own side of zero.
        before, after = latent[:-1], latent[1:]
        side = np.where(before < 0, -1, 1) * threshold
        distance = np.abs(before - side)
        change = np.where(before > side, 1, -1) * (after - before)
        cells = np.clip(np.searchsorted(edges, distance, "right") - 1, 0, flips.DRIFT_CELLS - 1)
        for cell in range(flips.DRIFT_CELLS):
            found = change[cells == cell]
            assert measured["drift_count"][cell] == pytest.approx(found.size, abs=2)
            if found.size > 20:
                assert measured["drift"][cell] == pytest.approx(found.mean(), abs=1e-3)
    assert total > 0


def test_weights_near_zero_are_those_that_flip():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((400, 50)) * np.linspace(0.5, 2, 50)
    counts = 3 * (np.abs(w) < 0.05 * np.linspace(0.5, 2, 50))
    found = flips.flips_by_distance(w, counts)
    assert found["near"] == pytest.approx(0.0797, abs=0.01)
    assert found["flipped"] == pytest.approx(0.0399, abs=0.01)
    assert found["near_flipped"] == pytest.approx(0.5, abs=0.05)
    assert found["still_near"] == pytest.approx(0.0415, abs=0.01)
    nothing = flips.flips_by_distance(w, np.zeros_like(w))
    assert nothing["flipped"] == nothing["near_flipped"] == 0


def test_files_that_are_missing_or_damaged_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--track_flips"):
        flips.read_flips(tmp_path / "flips.npz")
    (tmp_path / "flips.npz").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="is damaged"):
        flips.read_flips(tmp_path / "flips.npz")
