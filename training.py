"""Train a Keras classifier: schedule, divergence, resume, batch norm's final statistics.

`fit` trains any Keras model that ends in a score per class; `bnn.BinaryNeuralNetwork.fit` calls it.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence

import adversarial
import checkpoint
import stream
import walk
from distribute import devices
from fast.batches import batches_in_order, training_batches
from graph_ops import Block, QuantConv2D, QuantDense, Sign
from optimizers import AveragingAdam, Bop, FreezingAdam, LatentAdam
from utils import TrainingParams, radius_of, require

# isort: split
import keras
import numpy as np
import tensorflow as tf

# Steps of an attack in training, and the share of the epochs over which attacks grow to their full
# strength.
ATTACK_STEPS, GROWING = 10, 0.5
# Training images on which batch norm's statistics are taken at the end of a training, and before
# each validation.
REFIT_IMAGES, VALIDATION_REFIT_IMAGES = 10_000, 1000


# --- Loss -------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("bnn")
def squared_hinge(labels: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    """Mean over classes of max(0, 1 − t·s)², t = +1 at the label's class and −1 elsewhere.

    Parameters
    ----------
    labels : tensor of integers, shape (n,) or (n, 1)
    scores : tensor, shape (n, classes)

    Returns
    -------
    tensor, shape (n,)
    """
    labels = keras.ops.reshape(labels, [-1])
    targets = 2 * keras.ops.one_hot(labels, scores.shape[-1], dtype=scores.dtype) - 1
    return keras.losses.squared_hinge(targets, scores)


def loss_named(loss_mode: str) -> keras.losses.Loss | Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """`squared_hinge` for 'hinge-loss', cross-entropy on logits for 'softmax'."""
    if loss_mode == "softmax":
        # From logits: log(softmax(s)) underflows to −inf where one score is far ahead.
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return squared_hinge


class _Distiller(keras.distillation.Distiller):
    """Keras' own, with the penalties on the student's weights, which it leaves out."""

    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs) + sum(self.student.losses)


def _taught(model, teacher, params):
    """A compiled `_Distiller` of the compiled `model`, which shares its optimizer.

    Its loss is T² times the Kullback–Leibler divergence of softmax(t/T) and softmax(s/T), whose
    gradient is that of their cross-entropy; with labels the mean of it and of their loss.
    """
    # Given by name, Keras 3.15.1 would apply the divergence to the scores without softmax.
    divergence = keras.losses.KLDivergence()
    scores = keras.distillation.LogitsDistillation(params.temperature, divergence)
    weight = 0.5 if params.with_labels else 0.0
    distiller = _Distiller(teacher, model, scores, student_loss_weight=weight)
    distiller.compile(
        model.optimizer, loss_named(params.loss_mode), metrics=[_accuracy()], jit_compile=False
    )
    return distiller


def _student(model):
    """The network itself, where a `_Distiller` trains it."""
    return getattr(model, "student", model)


# At a distance of 1 the penalty's gradient is then about as large as the loss's own, in each layer
# of the paper's network at half width. With a larger weight the kurtosis only oscillates.
KURTOSIS_WEIGHT = 0.01


@keras.saving.register_keras_serializable("bnn")
class Kurtosis(keras.regularizers.Regularizer):
    """Penalty on each unit's kurtosis κ = E w⁴/(E w²)², whose last axis are the units.

    `KURTOSIS_WEIGHT` times the mean over units of (κ − target)².

    Parameters
    ----------
    target : float

    References
    ----------
    T. Rozen et al., "Bimodal-Distributed Binarized Neural Networks" (arXiv 2204.02004), on the
    kurtosis of whole layers.
    """

    def __init__(self, target: float):
        self.target = target

    def __call__(self, w):
        square = keras.ops.square(w)
        axes = list(range(len(w.shape) - 1))
        second = keras.ops.mean(square, axes)
        # A unit of zeros has no shape: its penalty is a constant.
        kurtosis = keras.ops.mean(square**2, axes) / keras.ops.maximum(second**2, 1e-20)
        return KURTOSIS_WEIGHT * keras.ops.mean((kurtosis - self.target) ** 2)

    def get_config(self) -> dict:
        return {"target": self.target}


# --- Callbacks --------------------------------------------------------------------------------


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


class _StopWithoutSignal(keras.callbacks.Callback):
    """End the training after its first batch if all scores have been equal.

    So it is where a threshold makes all activations of a layer zero: nothing could be learned.
    """

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations > 1:
            return
        norms = [
            layer
            for layer in self.model._flatten_layers(include_self=False)
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        silent = list(map(self._saw_equal_products, norms))
        # One in the middle may well be: of what a recurrent layer makes of a row without ink.
        if silent and silent[-1]:
            raise ValueError(
                f"all products before {norms[silent.index(True)].name} are equal: the activations "
                "that it follows are zero, so choose a smaller activation threshold",
            )

    def _saw_equal_products(self, norm):
        # The average began at 1; what was added to it is the variance of this batch.
        added = norm.moving_variance.numpy() - norm.momentum
        return norm.momentum != 1 and added.max() <= 1e-6 * (1 - norm.momentum)


class _RefitBeforeValidation(keras.callbacks.Callback):
    """Validate with batch-norm statistics of the weights as they are; see `fit`."""

    def __init__(self, x):
        super().__init__()
        self._x = x

    def on_test_begin(self, logs=None):
        stream.refit_batch_norm(_student(self.model), self._x)


class _Synchronize(keras.callbacks.Callback):
    """Give `model` the state of the distributed copy that is trained, after each epoch."""

    def __init__(self, model):
        super().__init__()
        self._own = model

    def on_epoch_end(self, epoch, logs=None):
        _take_over(self._own, self.model)


class _SaveState(keras.callbacks.Callback):
    """Write weights and optimizer after each epoch."""

    def __init__(self, path, params):
        super().__init__()
        self._path, self._params = path, params

    def on_epoch_end(self, epoch, logs=None):
        checkpoint.save_state(_student(self.model), self._path, self._params)


# --- Adversarial training ---------------------------------------------------------------------


def attack_of_epoch(epoch: int | tf.Tensor, params: TrainingParams) -> tuple[tf.Tensor, tf.Tensor]:
    """Largest change of a pixel, in whole grey levels, and steps of the attack in an epoch.

    Both grow in proportion to the epoch, until `GROWING` of all epochs are done, to
    ⌊255·`params.adversarial`⌋ and `ATTACK_STEPS`.

    Parameters
    ----------
    epoch : int or scalar tensor
        From 0.
    params : TrainingParams

    Returns
    -------
    radius : scalar tensor of float32
    steps : scalar tensor of int32
    """
    done = (tf.cast(epoch, tf.float32) + 1) / (GROWING * params.epochs)
    share = tf.minimum(done, 1.0)
    radius = float(radius_of(params.adversarial))
    steps = tf.cast(tf.math.ceil(share * ATTACK_STEPS), tf.int32)
    return tf.round(share * radius), steps


@contextlib.contextmanager
def _attacking(model, x, params, steps_per_epoch):
    """The compiled `model` takes its steps of training on attacked images, if `params` say so.

    An attack follows from the seed and the optimizer's step alone, so a training that is resumed
    sees those of one that was never interrupted.
    """
    if not params.adversarial:
        yield
        return
    require(x.dtype == np.uint8, f"adversarial training takes uint8 images, not {x.dtype}")
    on_given, on_floats = model.train_step, walk.taking_floats(model)

    def train_step(data):
        images, labels = data
        step = tf.cast(model.optimizer.iterations, tf.int32)
        radius, steps = attack_of_epoch(step // steps_per_epoch, params)
        seed = tf.stack([params.seed, step])
        # As in training: the moving averages fit none of the present weights.
        options = {"radius": radius, "steps": steps, "seed": seed, "training": True}
        return on_given((adversarial.attacked(on_floats, images, labels, **options), labels))

    model.train_step = train_step
    try:
        yield
    finally:
        del model.train_step


# --- Training ---------------------------------------------------------------------------------


def fit(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    params: TrainingParams = TrainingParams(),
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    state: str | os.PathLike | None = None,
    strategy: tf.distribute.Strategy | None = None,
    verbose: str | int = "auto",
    teacher: keras.Model | None = None,
) -> dict[str, list]:
    """Train a Keras classifier for `params.epochs` epochs.

    Adam on the latent weights, gradients of the loss summed over images and classes clipped
    elementwise to [−1, 1], latent weights clipped to [−1, 1] after each step, the training set
    shuffled anew in every epoch. (Gradients of the mean loss never come near ±1.) Before each
    validation, and at the end, `stream.refit_batch_norm` re-estimates batch norm's statistics:
    latent weights near zero flip until the last step, and moving averages fit none of their signs.

    Parameters
    ----------
    model : keras.Model
        Its output are scores, shape (n, classes).
    x : ndarray, shape (n, ...)
    y : ndarray of integers, shape (n,)
    params : TrainingParams
    validation : (ndarray, ndarray), optional
        Images and labels.
    callbacks : sequence of keras.callbacks.Callback
        On several workers they run on the first alone.
    state : path-like, optional
        A `.keras` file that holds weights and optimizer after the last finished epoch. If it is
        there, training goes on from it and ends with the weights of a training that was never
        interrupted.
    strategy : tf.distribute.Strategy, optional
        Train on all its devices, as `distribute.devices.training_strategy` chooses them. Each gets
        an equal share of every batch, and the result is that of one device, but for rounding, if
        the batch norms are `ShiftBatchNormalization` or synchronized.
    teacher : keras.Model, optional
        Takes the images of `model` and returns scores of the same classes, which are learned in
        place of the labels or, if `params.with_labels`, beside them. Labels then only serve to
        count how many images are classified correctly.

    Returns
    -------
    dict
        What Keras recorded: a list per quantity, with an entry per epoch.

    Raises
    ------
    ValueError
        If `state` is of another training, the loss stops being finite, the batch does not divide
        by the devices, or the model is to train on several and has a teacher or is not functional.
    ConnectionError
        If a worker stops answering.
    """
    _require_pixels(model, x)
    batch_size = min(params.batch_size, len(x))
    # What the loss is a mean of.
    over_classes = params.loss_mode == "hinge-loss" and teacher is None
    terms = batch_size * (_classes(model, x) if over_classes else 1)
    require(teacher is None or strategy is None, "with a teacher one device trains alone")
    compile_for(model, params, terms)
    devices.on_chief(strategy, checkpoint.restore_state, model, state, params)
    own = []
    if devices.is_chief(strategy):
        own = [*callbacks, *([] if state is None else [_SaveState(state, params)])]
    with devices.lost_workers_named(strategy):
        with _on_devices_of(strategy, model, params, batch_size, terms) as trained:
            if trained is not model:
                own.insert(0, _Synchronize(model))
            if teacher is not None:
                trained = _taught(model, teacher, params)
            history = _train(trained, x, y, params, batch_size, validation, own, strategy, verbose)
        stream.refit_batch_norm(model, x[:REFIT_IMAGES])
        if strategy is not None:
            # Another processor, or another number of threads, sums in another order.
            for variable in model.non_trainable_weights:
                variable.assign(devices.from_chief(strategy, variable.numpy()))
    return history


def _require_pixels(model, x):
    """Raise ValueError if a quantized layer would see uint8 images as floats up to 255."""
    graph = walk.graph_of(model)
    if x.dtype != np.uint8 or graph is None or model.inputs[0].dtype == "uint8":
        return
    quantized = QuantConv2D | QuantDense | Block
    first = [step.layer for step in graph.steps if graph.inputs[0] in step.reads]
    require(
        not any(isinstance(layer, quantized) for layer in first),
        "the images are uint8 and the model takes floats: give it keras.Input(..., dtype='uint8')",
    )


def _classes(model, x):
    if hasattr(model, "output_shape"):
        return model.output_shape[-1]
    return model(x[:1]).shape[-1]  # A subclassed model tells no shape.


def compile_for(model: keras.Model, params: TrainingParams, terms: int) -> None:
    """Compile a model as `fit` does. `terms`: of how many terms the loss of a batch is a mean."""
    model.compile(
        _optimizer(model, params, clip=1 / terms),
        loss_named(params.loss_mode),
        metrics=[_accuracy()],
        jit_compile=False,  # XLA's convolutions are slower on the CPU than the framework's.
    )
    model.optimizer.build(model.trainable_variables)


def _accuracy():
    return keras.metrics.SparseCategoricalAccuracy("accuracy")


def _optimizer(model, params, clip):
    freeze = params.freeze_oscillating
    if params.bop_gamma is None and freeze is None:
        return LatentAdam(params.lr_start, clip=clip)
    options = {"learning_rate": params.lr_start, "clip": clip, "kernels": _binary_kernels(model)}
    if freeze is not None:
        return FreezingAdam(limit=freeze, **options)
    if params.optimizer == "bop":
        return Bop(gamma=params.bop_gamma, threshold=params.bop_threshold, **options)
    return AveragingAdam(gamma=params.bop_gamma, **options)


def _binary_kernels(model):
    kernels = [
        layer.latent_kernel.path
        for layer in model._flatten_layers(include_self=False)
        if isinstance(getattr(layer, "kernel_quantizer", None), Sign)
    ]
    require(kernels, f"no layer of {model.name} quantizes its weights by the sign: take Adam alone")
    return kernels


@contextlib.contextmanager
def _on_devices_of(strategy, model, params, batch_size, terms):
    """A copy of the compiled `model` on all devices; its weights are taken over at the end.

    What a distributed model computes, all workers must ask for, so it stays in here.
    """
    if strategy is None:
        yield model
        return
    devices.require_shares(batch_size, strategy.num_replicas_in_sync)
    require(
        walk.graph_of(model) is not None,
        f"the model {model.name} is not functional: it trains on one device alone",
    )
    with strategy.scope():
        copy = type(model).from_config(model.get_config())
        compile_for(copy, params, terms)
    for one, all_ in zip(_state_of(model), _state_of(copy), strict=True):
        all_.assign(devices.from_chief(strategy, one.numpy()))
    yield copy
    _take_over(model, copy)


def _take_over(model, copy):
    """Give `model` the weights and the optimizer of its distributed copy."""
    for own, trained in zip(_state_of(model), _state_of(copy), strict=True):
        own.assign(keras.ops.convert_to_numpy(trained))


def _state_of(model):
    return [*model.weights, *model.optimizer.variables]


def _train(model, x, y, params, batch_size, validation, callbacks, strategy, verbose):
    """Keras' `fit` on batches of `x` and `y`, from the optimizer's step on."""
    steps = len(x) // batch_size
    initial_epoch = int(model.optimizer.iterations.numpy()) // steps
    batches = functools.partial(
        training_batches,
        x,
        y,
        batch_size,
        params.seed,
        params.epochs,
        initial_epoch,
        params.augment,
    )
    if validation is not None:
        validation = batches_in_order(*validation, batch_size=stream.INFERENCE_BATCH)
    with _attacking(model, x, params, steps):
        history = model.fit(
            devices.distributed(strategy, batches),
            initial_epoch=initial_epoch,
            epochs=params.epochs,
            steps_per_epoch=steps,
            shuffle=False,  # The pipeline does it.
            validation_data=validation,
            verbose=verbose if devices.is_chief(strategy) else 0,
            callbacks=[
                _StopOnDivergence(),
                _StopWithoutSignal(),
                keras.callbacks.LearningRateScheduler(params.learning_rate),
                _RefitBeforeValidation(x[:VALIDATION_REFIT_IMAGES]),
                *callbacks,
            ],
        )
    return history.history
