"""The network of Anderson & Berg: binary or ternary convolutions, trained straight through.

`BinaryNeuralNetwork()` with its defaults is the paper's CIFAR-10 network (BinaryNet's, Hubara et
al. 2016): conv 3×3 128-128-P-256-256-P-512-512-P, fully connected 1024-1024-10, 14.0 million
weights.
"""

import dataclasses
import math
from pathlib import Path

import graph_ops  # First: see there.
from utils import (
    NetworkParams,
    TrainingParams,
    atomic_path,
    frozen,
    is_whole,
    require,
    saved_parameters,
)

# isort: split
import keras
import numpy as np

# Images in one batch wherever nothing is learned from it.
INFERENCE_BATCH = 100


# --- The Keras model --------------------------------------------------------------------------


@graph_ops.register
class BinaryModel(keras.Model):
    """The layers of a `BinaryNeuralNetwork`, as Keras trains and saves them.

    Called on uint8 images, which mean 2x/255 − 1, or on float32 images, taken as they are; hence
    no functional model, which would cast all input to one dtype.
    """

    def __init__(self, in_dim, out_dim, network_params, training_params, **kwargs):
        super().__init__(**kwargs)
        self.in_dim = tuple(in_dim)
        self.out_dim = out_dim
        self.network_params = NetworkParams(**network_params)
        self.training_params = TrainingParams(**training_params)
        options = list(self._layer_options())
        options[-1]["activation_quantizer"] = None
        convs = len(self.network_params.conv)
        self.conv_layers = [
            graph_ops.BinaryConv2D(
                filters, self.network_params.filter_size, pool, name=f"conv_{i + 1}", **options[i]
            )
            for i, (filters, pool) in enumerate(
                zip(self.network_params.conv, self.network_params.max_pool, strict=True)
            )
        ]
        self.fc_layers = [
            graph_ops.BinaryDense(units, name=f"fc_{i + 1}", **options[convs + i])
            for i, units in enumerate((*self.network_params.fc, out_dim))
        ]

    def _layer_options(self):
        params, training = self.network_params, self.training_params
        quantizer = "binary" if params.levels == 2 else "ternary"
        # One seed per layer, none of them shared with the shuffling.
        seeds = np.random.SeedSequence(training.seed).generate_state(params.layers)
        for seed, weights, acts in zip(
            seeds, params.per_layer("bin_weights"), params.per_layer("bin_acts"), strict=True
        ):
            yield {
                "weight_quantizer": quantizer if weights else "clip",
                "activation_quantizer": quantizer if acts else "clip",
                "threshold": params.threshold if params.threshold_sigma is None else 0.0,
                "threshold_sigma": params.threshold_sigma,
                "bn_momentum": training.bn_momentum,
                "kernel_initializer": keras.initializers.GlorotUniform(int(seed)),
            }

    @property
    def quantized_layers(self):
        """All layers with weights, from input to output."""
        return [*self.conv_layers, *self.fc_layers]

    def build(self, input_shape=None):
        shape = (None, *self.in_dim)
        for layer in self.conv_layers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        shape = (None, math.prod(shape[1:]))
        for layer in self.fc_layers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        self.built = True

    def layer_inputs(self, x):
        """Run the network layer by layer, at inference.

        Yields
        ------
        layer : graph_ops.QuantizedLayer
        inputs : tensor
            What it is called on, A^b.
        unquantized : tensor
            The same before the quantizer, A^c; the images themselves in the first layer.
        """
        unquantized = x
        for layer in self.quantized_layers:
            if layer is self.fc_layers[0]:
                x, unquantized = self._flat(x), self._flat(unquantized)
            yield layer, x, unquantized
            unquantized = layer.pre_activation(x)
            x = layer.quantized_output(unquantized)

    def call(self, x, training=False):
        for layer in self.conv_layers:
            x = layer(x, training=training)
        x = self._flat(x)
        for layer in self.fc_layers:
            x = layer(x, training=training)
        return x

    @staticmethod
    def _flat(x):
        return keras.ops.reshape(x, (-1, math.prod(x.shape[1:])))

    def get_config(self):
        return {
            "in_dim": list(self.in_dim),
            "out_dim": self.out_dim,
            "network_params": dataclasses.asdict(self.network_params),
            "training_params": dataclasses.asdict(self.training_params),
        }


# --- The network ------------------------------------------------------------------------------


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
        The Keras model that does the work.
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
        in_dim,
        out_dim,
        network_params=NetworkParams(),
        training_params=TrainingParams(),
    ):
        in_dim = frozen(in_dim)
        require(
            isinstance(in_dim, tuple)
            and len(in_dim) == 3
            and all(is_whole(n) and n > 0 for n in in_dim),
            f"in_dim must be (height, width, channels), all positive, not {in_dim!r}",
        )
        require(is_whole(out_dim) and out_dim >= 2, f"out_dim must be at least 2, not {out_dim!r}")
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.network_params = network_params
        self.training_params = training_params
        self.history = {}
        self.model = self._build_model()
        self._check_threshold()

    def _build_model(self):
        model = BinaryModel(
            self.in_dim,
            self.out_dim,
            dataclasses.asdict(self.network_params),
            dataclasses.asdict(self.training_params),
        )
        model.build()
        return model

    def _check_threshold(self):
        for layer in self.model.quantized_layers:
            if layer.weight_quantizer == "ternary" and not np.any(layer.quantized_kernel()):
                largest = np.abs(layer.latent_kernel.numpy()).max()
                raise ValueError(
                    f"the threshold leaves layer {layer.name} without a single non-zero weight "
                    f"(its largest latent weight is {largest:.4f}): choose a smaller one"
                )

    @property
    def weight_count(self):
        """Number of latent weights."""
        return sum(math.prod(layer.latent_kernel.shape) for layer in self.model.quantized_layers)

    # Training

    def fit(self, x_train, y_train, x_valid=None, y_valid=None, callbacks=()):
        """Train for `training_params.epochs` epochs.

        Adam on the latent weights, gradients clipped elementwise to [−1, 1], latent weights
        clipped to [−1, 1] after each step, the training set shuffled anew in every epoch.

        Parameters
        ----------
        x_train, x_valid : ndarray, shape (n, height, width, channels)
            uint8, or float32 taken as it is.
        y_train, y_valid : ndarray of integers, shape (n,)
        callbacks : sequence of keras.callbacks.Callback

        Returns
        -------
        BinaryNeuralNetwork
            Itself.

        Raises
        ------
        ValueError
            If images or labels do not fit the network.
        """
        params = self.training_params
        x_train, y_train = self._checked(x_train, y_train)
        valid = None if x_valid is None else self._checked(x_valid, y_valid)
        self.model.compile(
            keras.optimizers.Adam(params.lr_start, clipvalue=1.0),
            graph_ops.loss_named(params.loss_mode),
            metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
            jit_compile=False,  # XLA's convolutions are slower on the CPU than the framework's.
        )
        batch_size = min(params.batch_size, len(x_train))
        history = self.model.fit(
            graph_ops.training_batches(x_train, y_train, batch_size, params.seed, params.epochs),
            epochs=params.epochs,
            steps_per_epoch=len(x_train) // batch_size,
            shuffle=False,  # The pipeline does it.
            validation_data=valid,
            validation_batch_size=INFERENCE_BATCH,
            callbacks=[keras.callbacks.LearningRateScheduler(params.learning_rate), *callbacks],
        )
        self.history = history.history
        return self

    # Inference

    def predict(self, x):
        """Scores, computed in float32.

        Parameters
        ----------
        x : ndarray, shape (n, height, width, channels)
            uint8, which means 2x/255 − 1, or float32 taken as it is.

        Returns
        -------
        ndarray of float32, shape (n, classes)
        """
        return self.model.predict(self._checked(x), batch_size=INFERENCE_BATCH, verbose=0)

    def classify(self, x):
        """Labels with the highest score, integers of shape (n,); `x` as in `predict`."""
        return self.predict(x).argmax(axis=1)

    def score(self, x, y):
        """Accuracy on images `x` with labels `y`, between 0 and 1."""
        x, y = self._checked(x, y)
        return float(np.mean(self.classify(x) == y))

    def inspect_network(self, x):
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
            after the quantizer (NHWC, or (n, units)).
        """
        x = self._checked(x)
        tensors = []
        for layer, inputs, _ in self.model.layer_inputs(keras.ops.convert_to_tensor(x)):
            pre = layer.pre_activation(inputs)
            parts = {
                "wc": layer.latent_kernel,
                "wb": layer.quantized_kernel(),
                "pre_bin_act": pre,
                "post_bin_act": layer.quantized_output(pre),
            }
            tensors.append({k: keras.ops.convert_to_numpy(v) for k, v in parts.items()})
        convs = len(self.network_params.conv)
        scaled = x if x.dtype == np.float32 else (2 * x.astype(np.float32) - 255) / 255
        return {"conv_tensors": tensors[:convs], "fc_tensors": tensors[convs:], "x": scaled}

    def _checked(self, x, y=None):
        """Images, or images and labels, as arrays that fit the network, or ValueError."""
        x = np.asarray(x)
        require(
            x.ndim == 4 and x.shape[1:] == self.in_dim,
            f"images must have the shape (n, {', '.join(map(str, self.in_dim))}), not {x.shape}",
        )
        require(len(x) > 0, "there is not a single image")
        require(
            x.dtype in (np.uint8, np.float32), f"images must be uint8 or float32, not {x.dtype}"
        )
        require(x.dtype == np.uint8 or np.isfinite(x).all(), "images hold NaN or infinity")
        return x if y is None else (x, self._checked_labels(y, len(x)))

    def _checked_labels(self, y, count):
        y = np.asarray(y)
        require(y.shape == (count,), f"labels must have the shape ({count},), not {y.shape}")
        require(np.issubdtype(y.dtype, np.integer), f"labels must be integers, not {y.dtype}")
        require(
            y.min() >= 0 and y.max() < self.out_dim,
            f"labels must lie between 0 and {self.out_dim - 1}, not {y.min()} to {y.max()}",
        )
        return y.astype(np.int32)

    # Checkpoints

    def save(self, path):
        """Write a `.keras` file with parameters and weights, whole or not at all.

        Raises
        ------
        ValueError
            If `path` does not end in `.keras`.
        """
        require(Path(path).suffix == ".keras", f"a checkpoint ends in .keras, not {path}")
        # A copy that was never compiled, as Keras would store the optimizer's state too.
        copy = self._build_model()
        copy.set_weights(self.model.get_weights())
        with atomic_path(path) as temporary:
            copy.save(temporary)

    @classmethod
    def load(cls, path):
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
        network = cls(*saved_parameters(path))
        try:
            network.model.load_weights(path)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"the weights in {path} do not fit its parameters: {error}") from None
        return network
