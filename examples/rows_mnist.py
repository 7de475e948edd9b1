"""A GRU that reads MNIST row by row: `python -m examples.rows_mnist --out DIR`."""

from data.load_data import load_data
from examples import arguments, command

if __name__ == "__main__":
    # Before TensorFlow is imported, which takes seconds.
    ARGS = arguments("rows_mnist", epochs=5)

from examples.training import one_cycle, train

# isort: split
import keras
from keras import layers


def network() -> keras.Model:
    rows = keras.Input((28, 28))
    x = layers.Rescaling(1 / 127.5, -1)(rows)
    x = layers.GRU(96, return_sequences=True, name="first")(x)
    x = layers.GRU(96, name="second")(x)
    x = layers.Dense(64, activation="relu", name="hidden")(x)
    return keras.Model(rows, layers.Dense(10, name="scores")(x), name="rows_mnist")


def adam(steps: int) -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(one_cycle(4e-3, steps), clipnorm=1.0)


if __name__ == "__main__":
    with command("rows_mnist"):
        data = load_data("MNIST", ARGS.data_dir, valid_size=5000)
        rows = (part[..., 0] if part.ndim == 4 else part for part in data)
        train(network, rows, ARGS, adam, batch=128)
