"""A GRU that reads MNIST row by row: `python -m examples.rows_mnist --out DIR`."""

from data.load_data import load_data
from examples.training import BATCH, arguments, one_cycle, write

# isort: split
import keras
from keras import layers


def network():
    rows = keras.Input((28, 28))
    x = layers.Rescaling(1 / 127.5, -1)(rows)
    x = layers.GRU(96, return_sequences=True, name="first")(x)
    x = layers.GRU(96, name="second")(x)
    x = layers.Dense(64, activation="relu", name="hidden")(x)
    return keras.Model(rows, layers.Dense(10, name="scores")(x), name="rows_mnist")


if __name__ == "__main__":
    args = arguments(epochs=8)
    keras.utils.set_random_seed(0)
    data, model = load_data("MNIST", args.data_dir, valid_size=0), network()
    x_train, x_test = (x[..., 0] for x in (data.x_train, data.x_test))
    count = args.steps * BATCH if args.steps else len(x_train)
    model.compile(
        keras.optimizers.Adam(one_cycle(4e-3, args.epochs * count // BATCH), clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    model.fit(x_train[:count], data.y_train[:count], BATCH, args.epochs, verbose=2)
    print("test", model.evaluate(x_test, data.y_test, batch_size=500, verbose=0))
    write(model, "rows_mnist", args.out, x_test, data.y_test)
