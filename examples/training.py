"""What the example trainings share: the command line, augmented CIFAR-10, what they write."""

import argparse
from pathlib import Path

from data.load_data import load_data
from fast.batches import augmented
from utils import atomic_path

# isort: split
import keras
import numpy as np
import tensorflow as tf

BATCH = 128


def arguments(epochs):
    """The folder to write to, where the data lie, and how many epochs."""
    cli = argparse.ArgumentParser()
    cli.add_argument("--out", type=Path, default=Path("output/examples"))
    cli.add_argument("--data_dir")
    cli.add_argument("--epochs", type=int, default=epochs)
    cli.add_argument("--steps", type=int, help="end each epoch after so many steps, to try it")
    return cli.parse_args()


def write(model, name, out, x, y):
    """Write the model and the test data that a survey takes: NAME.keras and NAME.npz."""
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / f"{name}.keras") as path:
        model.save(path)
    with atomic_path(out / f"{name}.npz") as path:
        np.savez_compressed(path, x=x, y=y)
    print(f"python survey.py {out / name}.keras --npz {out / name}.npz")


def one_cycle(peak, steps):
    """A learning rate that rises for a fifth of the steps and falls to zero along a cosine."""
    rise = max(steps // 5, 1)
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(steps - rise, 1), warmup_target=peak, warmup_steps=rise
    )


def train_cifar(model, name, args, peak):
    """Train a classifier of CIFAR-10 on shifted and mirrored images, and write it."""
    keras.utils.set_random_seed(0)
    data = load_data("cifar-10", args.data_dir, valid_size=0)
    steps = args.steps or len(data.x_train) // BATCH
    seeds = tf.data.Dataset.random(seed=0).batch(2).map(lambda s: tf.cast(s % 2**31, tf.int32))
    batches = tf.data.Dataset.from_tensor_slices((data.x_train, data.y_train))
    batches = batches.shuffle(len(data.x_train), seed=0).repeat().batch(BATCH)
    batches = tf.data.Dataset.zip(batches, seeds).map(
        lambda batch, seed: (augmented(batch[0], "crop-flip", seed), batch[1])
    )
    rate = one_cycle(peak, args.epochs * steps)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    model.fit(batches.prefetch(2), epochs=args.epochs, steps_per_epoch=steps, verbose=2)
    print("test", model.evaluate(data.x_test, data.y_test, batch_size=500, verbose=0))
    write(model, name, args.out, data.x_test, data.y_test)
