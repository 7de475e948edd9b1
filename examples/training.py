"""What the example trainings share: the training itself, and what they write."""

import argparse
import time
from collections.abc import Callable, Iterable

from data.load_data import load_data
from fast.batches import training_batches
from fast.precision import choose_precision
from files import atomic_path, write_json

# isort: split
import keras
import numpy as np


def one_cycle(peak: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """A learning rate that rises for a fifth of the steps and falls to zero along a cosine."""
    rise = max(steps // 5, 1)
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(steps - rise, 1), warmup_target=peak, warmup_steps=rise
    )


def train(
    network: Callable[[], keras.Model],
    data: Iterable[np.ndarray],
    args: argparse.Namespace,
    optimizer: Callable[[int], keras.optimizers.Optimizer],
    batch: int,
    augment: str | None = None,
    precision: str = "float32",
) -> None:
    """Train `network()` and write NAME.keras, NAME.npz (the validation data) and NAME.json.

    A survey chooses a plan on its data: these are validation data, so that the test data choose
    nothing. A training that was interrupted goes on after its last finished epoch.

    Parameters
    ----------
    network : callable
        Returns a model that ends in a score per class.
    data : sequence of six ndarrays
        Inputs and labels: for training, validation and testing.
    args : argparse.Namespace
        See `examples.arguments`.
    optimizer : callable
        Its argument is the number of steps of the whole training.
    batch : int
    augment : str, optional
        As `fast.batches.augmented` takes it.
    precision : {'float32', 'auto'}
        'auto' trains in bfloat16 where that is faster. The model that is written is float32.
    """
    started = time.perf_counter()
    keras.utils.set_random_seed(0)
    x, y, x_valid, y_valid, x_test, y_test = data
    steps = args.steps or len(x) // batch
    policy, _ = choose_precision(precision)
    keras.config.set_dtype_policy(policy)
    model = network()
    keras.config.set_dtype_policy("float32")
    _compile(model, optimizer(args.epochs * steps))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / model.name
    history = model.fit(
        training_batches(x, y, batch, 0, args.epochs, augment=augment),
        epochs=args.epochs,
        steps_per_epoch=steps,
        shuffle=False,  # The batches are.
        validation_data=(x_valid, y_valid),
        validation_batch_size=500,
        callbacks=[keras.callbacks.BackupAndRestore(f"{path}_state", double_checkpoint=True)],
        verbose=2,
    )
    stock = network()
    stock.set_weights(model.get_weights())
    _compile(stock, "sgd")
    with atomic_path(f"{path}.keras") as temporary:
        stock.save(temporary, include_optimizer=False)
    with atomic_path(f"{path}.npz") as temporary:
        np.savez_compressed(temporary, x=x_valid, y=y_valid)
    valid, test = (
        stock.evaluate(*pair, 500, 0)[1] for pair in ((x_valid, y_valid), (x_test, y_test))
    )
    trained = {
        "model": model.name,
        "parameters": stock.count_params(),
        "epochs": args.epochs,
        "precision": policy,
        "validation_accuracy": valid,
        "test_accuracy": test,
        "seconds": time.perf_counter() - started,
        "epochs_in_these_seconds": len(history.epoch),
    }
    write_json(f"{path}.json", trained)
    print(trained)
    print(f"python survey.py {path}.keras --npz {path}.npz")


def _compile(model, optimizer):
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # XLA's convolutions are slower on the CPU than the framework's.
    )


def train_cifar(
    network: Callable[[], keras.Model],
    args: argparse.Namespace,
    peak: float,
    precision: str = "float32",
) -> None:
    """Train a classifier of CIFAR-10 on shifted and mirrored images."""
    train(
        network,
        load_data("cifar-10", args.data_dir, valid_size=5000),
        args,
        lambda steps: keras.optimizers.SGD(
            one_cycle(peak, steps), momentum=0.9, nesterov=True, weight_decay=4e-3
        ),
        batch=128,
        augment="crop-flip",
        precision=precision,
    )
