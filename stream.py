"""Many images through a functional network, layer by layer: batch norm's statistics, accuracy.

All images go through one layer before the next, as batch norm's statistics of a layer shape what
the following ones see. Between layers only the tensors that are still read are kept, those of ±1
as bits.
"""

import graph_ops
import walk
from fast.store import Store
from geometry import ColumnMoments
from utils import require

# isort: split
import keras
import numpy as np
import tensorflow as tf

# Images in one batch wherever nothing is learned from it.
INFERENCE_BATCH = 100
# Bytes that the inputs of a batch norm may take to be kept, and not computed again.
KEPT = 2**28
# Values that are summed in one go: 1 MiB of float64. What stays in the cache is summed four times
# as fast as a whole batch.
SUMMED = 2**17


class Stream:
    """Images on their way through a network.

    Parameters
    ----------
    model : keras.Model
        Functional or sequential, with one input.
    x : ndarray, shape (n, ...)

    Attributes
    ----------
    next_product : str or None
        Name of the layer with a product before which the images stand; None at the end.

    Raises
    ------
    ValueError
        If the model is not functional or has several inputs.
    """

    def __init__(self, model: keras.Model, x: np.ndarray):
        walk.steps(model)  # Says what is wrong, if anything is.
        self._graph = walk.graph_of(model)
        require(len(self._graph.inputs) == 1, f"{model.name} has several inputs")
        self._last = self._graph.last_readers()
        batches = (x[i : i + INFERENCE_BATCH] for i in range(0, len(x), INFERENCE_BATCH))
        self._live = {self._graph.inputs[0]: Store(batches)}
        self._position = 0
        if not self._at_product():
            self.advance()

    def along(self, model: keras.Model) -> "Stream":
        """The same images at the same place of another network whose steps are the same."""
        other = object.__new__(Stream)
        other.__dict__.update(self.__dict__, _graph=walk.graph_of(model))
        return other

    @property
    def next_product(self) -> str | None:
        return self._graph.steps[self._position].layer.name if self._at_product() else None

    def _at_product(self):
        steps = self._graph.steps
        return self._position < len(steps) and walk.forms_product(steps[self._position].layer)

    def _segment(self):
        """Positions of the steps from here to the one before the next product."""
        steps, end = self._graph.steps, self._position + 1
        while end < len(steps) and not walk.forms_product(steps[end].layer):
            end += 1
        return range(self._position, end)

    def _batches(self, end):
        """The tensors by number, batch by batch, after the steps from here to before `end`."""
        for number in range(len(next(iter(self._live.values())))):
            tensors = {
                key: tf.convert_to_tensor(store[number]) for key, store in self._live.items()
            }
            self._run(tensors, self._position, end)
            yield tensors

    def _run(self, tensors, start, end):
        """Take `tensors`, those before the step at `start`, to before the one at `end`."""
        for position in range(start, end):
            step = self._graph.steps[position]
            counts = isinstance(step.layer, (graph_ops.QuantConv2D, graph_ops.QuantDense))
            step.run(tensors, **({"counted": True} if counts else {}))
            for read in step.reads:
                if self._last[read] <= position:
                    del tensors[read]

    def advance(self) -> None:
        """Take all images to the next layer with a product, or to the end."""
        end = self._segment()[-1] + 1
        kept = {}
        for tensors in self._batches(end):
            for number, tensor in tensors.items():
                quantizer = self._only_quantizer(number, end)
                values = tensor if quantizer is None else quantizer(tensor)
                kept.setdefault(number, Store()).append(np.asarray(values))
        self._live, self._position = kept, end

    def _only_quantizer(self, number, end):
        """The quantizer to which nothing but the signs of a tensor matter, in all that reads it."""
        if number in self._graph.outputs:
            return None
        found = set()
        for step in self._graph.steps[end:]:
            if number in step.reads:
                found.add(getattr(step.layer, "input_quantizer", None))
        quantizer = found.pop() if len(found) == 1 else None
        return quantizer if _keeps_its_values(quantizer) else None

    def refit(self) -> None:
        """Re-estimate batch norm's mean and variance from here to the end, over all images."""
        while True:
            for position in self._segment():
                step = self._graph.steps[position]
                if isinstance(step.layer, keras.layers.BatchNormalization):
                    self._refit_one(step, position)
            if self._segment()[-1] + 1 == len(self._graph.steps):
                return
            self.advance()

    def _refit_one(self, step, position):
        (number,) = step.reads
        layer, moments, kept = step.layer, ColumnMoments(), {}
        for tensors in self._batches(position):
            values = np.moveaxis(np.asarray(tensors[number]), layer.axis, -1)
            values = values.reshape(-1, values.shape[-1])
            for part in np.array_split(values, -(-values.size // SUMMED)):
                moments.update(part.astype(np.float64))
            if kept is not None:
                for key, tensor in tensors.items():
                    kept.setdefault(key, Store()).append(np.asarray(tensor))
                if sum(store.nbytes for store in kept.values()) > KEPT:
                    kept = None
        layer.moving_mean.assign(moments.mean)
        layer.moving_variance.assign(moments.variance)
        if kept is not None:
            self._live, self._position = kept, position

    def outputs(self, *models: keras.Model) -> list[np.ndarray]:
        """The outputs of the network for all images, or of others `along` which they go from here.

        Parameters
        ----------
        *models : keras.Model
            With the same next product, which is formed once for all of them.

        Returns
        -------
        list of ndarray, shape (n, ...)
            One per model.
        """
        streams = [self.along(model) for model in models] or [self]
        outputs = [[] for _ in streams]
        (number,), end = self._graph.outputs, len(self._graph.steps)
        after = min(self._position + 1, end)
        for tensors in streams[0]._batches(after):
            for stream, batches in zip(streams, outputs, strict=True):
                own = dict(tensors)
                stream._run(own, after, end)
                batches.append(np.asarray(own[number]))
        return list(map(np.concatenate, outputs))


def _keeps_its_values(quantizer):
    """Does quantizing twice give what quantizing once gives?"""
    if not isinstance(quantizer, graph_ops.Sign | graph_ops.Ternary):
        return False
    values = np.array([-1, 1] if quantizer.levels == 2 else [-1, 0, 1], np.float32)
    return np.array_equal(quantizer(values), values)


def refit_batch_norm(model: keras.Model, x: np.ndarray) -> str:
    """Re-estimate the statistics of every batch norm of a model on images `x`.

    In a functional model mean and variance are those over all images, layer after layer, with
    sums in float64. What another model does is not known layer by layer: there they are averages
    over batches that the model normalizes as in training.

    Parameters
    ----------
    model : keras.Model
    x : ndarray, shape (n, ...)

    Returns
    -------
    str
        'exact' or 'averaged'.
    """
    if walk.graph_of(model) is not None:
        Stream(model, x).refit()
        return "exact"
    norms = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in norms]
    for number, start in enumerate(range(0, len(x), INFERENCE_BATCH)):
        for layer in norms:
            layer.momentum = number / (number + 1)
        model(x[start : start + INFERENCE_BATCH], training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    return "averaged"
