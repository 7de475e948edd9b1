"""A residual CNN on CIFAR-10: `python -m examples.residual_cifar --out DIR`."""

from examples import arguments, command

if __name__ == "__main__":
    # Before TensorFlow is imported, which takes seconds.
    ARGS = arguments("residual_cifar", epochs=9)

from examples.training import train_cifar

# isort: split
import keras
from keras import layers


def conv(
    x: keras.KerasTensor, filters: int, size: int, strides: int, name: str
) -> keras.KerasTensor:
    x = layers.Conv2D(filters, size, strides, "same", use_bias=False, name=name)(x)
    return layers.BatchNormalization(name=f"{name}_norm")(x)


def block(x: keras.KerasTensor, filters: int, strides: int, name: str) -> keras.KerasTensor:
    """Two convolutions and a shortcut past them."""
    y = layers.ReLU()(conv(x, filters, 3, strides, f"{name}_first"))
    y = conv(y, filters, 3, 1, f"{name}_second")
    if strides > 1:
        x = conv(x, filters, 1, strides, f"{name}_shortcut")
    return layers.ReLU()(layers.Add()([x, y]))


def network() -> keras.Model:
    images = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 127.5, -1)(images)
    x = layers.ReLU()(conv(x, 24, 3, 1, "stem"))
    for filters, count in ((48, 1), (96, 2), (192, 2)):
        for number in range(count):
            x = block(x, filters, 2 if number == 0 else 1, f"block_{filters}_{number + 1}")
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(
        images, layers.Dense(10, dtype="float32", name="scores")(x), name="residual_cifar"
    )


if __name__ == "__main__":
    with command("residual_cifar"):
        train_cifar(network, ARGS, peak=0.2, precision="auto")
