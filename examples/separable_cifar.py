"""A CNN of separable convolutions on CIFAR-10: `python -m examples.separable_cifar --out DIR`."""

from examples import arguments, command

if __name__ == "__main__":
    # Before TensorFlow is imported, which takes seconds.
    ARGS = arguments("separable_cifar", epochs=20)

from examples.training import train_cifar

# isort: split
import keras
from keras import layers


def separable(x: keras.KerasTensor, filters: int, strides: int, name: str) -> keras.KerasTensor:
    x = layers.SeparableConv2D(filters, 3, strides, "same", use_bias=False, name=name)(x)
    return layers.ReLU()(layers.BatchNormalization(name=f"{name}_norm")(x))


def network() -> keras.Model:
    images = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 127.5, -1)(images)
    x = layers.Conv2D(24, 3, padding="same", use_bias=False, name="stem")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="stem_norm")(x))
    for filters, count in ((48, 1), (128, 2), (256, 3)):
        x = separable(x, filters, 2, f"narrow_{filters}")
        for number in range(1, count + 1):
            x = layers.Add()([x, separable(x, filters, 1, f"block_{filters}_{number}")])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(10, name="scores")(x), name="separable_cifar")


if __name__ == "__main__":
    with command("separable_cifar"):
        train_cifar(network, ARGS, peak=0.1)
