"""The networks, by name, and `BinaryNeuralNetwork`, which trains, opens and saves them.

`BinaryNeuralNetwork()` with its defaults is the paper's CIFAR-10 network (BinaryNet's, Hubara et
al. 2016): conv 3×3 128-128-P-256-256-P-512-512-P, fully connected 1024-1024-10, 14.0 million
weights.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Self

import checkpoint
import geometry
import graph_ops
import quantizers  # noqa: F401 (registers them)
import stream
import training
import walk
from fast.batches import LARGEST_SHIFT, batches_in_order
from networks import NETWORKS, Layers, scaled
from optimizers import AveragingAdam
from packed import PackedNetwork
from utils import (
    RECURRENT,
    NetworkParams,
    TrainingParams,
    frozen,
    is_whole,
    require,
    require_flips,
    require_size,
)

# isort: split
import keras
import numpy as np
import tensorflow as tf

__all__ = [
    "NETWORKS",
    "BinaryModel",
    "BinaryNeuralNetwork",
    "NetworkParams",
    "PackedNetwork",
    "TrainingParams",
    "scaled",
]

# Training images that show how the first layer's patches are correlated.
PATCH_IMAGES = 2000
# Whitening takes directions with less than this share of the mean variance for noise.
WHITENING_FLOOR = 0.01


@graph_ops.register
class BinaryModel(keras.Model):
    """The functional model of a `BinaryNeuralNetwork`, which Keras trains and saves.

    Called on uint8 images, which mean 2x/255 − 1. It is saved by its parameters, from which it is
    built again.
    """

    def __init__(
        self,
        in_dim: Sequence[int],
        out_dim: int,
        network_params: dict,
        training_params: dict,
        **kwargs: object,
    ):
        network = NetworkParams(**network_params)
        trained = TrainingParams(**training_params)
        images = keras.Input(tuple(in_dim), dtype="uint8", name="images")
        build = NETWORKS[network.network]
        layers = Layers(network, trained)
        scores = build(layers.images(images), out_dim, network, layers)
        super().__init__(inputs=images, outputs=scores, **{"name": "bnn", **kwargs})
        self._parameters = {
            "in_dim": list(in_dim),
            "out_dim": out_dim,
            "network_params": dataclasses.asdict(network),
            "training_params": dataclasses.asdict(trained),
        }

    def get_config(self) -> dict:
        return dict(self._parameters)

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> Self:
        return cls(**config)


class BinaryNeuralNetwork:
    """A convolutional network with binary or ternary weights and activations.

    Parameters
    ----------
    in_dim : (height, width, channels)
    out_dim : int
        Number of classes.
    network_params : NetworkParams
    training_params : TrainingParams

    Attributes
    ----------
    model : BinaryModel
        The Keras model that does the work, for uint8 images.
    history : dict
        Of the last `fit`: what Keras recorded, a list per quantity with an entry per epoch.

    Raises
    ------
    ValueError
        If a size is not positive, or if the threshold leaves a layer without a single non-zero
        weight.
    """

    def __init__(
        self,
        in_dim: Sequence[int],
        out_dim: int,
        network_params: NetworkParams = NetworkParams(),
        training_params: TrainingParams = TrainingParams(),
    ):
        in_dim = frozen(in_dim)
        require(
            isinstance(in_dim, tuple)
            and len(in_dim) == 3
            and all(is_whole(n) and n > 0 for n in in_dim),
            f"in_dim must be (height, width, channels), all positive, not {in_dim!r}",
        )
        require(is_whole(out_dim) and out_dim >= 2, f"out_dim must be at least 2, not {out_dim!r}")
        require_flips(network_params, training_params)
        require_size(network_params, in_dim, out_dim)
        self.in_dim = in_dim
        self.out_dim = int(out_dim)
        self.network_params = network_params
        self.training_params = training_params
        self.history = {}
        self.model = self._build_model()
        self._trained, self._averages = self.model, {}
        self._check_threshold()

    def _build_model(self):
        return BinaryModel(
            self.in_dim,
            self.out_dim,
            dataclasses.asdict(self.network_params),
            dataclasses.asdict(self.training_params),
        )

    def _check_threshold(self):
        for layer in self.layers:
            ternary = isinstance(layer.kernel_quantizer, graph_ops.Ternary)
            if ternary and not np.any(layer.quantized_kernel()):
                largest = np.abs(layer.latent_kernel.numpy()).max()
                raise ValueError(
                    f"the threshold leaves layer {layer.name} without a single non-zero weight "
                    f"(its largest latent weight is {largest:.4f}): choose a smaller one"
                )

    @property
    def layers(self) -> list[graph_ops.QuantConv2D | graph_ops.QuantDense]:
        """All layers with a kernel, `QuantConv2D` and `QuantDense`, from input to output."""
        return [layer for layer in self.model.layers if hasattr(layer, "latent_kernel")]

    @property
    def norms(self) -> list[graph_ops.ShiftBatchNormalization]:
        """The batch norms, from input to output."""
        kind = graph_ops.ShiftBatchNormalization
        return [layer for layer in self.model.layers if isinstance(layer, kind)]

    def model_for(self, x: np.ndarray) -> keras.Model:
        """The Keras model that takes images of the type of `x`, uint8 or float32.

        Both have the same layers. A functional model casts its input to one type, and pixels mean
        something else than floats.
        """
        return self.model if np.asarray(x).dtype == np.uint8 else walk.taking_floats(self.model)

    @property
    def weight_count(self) -> int:
        """Number of latent weights."""
        return sum(math.prod(layer.latent_kernel.shape) for layer in self.layers)

    # Training

    def fit(
        self,
        x_train: np.ndarray,
        y_train: np.ndarray,
        x_valid: np.ndarray | None = None,
        y_valid: np.ndarray | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        state: str | os.PathLike | None = None,
        strategy: tf.distribute.Strategy | None = None,
        epochs: int | None = None,
        verbose: str | int = "auto",
    ) -> Self:
        """Train for `training_params.epochs` epochs, as `training.fit` does.

        Parameters
        ----------
        x_train, x_valid : ndarray, shape (n, height, width, channels)
            uint8, or float32 taken as it is.
        y_train, y_valid : ndarray of integers, shape (n,)
            Or one-hot, shape (n, classes).
        callbacks, state, strategy, verbose
            See `training.fit`.
        epochs : int, optional
            In place of those of `training_params`.

        Returns
        -------
        BinaryNeuralNetwork
            Itself.

        Raises
        ------
        ValueError
            If images or labels do not fit the network, `state` is of another training, the
            loss stops being finite, or the batch does not divide by the devices.
        ConnectionError
            If a worker stops answering.
        """
        params = self.training_params
        if epochs is not None:
            params = dataclasses.replace(params, epochs=epochs)
        require(
            params.augment != "crop-flip" or min(self.in_dim[:2]) > LARGEST_SHIFT,
            f"images of {self.in_dim[0]} × {self.in_dim[1]} are too small to be shifted: "
            "take augment flip or none",
        )
        x_train, y_train = self._labelled(x_train, y_train)
        valid = None
        if x_valid is not None or y_valid is not None:
            valid = self._labelled(x_valid, y_valid)
        self._choose_basis(x_train)
        self._trained = model = self.model_for(x_train)
        teacher = None if params.teacher is None else self._teacher(params.teacher)
        self.history = training.fit(
            model,
            x_train,
            y_train,
            params,
            valid,
            callbacks,
            state,
            strategy,
            verbose,
            teacher and teacher.model_for(x_train),
        )
        return self

    def _teacher(self, path):
        """The network in the checkpoint at `path`, or ValueError if it cannot teach this one."""
        checkpoint.require_teacher(path, self.in_dim, self.out_dim)
        return BinaryNeuralNetwork.load(path)

    def _choose_basis(self, x):
        """Give the first layer the basis that `rotate_first` asks for, unless it has one."""
        kind = self.network_params.rotate_first
        layer = self.layers[0]
        if kind is None or not np.array_equal(layer.basis_matrix, np.eye(self._patch_length)):
            return
        if kind == "random":
            basis = geometry.random_rotation(self._patch_length, self.training_params.seed)
        else:
            covariance = self.first_patches(x).covariance
            basis = (
                geometry.principal_axes(covariance)
                if kind == "pca"
                else geometry.whitening(covariance, WHITENING_FLOOR * np.diag(covariance).mean())
            )
        layer.basis_matrix.assign(basis)

    @property
    def _patch_length(self):
        return self.network_params.filter_size**2 * self.in_dim[-1]

    def first_patches(self, x: np.ndarray) -> geometry.PatchCovariance:
        """Mean and covariance of the patches that the first layer sees in images `x`.

        Returns
        -------
        geometry.PatchCovariance
            Of all patches of the first `PATCH_IMAGES` images, pixels in [−1, 1].
        """
        statistics = geometry.PatchCovariance(self._patch_length)
        for start in range(0, min(len(x), PATCH_IMAGES), stream.INFERENCE_BATCH):
            images = scaled(x[start : start + stream.INFERENCE_BATCH])
            statistics.update(geometry.image_patches(images, self.network_params.filter_size))
        return statistics

    @property
    def gradient_averages(self) -> dict[str, np.ndarray]:
        """m, Bop's average of gradients, of each binary kernel: an array by its layer's name.

        Empty if the training kept none; see `TrainingParams.bop_gamma`.
        """
        optimizer = getattr(self._trained, "optimizer", None)
        averaging = isinstance(optimizer, AveragingAdam)
        return optimizer.averages(self.model) if averaging else self._averages

    # Inference

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Scores, computed in float32.

        Parameters
        ----------
        x : ndarray, shape (n, height, width, channels)
            uint8, which means 2x/255 − 1, or float32 taken as it is.

        Returns
        -------
        ndarray of float32, shape (n, classes)
        """
        x = self._checked(x)
        batches = batches_in_order(x, batch_size=stream.INFERENCE_BATCH)
        return self.model_for(x).predict(batches, verbose=0)

    def classify(self, x: np.ndarray) -> np.ndarray:
        """Labels with the highest score, integers of shape (n,); `x` as in `predict`."""
        return self.predict(x).argmax(axis=1)

    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        """Accuracy on images `x` with labels `y`, between 0 and 1."""
        x, y = self._labelled(x, y)
        return float(np.mean(self.classify(x) == y))

    # Experiments

    def with_weights(self, substitute: Sequence[str]) -> "BinaryNeuralNetwork":
        """A copy of the network in which some layers multiply with their latent weights.

        Parameters
        ----------
        substitute : sequence of str
            Names of layers: conv_1, …, fc_1, …, the output being the last fc.

        Returns
        -------
        BinaryNeuralNetwork
            With the same latent weights and batch-norm statistics. The statistics no longer fit,
            as latent weights are smaller than ±1: see `refit_batch_norm`.

        Raises
        ------
        ValueError
            If there is no layer of that name.
        """
        names = [layer.name for layer in self.layers]
        unknown = [name for name in substitute if name not in names]
        require(not unknown, f"there is no layer {unknown}; there are {', '.join(names)}")
        copy = self._copy()
        for layer in copy.layers:
            if layer.name in substitute:
                layer.kernel_quantizer = None
        return copy

    def _copy(self):
        params = self.network_params, self.training_params
        copy = BinaryNeuralNetwork(self.in_dim, self.out_dim, *params)
        copy.model.set_weights(self.model.get_weights())
        return copy

    def refit_batch_norm(self, x: np.ndarray) -> Self:
        """Re-estimate the statistics of every batch norm: mean and variance over all of `x`.

        Layer after layer, as each layer's statistics shape what the next one sees, in float32
        with sums in float64 and in bounded memory.

        Parameters
        ----------
        x : ndarray, shape (n, height, width, channels)
            Training images.

        Returns
        -------
        BinaryNeuralNetwork
            Itself.
        """
        stream.refit_batch_norm(self.model, self._checked(x))
        return self

    def inspect_network(self, x: np.ndarray) -> dict:
        """Weights and activations of every layer, for the images `x`.

        Parameters
        ----------
        x : ndarray, shape (n, height, width, channels)
            uint8, or float32 taken as it is. All activations are held in memory at once: about
            5 MB an image for the paper's network.

        Returns
        -------
        dict
            `conv_tensors` and `fc_tensors`, a list with a dict per layer, and `x`, the images as
            float32 in [−1, 1]. Each dict holds float32 arrays: `wc` latent and `wb` quantized
            weights (HWIO, or (inputs, units)), `pre_bin_act` after batch norm and `post_bin_act`
            after the quantizer of the next layer (NHWC, or (n, units)).

        Raises
        ------
        ValueError
            If the network is recurrent: its layers have activations at every time step.
        """
        x = self._checked(x)
        require(
            self.network_params.network not in RECURRENT,
            "a recurrent layer has no single activation: measure.measure_layers shows its products",
        )
        norms = [norm.output for norm in self.norms if not norm.name.endswith("_shortcut_norm")]
        layers = [layer for layer in self.layers if not layer.name.endswith("_shortcut")]
        outputs = keras.Model(self.model.input, norms)
        graph = walk.graph_of(outputs)
        tensors = {graph.inputs[0]: keras.ops.convert_to_tensor(x)}
        for step in graph.steps:
            step.run(tensors)
        found = []
        after = [*(layer.input_quantizer for layer in layers[1:]), None]
        for layer, quantizer, number in zip(layers, after, graph.outputs, strict=True):
            pre = tensors[number]
            parts = {
                "wc": layer.latent_kernel,
                "wb": layer.quantized_kernel(),
                "pre_bin_act": pre,
                "post_bin_act": pre if quantizer is None else quantizer(pre),
            }
            found.append({k: keras.ops.convert_to_numpy(v) for k, v in parts.items()})
        convs = len(self.network_params.conv)
        return {"conv_tensors": found[:convs], "fc_tensors": found[convs:], "x": scaled(x)}

    def _labelled(self, x, y):
        """Images and labels as arrays that fit the network, or ValueError."""
        for name, value in (("images", x), ("labels", y)):
            require(value is not None, f"there are no {name}: images and labels go together")
        x = self._checked(x)
        return x, self._checked_labels(y, len(x))

    def _checked(self, x):
        """Images as an array that fits the network, or ValueError."""
        try:
            x = np.asarray(x)
        except ValueError:
            raise ValueError("images must be an array, not lists of unequal length") from None
        if np.issubdtype(x.dtype, np.floating):
            with np.errstate(over="ignore"):  # Infinity is refused below.
                x = x.astype(np.float32, copy=False)
        require(
            x.ndim == 4 and x.shape[1:] == self.in_dim,
            f"images must have the shape (n, {', '.join(map(str, self.in_dim))}), not {x.shape}",
        )
        require(len(x) > 0, "there is not a single image")
        if np.issubdtype(x.dtype, np.integer) and x.min() >= 0 and x.max() <= 255:
            x = x.astype(np.uint8, copy=False)
        require(
            x.dtype in (np.uint8, np.float32),
            f"images must be pixels from 0 to 255 or floats, not {x.dtype}",
        )
        require(x.dtype == np.uint8 or np.isfinite(x).all(), "images hold NaN or infinity")
        return x

    def _checked_labels(self, y, count):
        y = np.asarray(y)
        one_hot = y.shape == (count, self.out_dim)
        if one_hot and np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all():
            y = y.argmax(axis=1)
        y = y[:, 0] if y.shape == (count, 1) else y
        require(
            y.shape == (count,),
            f"labels must have the shape ({count},), or be one-hot, not {y.shape}",
        )
        require(
            np.issubdtype(y.dtype, np.integer),
            f"labels must be integers, not {y.dtype}: y.astype(int) makes them so",
        )
        require(
            y.min() >= 0 and y.max() < self.out_dim,
            f"labels must lie between 0 and {self.out_dim - 1}, not {y.min()} to {y.max()}",
        )
        return y.astype(np.int32)

    # Checkpoints

    def save(self, path: str | os.PathLike, compact: bool = False) -> None:
        """Write a `.keras` file with parameters and weights, whole or not at all.

        Parameters
        ----------
        path : path-like
        compact : bool
            Round latent weights to bfloat16, which halves the compressed file. Quantized weights,
            and so all answers, stay what they are.

        Raises
        ------
        ValueError
            If `path` does not end in `.keras`, or rounding would change a quantized weight.
        """
        # A copy that was never compiled, as Keras would store the optimizer's state too.
        checkpoint.save(self._copy().model, path, compact, self.gradient_averages)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Open what `save` wrote.

        Only parameters, which are checked like any others, and arrays are read: no code from the
        file runs, and no object is built whose type the file names.

        Raises
        ------
        FileNotFoundError
            If there is no file at `path`.
        ValueError
            If it is not such a checkpoint, or is damaged.
        """
        parameters = checkpoint.saved_parameters(path)
        try:
            network = cls(*parameters)
        except ValueError as error:
            raise ValueError(f"{path} cannot be opened: {error}") from None
        network.load_weights(path)
        return network

    def load_weights(self, path: str | os.PathLike) -> None:
        """Take over the weights of the checkpoint at `path`, of the same network.

        Raises
        ------
        ValueError
            If they do not fit, or hold NaN or infinity.
        """
        checkpoint.load_weights(self.model, path)
        self._averages = checkpoint.gradient_averages(self.model, path)

    def export(self, folder: str | os.PathLike, about: dict | None = None) -> list[str]:
        """Write the network to `folder` as C, SavedModel, LiteRT, ONNX and QONNX.

        See `export.export`.
        """
        from export import export

        return export(self, folder, about)
