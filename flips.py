"""How often each weight flips, and how latent weights drift, in the last epoch of a training."""

import os
from pathlib import Path

import geometry
from files import atomic_path

# isort: split
import keras
import numpy as np

# Cells of the distance from the threshold, from 0 to 1, narrow at 0: their edges are (i/n)².
DRIFT_CELLS = 50
# The drift is taken from every so many steps, which is precise enough.
DRIFT_EVERY = 10


class FlipLog(keras.callbacks.Callback):
    """Count in the last epoch how often each quantized weight changes, and measure the drift.

    The file has for each layer with quantized weights `LAYER/flips`, the number of steps that
    changed the weight's quantized value, in the kernel's shape, and `LAYER/drift` and
    `LAYER/drift_count`, shape (DRIFT_CELLS,): the mean change per step of a latent weight's
    distance from the threshold of the quantizer, positive away from it, by that distance before
    the step, and the number of weights and steps that it is a mean of. `steps` is the number of
    steps. See `read_flips`.

    Parameters
    ----------
    path : path-like
        The `.npz` file.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self._path, self._layers = Path(path), []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if epoch < self.params["epochs"] - 1:
            return
        # A teacher has weights too.
        model = getattr(self.model, "student", self.model)
        layers = model._flatten_layers(include_self=False)
        self._layers = [_Layer(one) for one in layers if getattr(one, "kernel_quantizer", None)]

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        for layer in self._layers:
            layer.step(drifts=batch % DRIFT_EVERY == 0)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if not self._layers:
            return
        arrays = {"steps": self.params["steps"]}
        for layer in self._layers:
            arrays |= {f"{layer.name}/{key}": value for key, value in layer.result().items()}
        with atomic_path(self._path) as temporary:
            np.savez_compressed(temporary, **arrays)


class _Layer:
    """Counts of one layer."""

    def __init__(self, layer):
        self.name, self._layer = layer.name, layer
        self._flips = np.zeros(layer.latent_kernel.shape, np.uint16)
        self._sums, self._counts = np.zeros(DRIFT_CELLS), np.zeros(DRIFT_CELLS, int)
        self._latent, self._quantized = self._now()

    def _now(self):
        latent = keras.ops.convert_to_numpy(self._layer.latent_kernel)
        return latent, keras.ops.convert_to_numpy(self._layer.quantized_kernel())

    def step(self, drifts):
        before, (self._latent, quantized) = self._latent, self._now()
        self._flips += quantized != self._quantized
        self._quantized = quantized
        if drifts:
            # The nearer of the thresholds ±t has the sign of the weight.
            threshold = np.asarray(self._layer.kernel_quantizer.threshold(before))
            beyond = np.abs(before) - threshold
            away = np.where(before < 0, -1.0, 1.0) * np.where(beyond < 0, -1.0, 1.0)
            change = (self._latent - before) * away
            cells = np.sqrt(np.minimum(np.abs(beyond), 1)) * DRIFT_CELLS
            cells = np.minimum(cells.astype(int), DRIFT_CELLS - 1).ravel()
            self._sums += np.bincount(cells, change.ravel(), DRIFT_CELLS)
            self._counts += np.bincount(cells, minlength=DRIFT_CELLS)

    def result(self):
        drift = self._sums / np.maximum(self._counts, 1)
        return {"flips": self._flips, "drift": drift, "drift_count": self._counts}


def drift_distances() -> np.ndarray:
    """The distances from the threshold between which the drift is averaged, DRIFT_CELLS + 1."""
    return (np.arange(DRIFT_CELLS + 1) / DRIFT_CELLS) ** 2


def read_flips(path: str | os.PathLike) -> tuple[int, dict[str, dict[str, np.ndarray]]]:
    """What a `FlipLog` has written.

    Returns
    -------
    steps : int
    layers : dict
        By the layer's name a dict of its arrays 'flips', 'drift' and 'drift_count'.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged.
    """
    path, layers = Path(path), {}
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: train with --track_flips")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            steps = int(arrays["steps"])
            for name in arrays.files:
                layer, _, key = name.rpartition("/")
                if layer:
                    layers.setdefault(layer, {})[key] = arrays[name]
    except Exception as error:  # A damaged archive raises a dozen kinds.
        raise ValueError(f"{path} is damaged: {error}") from None
    return steps, layers


def flips_by_distance(w: np.ndarray, flips: np.ndarray) -> dict[str, float]:
    """Are the weights near the threshold of a sign those that flip?

    Parameters
    ----------
    w, flips : ndarray, shape (..., units)
        Latent weights of a layer at the end of the epoch, and how often each flipped in it.

    Returns
    -------
    dict
        `flipped`, the share of all weights that flipped at least once; `near`, the share near the
        threshold as `geometry.near_threshold_share` has it, 8 % for a Gaussian; `near_flipped`,
        the share of these that flipped at least once; `still_near`, the share of the weights that
        never flipped that are near.
    """
    moved = flips > 0
    scale = np.sqrt(np.mean(w**2, axis=tuple(range(w.ndim - 1))))
    near = np.abs(w) < geometry.NEAR * scale
    share = lambda mask: float(mask.mean()) if mask.size else float("nan")  # noqa: E731
    return {
        "flipped": share(moved),
        "near": share(near),
        "near_flipped": share(moved[near]),
        "still_near": share(near[~moved]),
    }
