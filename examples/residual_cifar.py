"""A residual CNN on CIFAR-10: `python -m examples.residual_cifar --out DIR`."""

from examples.training import arguments, train_cifar

# isort: split
import keras
from keras import layers


def conv(x, filters, size, strides, name):
    x = layers.Conv2D(filters, size, strides, "same", use_bias=False, name=name)(x)
    return layers.BatchNormalization(name=f"{name}_norm")(x)


def block(x, filters, strides, name):
    """Two convolutions and a shortcut past them."""
    y = layers.ReLU()(conv(x, filters, 3, strides, f"{name}_first"))
    y = conv(y, filters, 3, 1, f"{name}_second")
    if strides > 1:
        x = conv(x, filters, 1, strides, f"{name}_shortcut")
    return layers.ReLU()(layers.Add()([x, y]))


def network():
    images = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 127.5, -1)(images)
    x = layers.ReLU()(conv(x, 16, 3, 1, "stem"))
    for filters, count in ((16, 1), (32, 2), (64, 2), (128, 1)):
        for number in range(count):
            strides = 2 if filters > 16 and number == 0 else 1
            x = block(x, filters, strides, f"block_{filters}_{number + 1}")
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(10, name="scores")(x), name="residual_cifar")


if __name__ == "__main__":
    train_cifar(network(), "residual_cifar", arguments(epochs=20), peak=0.2)
