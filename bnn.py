"""The network of Anderson & Berg: binary or ternary convolutions, trained straight through.

`BinaryNeuralNetwork()` with its defaults is the paper's CIFAR-10 network (BinaryNet's, Hubara et
al. 2016): conv 3×3 128-128-P-256-256-P-512-512-P, fully connected 1024-1024-10, 14.0 million
weights.
"""

import contextlib
import dataclasses
import functools
import json
import math
import zipfile
from pathlib import Path

import geometry
import graph_ops  # Before keras: see there.
import quantizers  # noqa: F401 (registers them)
from utils import (
    NetworkParams,
    TrainingParams,
    atomic_path,
    frozen,
    is_whole,
    require,
    require_packable,
    saved_parameters,
)

# isort: split
import keras
import ml_dtypes  # NumPy's bfloat16; TensorFlow brings it.
import numpy as np

# Images in one batch wherever nothing is learned from it.
INFERENCE_BATCH = 100
# Training images on which batch norm's statistics are taken at the end of a training, and before
# each validation.
REFIT_IMAGES, VALIDATION_REFIT_IMAGES = 10_000, 1000
# Products that are summed in one go: 1 MiB of them.
REFIT_CHUNK = 2**17
# Training images that show how the first layer's patches are correlated.
PATCH_IMAGES = 2000
# Whitening takes directions with less than this share of the mean variance for noise.
WHITENING_FLOOR = 0.01


def scaled(images):
    """Images as the network sees them: uint8 means 2x/255 − 1, float32 is taken as it is."""
    return (2 * images.astype(np.float32) - 255) / 255 if images.dtype == np.uint8 else images


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
        if self.network_params.rotate_first:
            whiten = self.network_params.rotate_first == "zca"
            options[0]["basis"] = "whitening" if whiten else "rotation"
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
        quantizer = params.quantizer or ("binary" if params.levels == 2 else "ternary")
        graph_ops.quantizer_named(quantizer)
        # One seed per layer, none of them shared with the shuffling.
        seeds = np.random.SeedSequence(training.seed).generate_state(params.layers)
        input_quantizer = None  # Of pixels.
        for seed, weights, acts in zip(
            seeds, params.per_layer("bin_weights"), params.per_layer("bin_acts"), strict=True
        ):
            yield {
                "weight_quantizer": quantizer if weights else "clip",
                "activation_quantizer": (
                    graph_ops.activation_quantizer_of(quantizer) if acts else "clip"
                ),
                "threshold": params.threshold if params.threshold_sigma is None else 0.0,
                "threshold_sigma": params.threshold_sigma,
                "activation_threshold": params.activation_threshold,
                "bn_momentum": training.bn_momentum,
                "dtype": training.precision,
                "kernel_initializer": keras.initializers.GlorotUniform(int(seed)),
                "input_quantizer": input_quantizer,
            }
            input_quantizer = graph_ops.activation_quantizer_of(quantizer) if acts else "clip"

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


class _StopOnDivergence(keras.callbacks.Callback):
    """End the training at the first batch after which the loss is not finite."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        require(
            np.isfinite(logs["loss"]),
            f"the loss is not finite in epoch {self.epoch + 1}: try a smaller lr_start; "
            "what was saved after earlier epochs is intact",
        )


class _RefitBeforeValidation(keras.callbacks.Callback):
    """Validate with batch-norm statistics of the weights as they are; see `fit`."""

    def __init__(self, network, x):
        super().__init__()
        self._network, self._x = network, x

    def on_test_begin(self, logs=None):
        self._network.refit_batch_norm(self._x)


def _state_of(model):
    return [*model.weights, *model.optimizer.variables]


# --- Layer after layer, over many images ------------------------------------------------------


class Activations:
    """The inputs of one layer for many images, those of −1, 0 and 1 as bits.

    Layers that differ from here on only, as substituted ones do, start from it instead of from
    the images. 10,000 images take 160 MB for the largest layer of the paper's network, twice that
    in a ternary network; activations that are not quantized stay float32, 32 times as large.

    Parameters
    ----------
    x : ndarray, shape (n, height, width, channels)
        Images, as `BinaryNeuralNetwork.predict` takes them: the inputs of the first layer.
    """

    def __init__(self, x):
        starts = range(0, len(x), INFERENCE_BATCH)
        self._stored = [x[start : start + INFERENCE_BATCH] for start in starts]

    def batches(self):
        """The inputs, a tensor of `INFERENCE_BATCH` images at a time."""
        return (keras.ops.convert_to_tensor(_unpacked(stored)) for stored in self._stored)

    def through(self, layer):
        """The inputs of the layer after `layer`."""
        following = Activations(())
        following._stored = [_packed(_output(layer, x).numpy()) for x in self.batches()]
        return following


def _shaped(layer, x):
    """`x` as `layer` takes it: fully connected layers see vectors."""
    return BinaryModel._flat(x) if isinstance(layer, graph_ops.BinaryDense) else x


def _output(layer, x):
    """`layer(x)`, counted in bits where that is possible."""
    products = layer.pooled_products(_shaped(layer, x), counted=True)
    return layer.quantized_output(layer.batch_norm(products, training=False))


# Both go image by image, which stays in the cache: three to five times as fast as whole batches.


def _packed(values):
    """`values` as one or two planes of bits, (n, bytes) each, if all are −1, 0 and 1."""
    planes = []
    for image in values:
        plus, minus = image > 0, image < 0
        if not np.array_equal(image, plus.astype(np.int8) - minus.astype(np.int8)):
            return values
        planes.append((np.packbits(plus), np.packbits(minus)))
    planes = [np.stack(plane) for plane in zip(*planes, strict=True)]
    return values.shape, planes[:1] if values.all() else planes


def _unpacked(stored):
    if isinstance(stored, np.ndarray):
        return stored
    shape, planes = stored
    values = np.empty(shape, np.float32)
    for image, *bits in zip(values.reshape(len(values), -1), *planes, strict=True):
        bits = [np.unpackbits(row, count=image.size).view(np.int8) for row in bits]
        plus, minus = bits if len(bits) == 2 else (bits[0], 1 - bits[0])
        np.subtract(plus, minus, out=image)
    return values


def _products(layer, inputs):
    """Yield what batch norm sees in `layer`: float64 arrays of a few rows, a column per unit."""
    for x in inputs.batches():
        products = layer.pooled_products(_shaped(layer, x), counted=True).numpy()
        products = products.reshape(-1, products.shape[-1])
        # What stays in the cache is summed four times as fast as a whole batch.
        for part in np.array_split(products, -(-products.size // REFIT_CHUNK)):
            yield part.astype(np.float64)


def refit_layers(layers, inputs):
    """Re-estimate batch norm's mean and variance, layer after layer, over all given images.

    Parameters
    ----------
    layers : sequence of graph_ops.QuantizedLayer
        Each is called on the output of the one before.
    inputs : Activations
        Of the first of them.
    """
    for layer in layers:
        count, mean, squares = 0, 0.0, 0.0
        for part in _products(layer, inputs):
            own = part.mean(axis=0)
            delta = own - mean
            total = count + len(part)
            squares += np.square(part - own).sum(axis=0)
            squares += delta**2 * (count * len(part) / total)
            mean += delta * (len(part) / total)
            count = total
        layer.batch_norm.moving_mean.assign(mean)
        layer.batch_norm.moving_variance.assign(squares / count)
        if layer is not layers[-1]:
            inputs = inputs.through(layer)


def layers_accuracy(layers, inputs, y):
    """Accuracy of the network that ends with `layers`, fed with `inputs` of the first of them."""
    correct, start = 0, 0
    for x in inputs.batches():
        for layer in layers:
            x = _output(layer, x)
        labels = y[start : start + len(x)]
        correct += np.count_nonzero(x.numpy().argmax(axis=1) == labels)
        start += len(x)
    return correct / len(y)


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

    def fit(
        self,
        x_train,
        y_train,
        x_valid=None,
        y_valid=None,
        callbacks=(),
        state=None,
        strategy=None,
    ):
        """Train for `training_params.epochs` epochs.

        Adam on the latent weights, gradients of the loss summed over images and classes clipped
        elementwise to [−1, 1], latent weights clipped to [−1, 1] after each step, the training
        set shuffled anew in every epoch. (Gradients of the mean loss never come near ±1.) At the
        end and, on one device, before each validation batch norm's statistics are re-estimated
        (`refit_batch_norm`): latent weights that hover about zero flip to the last step, and
        moving averages fit none of their signs.

        Parameters
        ----------
        x_train, x_valid : ndarray, shape (n, height, width, channels)
            uint8, or float32 taken as it is.
        y_train, y_valid : ndarray of integers, shape (n,)
        callbacks : sequence of keras.callbacks.Callback
        state : path-like, optional
            A `.keras` file that holds weights and optimizer after the last finished epoch. If it
            is there, training goes on from it and ends with the weights of a training that was
            never interrupted.
        strategy : tf.distribute.Strategy, optional
            Train on all its devices, as `graph_ops.training_strategy` chooses them. Each gets an
            equal share of every batch, and the result is that of one device, but for rounding.
            Callbacks and state are the first worker's alone, whose state all go on from.

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
        require(
            params.augment != "crop-flip" or min(self.in_dim[:2]) > graph_ops.LARGEST_SHIFT,
            f"images of {self.in_dim[0]} × {self.in_dim[1]} are too small to be shifted: "
            "take augment flip or none",
        )
        x_train, y_train = self._checked(x_train, y_train)
        self._choose_basis(x_train)
        valid = None
        if x_valid is not None:
            valid = graph_ops.batches_in_order(
                *self._checked(x_valid, y_valid), batch_size=INFERENCE_BATCH
            )
        batch_size = min(params.batch_size, len(x_train))
        self._compile(batch_size)
        graph_ops.on_chief(strategy, self._restore, state)
        chief = graph_ops.is_chief(strategy)
        own = (*callbacks, *self._state_callbacks(state)) if chief else ()
        with graph_ops.lost_workers_named(strategy):
            with self._on_devices_of(strategy, batch_size):
                self._train(x_train, y_train, valid, batch_size, own, strategy)
            self.refit_batch_norm(x_train[:REFIT_IMAGES])
            # Another processor, or another number of threads, sums in another order.
            for layer in self.model.quantized_layers:
                for statistic in (layer.batch_norm.moving_mean, layer.batch_norm.moving_variance):
                    statistic.assign(graph_ops.from_chief(strategy, statistic.numpy()))
        return self

    def _train(self, x, y, valid, batch_size, callbacks, strategy):
        """Keras' `fit` on batches of `x` and `y`, from the optimizer's step on."""
        params = self.training_params
        steps = len(x) // batch_size
        initial_epoch = int(self.model.optimizer.iterations.numpy()) // steps
        batches = functools.partial(
            graph_ops.training_batches,
            x,
            y,
            batch_size,
            params.seed,
            params.epochs,
            initial_epoch,
            params.augment,
        )
        history = self.model.fit(
            graph_ops.distributed(strategy, batches),
            initial_epoch=initial_epoch,
            epochs=params.epochs,
            steps_per_epoch=steps,
            shuffle=False,  # The pipeline does it.
            validation_data=valid,
            verbose="auto" if graph_ops.is_chief(strategy) else 0,
            callbacks=[
                _StopOnDivergence(),
                keras.callbacks.LearningRateScheduler(params.learning_rate),
                _RefitBeforeValidation(self, x[:VALIDATION_REFIT_IMAGES]),
                *callbacks,
            ],
        )
        self.history = history.history

    def _compile(self, batch_size):
        params = self.training_params
        # What the loss is a mean of.
        terms = batch_size * (self.out_dim if params.loss_mode == "hinge-loss" else 1)
        self.model.compile(
            graph_ops.LatentAdam(params.lr_start, clip=1 / terms),
            graph_ops.loss_named(params.loss_mode),
            metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
            jit_compile=False,  # XLA's convolutions are slower on the CPU than the framework's.
        )
        self.model.optimizer.build(self.model.trainable_variables)

    @contextlib.contextmanager
    def _on_devices_of(self, strategy, batch_size):
        """Let `model` be a copy on all devices, with the chief's weights and optimizer, meanwhile.

        What a distributed model computes, all workers must ask for, so it stays in here.
        """
        if strategy is None:
            yield
            return
        graph_ops.require_shares(batch_size, strategy.num_replicas_in_sync)
        own = self.model
        try:
            with strategy.scope():
                self.model = self._build_model()
                self._compile(batch_size)
            for one, all_ in zip(_state_of(own), _state_of(self.model), strict=True):
                all_.assign(graph_ops.from_chief(strategy, one.numpy()))
            yield
            own.set_weights(self.model.get_weights())
        finally:
            self.model = own

    def _choose_basis(self, x):
        """Give the first layer the basis that `rotate_first` asks for, unless it has one."""
        kind = self.network_params.rotate_first
        layer = self.model.quantized_layers[0]
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

    def first_patches(self, x):
        """Mean and covariance of the patches that the first layer sees in images `x`.

        Returns
        -------
        geometry.PatchCovariance
            Of all patches of the first `PATCH_IMAGES` images, pixels in [−1, 1].
        """
        statistics = geometry.PatchCovariance(self._patch_length)
        for start in range(0, min(len(x), PATCH_IMAGES), INFERENCE_BATCH):
            images = scaled(x[start : start + INFERENCE_BATCH])
            statistics.update(geometry.image_patches(images, self.network_params.filter_size))
        return statistics

    def _restore(self, state):
        """Continue from `state`, if it is there."""
        if state is None or not Path(state).exists():
            return
        own = (self.in_dim, self.out_dim, self.network_params, self.training_params)
        in_dim, *others = saved_parameters(state)
        require(
            (frozen(in_dim), *others) == own,
            f"{state} was left by a training with other parameters: repeat its command, "
            "or start afresh in another folder",
        )
        self.load_weights(state)

    def _state_callbacks(self, state):
        def save(epoch, logs):
            with atomic_path(state) as temporary:
                self.model.save(temporary)

        return [] if state is None else [keras.callbacks.LambdaCallback(on_epoch_end=save)]

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
        batches = graph_ops.batches_in_order(self._checked(x), batch_size=INFERENCE_BATCH)
        return self.model.predict(batches, verbose=0)

    def classify(self, x):
        """Labels with the highest score, integers of shape (n,); `x` as in `predict`."""
        return self.predict(x).argmax(axis=1)

    def score(self, x, y):
        """Accuracy on images `x` with labels `y`, between 0 and 1."""
        x, y = self._checked(x, y)
        return float(np.mean(self.classify(x) == y))

    # Experiments

    def with_weights(self, substitute):
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
        names = [layer.name for layer in self.model.quantized_layers]
        unknown = [name for name in substitute if name not in names]
        require(not unknown, f"there is no layer {unknown}; there are {', '.join(names)}")
        quantized = zip(names, self.network_params.per_layer("bin_weights"), strict=True)
        kept = tuple(bin_weights and name not in substitute for name, bin_weights in quantized)
        params = dataclasses.replace(self.network_params, bin_weights=kept)
        copy = BinaryNeuralNetwork(self.in_dim, self.out_dim, params, self.training_params)
        copy.model.set_weights(self.model.get_weights())
        return copy

    def refit_batch_norm(self, x):
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
        refit_layers(self.model.quantized_layers, Activations(self._checked(x)))
        return self

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
        return {"conv_tensors": tensors[:convs], "fc_tensors": tensors[convs:], "x": scaled(x)}

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

    def save(self, path, compact=False):
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
        require(Path(path).suffix == ".keras", f"a checkpoint ends in .keras, not {path}")
        # A copy that was never compiled, as Keras would store the optimizer's state too.
        copy = self._build_model()
        copy.set_weights(self.model.get_weights())
        if compact:
            for layer in copy.quantized_layers:
                _round_latent_weights(layer)
        with atomic_path(path) as temporary:
            copy.save(temporary)
            if compact:
                _compress(temporary)

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
        network.load_weights(path)
        return network

    def load_weights(self, path):
        """Take over the weights of the checkpoint at `path`, of the same network.

        Raises
        ------
        ValueError
            If they do not fit, or hold NaN or infinity.
        """
        try:
            self.model.load_weights(path)
        # As in `saved_parameters`: HDF5 has its own dozen kinds of errors.
        except Exception as error:
            raise ValueError(f"the weights in {path} do not fit its parameters: {error}") from None
        require(
            all(np.isfinite(w).all() for w in self.model.get_weights()),
            f"the weights in {path} hold NaN or infinity",
        )


def _round_latent_weights(layer):
    """Round the latent weights of `layer` to bfloat16, up or down so that none is requantized."""
    exact, wb = layer.latent_kernel.numpy(), layer.quantized_kernel().numpy()
    nearest = exact.astype(ml_dtypes.bfloat16)
    layer.latent_kernel.assign(nearest.astype(np.float32))
    if layer.weight_quantizer == "clip":
        return
    beyond = np.where(exact > nearest, np.inf, -np.inf).astype(ml_dtypes.bfloat16)
    other = np.nextafter(nearest, beyond).astype(np.float32)
    changed = layer.quantized_kernel().numpy() != wb
    layer.latent_kernel.assign(np.where(changed, other, layer.latent_kernel.numpy()))
    require(
        np.array_equal(layer.quantized_kernel().numpy(), wb),
        f"rounded weights would be quantized otherwise in layer {layer.name}: save without compact",
    )


def _compress(path):
    """Deflate the members of the archive at `path`."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


# --- Packed network ---------------------------------------------------------------------------

# Of a packed file. Raised whenever its contents change their meaning.
PACKED_FORMAT = 1
# No product reaches these: units whose output is constant.
NEVER, ALWAYS = np.iinfo(np.int32).max, np.iinfo(np.int32).min
_NORM = ("moving_mean", "moving_variance", "beta")


class PackedNetwork:
    """A trained binary or ternary network on bits: the same answers, from XNOR and popcount.

    Batch norm and quantizer of a unit become one integer threshold (ternary: two) on its dot
    products. Activations between layers never leave bits, the first layer convolves 8-bit pixels
    as integers, and the output's batch norm is the float network's own function: hidden bits and
    scores are those of `BinaryNeuralNetwork.predict` on the same uint8 images, bit for bit.

    `from_network` and `load` make one.
    """

    def __init__(self, in_dim, out_dim, network_params, arrays):
        self.in_dim, self.out_dim, self.network_params = tuple(in_dim), out_dim, network_params
        self._arrays = arrays
        self._layers = [
            self._prepared(i, shape)
            for i, shape in enumerate(network_params.layer_shapes(in_dim, out_dim))
        ]
        self._norm = [keras.ops.convert_to_tensor(arrays[name]) for name in _NORM]
        self._forward = graph_ops.compiled(self._integer_scores)

    @property
    def _ternary(self):
        return self.network_params.levels == 3

    # Packing

    @classmethod
    def from_network(cls, network):
        """Pack a trained network.

        Parameters
        ----------
        network : BinaryNeuralNetwork

        Raises
        ------
        ValueError
            If it cannot be packed; the message tells the reason.
        """
        params = network.network_params
        require_packable(params)
        arrays = {}
        layers = network.model.quantized_layers
        for i, layer in enumerate(layers):
            wb = keras.ops.convert_to_numpy(layer.quantized_kernel())
            arrays[f"sign_{i}"] = np.packbits(wb > 0)
            if params.levels == 3:
                arrays[f"nonzero_{i}"] = np.packbits(wb != 0)
            if layer is not layers[-1]:
                largest = int(np.prod(wb.shape[:-1])) * (255 if i == 0 else 1)
                lower, upper = _thresholds(layer, largest, "uint8" if i == 0 else "float32")
                arrays[f"upper_{i}"] = upper
                if params.levels == 3:
                    arrays[f"lower_{i}"] = lower
        norm = layers[-1].batch_norm
        for name in _NORM:
            arrays[name] = getattr(norm, name).numpy()
        return cls(network.in_dim, network.out_dim, params, arrays)

    def _kernel_shape(self, index, shape):
        """(height, width, channels, units) of a layer; of a fully connected one 1 × 1."""
        fan_in, units = shape
        size = self.network_params.filter_size if index < len(self.network_params.conv) else 1
        return size, size, fan_in // size**2, units

    def _prepared(self, index, shape):
        """One layer's weights as the integer arithmetic takes them, and its thresholds."""
        arrays, kernel_shape = self._arrays, self._kernel_shape(index, shape)

        def plane(name):
            bits = np.unpackbits(arrays[f"{name}_{index}"], count=math.prod(kernel_shape))
            return bits.reshape(kernel_shape)

        planes = [plane(name) for name in (["nonzero", "sign"] if self._ternary else ["sign"])]
        if index == 0:
            kernel = 2.0 * planes[-1] - 1
            kernel = kernel * planes[0] if self._ternary else kernel
            weights = [keras.ops.convert_to_tensor(kernel.astype(np.float32))]
        else:
            weights = [self._packed_plane(bits, index) for bits in planes]
        names = ["lower", "upper"] if self._ternary else ["upper"]
        limits = [arrays[f"{name}_{index}"] for name in names if f"{name}_{index}" in arrays]
        return weights, [keras.ops.convert_to_tensor(limit) for limit in limits]

    def _packed_plane(self, bits, index):
        """One plane of a kernel, packed as the activations that it meets are packed."""
        units = bits.shape[-1]
        if index == len(self.network_params.conv):
            # The words of an image's positions side by side, each position padded to whole words.
            bits = bits.reshape(-1, self._flat_channels, units)
            words = graph_ops.pack_bits(np.moveaxis(bits, 2, 0).astype(np.int8) - 1)
            words = keras.ops.reshape(words, (1, 1, units, -1))
        else:
            words = graph_ops.pack_bits(np.swapaxes(bits, 2, 3).astype(np.int8) - 1)
        return graph_ops.arrange_kernel(words)

    @property
    def _flat_channels(self):
        """Channels of the images that the first fully connected layer flattens."""
        return (self.network_params.conv or self.in_dim[-1:])[-1]

    # Inference

    def predict(self, x):
        """Scores, equal to those of the float32 network.

        Parameters
        ----------
        x : ndarray, shape (n, height, width, channels)
            uint8, or float32 that is 2u/255 − 1 for whole numbers u.

        Returns
        -------
        ndarray of float32, shape (n, classes)

        Raises
        ------
        ValueError
            If the images do not have this shape, type or grid.
        """
        x = self._as_pixels(np.asarray(x))
        batch = min(len(x), INFERENCE_BATCH)
        scores = []
        for start in range(0, len(x), batch):
            images = x[start : start + batch]
            # Always full: XLA compiles once for each size that it meets.
            full = np.pad(images, ((0, batch - len(images)), (0, 0), (0, 0), (0, 0)))
            scores.append(self._scores(full)[: len(images)])
        return np.concatenate(scores)

    def classify(self, x):
        """Labels with the highest score, integers of shape (n,); `x` as in `predict`."""
        return self.predict(x).argmax(axis=1)

    def _scores(self, images):
        images = keras.ops.convert_to_tensor(images)
        products = self._forward(images, self._layers)
        if len(self._layers) == 1:
            products = graph_ops.QuantizedLayer.rescale(products, images.dtype)
        return keras.ops.convert_to_numpy(graph_ops.shift_batch_norm(products, *self._norm))

    def _integer_scores(self, images, layers):
        """Dot products of the output layer, float32 whole numbers."""
        *_, products = self._steps(images, layers)
        return keras.ops.cast(products, "float32")

    def _steps(self, x, layers):
        """Yield each layer's output: packed bits, and at the end integer products."""
        params = self.network_params
        shapes = params.layer_shapes(self.in_dim, self.out_dim)
        for i, (weights, limits) in enumerate(layers):
            convolutional = i < len(params.conv)
            if i == len(params.conv):
                x = self._flat(x, i)
            x = self._products(i, x, weights, shapes[i])
            if i < len(layers) - 1:
                x = self._quantized(x, limits)
            if convolutional and params.max_pool[i]:
                x = graph_ops.max_pool_ternary(x) if self._ternary else graph_ops.max_pool_bits(x)
            if i == len(layers) - 1:
                x = x[:, 0, 0]
            yield x

    def _flat(self, x, index):
        def flatten(part):
            return keras.ops.reshape(part, (part.shape[0], 1, 1, math.prod(part.shape[1:])))

        return tuple(map(flatten, x)) if self._ternary and index else flatten(x)

    def _products(self, index, x, weights, shape):
        _, _, channels, units = self._kernel_shape(index, shape)
        if index == 0 and self.network_params.conv:
            return graph_ops.pixel_conv2d(x, weights[0])
        if index == 0:
            return graph_ops.pixel_matmul(x[:, 0, 0], weights[0][0, 0])[:, None, None]
        if self._ternary:
            return graph_ops.ternary_conv2d(x, weights, units)
        return graph_ops.xnor_conv2d(x, weights[0], channels, units)

    def _quantized(self, products, limits):
        if self._ternary:
            return graph_ops.threshold_ternary(products, *limits)
        return graph_ops.threshold_bits(products, *limits)

    def hidden_bits(self, x):
        """Packed activations of every layer but the output, for tests and for the curious.

        Returns
        -------
        list of ndarray of uint64, shape (n, height, width, words)
            Or pairs of them, the planes (nonzero, sign), of a ternary network.
        """
        images = keras.ops.convert_to_tensor(self._as_pixels(np.asarray(x)))
        steps = graph_ops.compiled(lambda images, layers: [*self._steps(images, layers)][:-1])
        return [
            tuple(map(keras.ops.convert_to_numpy, bits))
            if self._ternary
            else keras.ops.convert_to_numpy(bits)
            for bits in steps(images, self._layers)
        ]

    def _as_pixels(self, x):
        require(
            x.ndim == 4 and x.shape[1:] == self.in_dim and len(x),
            f"images must have the shape (n, {', '.join(map(str, self.in_dim))}), not {x.shape}",
        )
        if x.dtype == np.uint8:
            return x
        require(x.dtype == np.float32, f"images must be uint8 or float32, not {x.dtype}")
        with np.errstate(invalid="ignore"):
            pixels = np.rint((x + 1) * 127.5).clip(0, 255).astype(np.uint8)
        on_grid = np.abs(pixels.astype(np.float32) / 127.5 - 1 - x) < 1e-6
        require(on_grid.all(), "float32 images must hold 2u/255 − 1 for whole numbers u")
        return pixels

    # Files

    def save(self, path):
        """Write the network to `path`, whole or not at all."""
        header = {
            "format": PACKED_FORMAT,
            "in_dim": self.in_dim,
            "out_dim": self.out_dim,
            "network_params": dataclasses.asdict(self.network_params),
        }
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            header = np.frombuffer(json.dumps(header).encode(), np.uint8)
            np.savez(file, header=header, **self._arrays)

    @classmethod
    def load(cls, path):
        """Open what `save` wrote. Only arrays of numbers are read; nothing is unpickled.

        Raises
        ------
        FileNotFoundError
            If there is no file at `path`.
        ValueError
            If it is not such a file, or is damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no packed network {path}")
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
                require(damaged is None, f"the check sum of {damaged} is wrong")
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            header = json.loads(arrays.pop("header").tobytes())
            require(header["format"] == PACKED_FORMAT, "it has another format")
            params = NetworkParams(**header["network_params"])
            require_packable(params)
            in_dim, out_dim = header["in_dim"], header["out_dim"]
            _require_arrays(arrays, params, params.layer_shapes(in_dim, out_dim))
            return cls(in_dim, out_dim, params, arrays)
        # Whatever goes wrong while a damaged file is taken apart means the same to the reader.
        except Exception as error:
            raise ValueError(f"{path} is damaged or no packed network: {error}") from None


def _require_arrays(arrays, params, shapes):
    """Raise ValueError unless `arrays` are what a network of these shapes packs into."""
    expected = dict.fromkeys(_NORM, (np.float32, (shapes[-1][1],)))
    ternary = params.levels == 3
    for i, (fan_in, units) in enumerate(shapes):
        for name in ("sign", "nonzero") if ternary else ("sign",):
            expected[f"{name}_{i}"] = (np.uint8, (-(-fan_in * units // 8),))
        for name in ("upper", "lower") if ternary else ("upper",):
            if i < len(shapes) - 1:
                expected[f"{name}_{i}"] = (np.int32, (units,))
    found = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    require(found == expected, "its arrays do not fit its parameters")


def _thresholds(layer, largest, input_dtype, rows=512):
    """Products at which each unit's output rises, found by asking the float graph itself.

    Parameters
    ----------
    layer : graph_ops.QuantizedLayer
    largest : int
        No product exceeds it in magnitude.
    input_dtype : str
        Of the layer's input.
    rows : int
        Products looked at in one go, which bounds the memory.

    Returns
    -------
    lower, upper : ndarray of int32, shape (units,)
        A unit's output is −1 up to `lower` (ternary; meaningless for binary) and +1 from `upper`.
    """
    negative, below_positive = 0, 0
    for start in range(-largest, largest + 1, rows):
        products = np.arange(start, min(start + rows, largest + 1), dtype=np.float32)
        products = np.repeat(products[:, None], layer.units, axis=1)
        if len(layer.latent_kernel.shape) == 4:
            products = products[:, None, None]
        scaled = layer.rescale(keras.ops.convert_to_tensor(products), input_dtype)
        out = keras.ops.convert_to_numpy(layer.quantized_output(layer.batch_norm(scaled)))
        out = out.reshape(-1, layer.units)
        negative += np.sum(out < 0, axis=0)
        below_positive += np.sum(out <= 0, axis=0)
    # Batch norm and quantizer only rise, so counts are places.
    total = 2 * largest + 1
    lower = np.where(
        negative == 0, ALWAYS, np.where(negative == total, NEVER, negative - largest - 1)
    )
    upper = np.where(below_positive == 0, ALWAYS, below_positive - largest)
    upper = np.where(below_positive == total, NEVER, upper)
    return lower.astype(np.int32), upper.astype(np.int32)
