"""Small networks and images that several tests train and save."""

import keras
import numpy as np

import graph_ops
from bnn import BinaryNeuralNetwork, NetworkParams, TrainingParams

KINDS = {
    "binary": {},
    "ternary": {"levels": 3},
    "ternary_sigma": {"levels": 3, "threshold_sigma": 0.6},
    "two thresholds": {"levels": 3, "threshold_sigma": 0.6, "activation_threshold": 0.02},
    "continuous": {"bin_weights": False, "bin_acts": False},
    "mixed": {"bin_weights": [1, 0, 1, 1], "bin_acts": [0, 1, 1, 1]},
    "residual": {"network": "residual"},
}


def small_network(training=None, **changes):
    params = {"conv": [5, 6], "max_pool": [0, 1], "fc": [7], **changes}
    options = {"epochs": 2, "batch_size": 8, "lr_start": 1e-2, "lr_end": 1e-3, **(training or {})}
    return BinaryNeuralNetwork((9, 7, 2), 4, NetworkParams(**params), TrainingParams(**options))


def random_images(count=24, dtype=np.uint8):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 9, 7, 2)).astype(np.uint8)
    images = images if dtype == np.uint8 else (2 * images.astype(np.float32) - 255) / 255
    return images, rng.integers(0, 4, count)


def trained(**changes):
    x, y = random_images()
    return small_network(**changes).fit(x, y), x, y


def model_of_all_layers():
    """A residual model with every layer of this project, and a sign as a plain activation."""
    inputs = keras.Input((8, 8, 2))
    x = graph_ops.RotatedConv2D(4, 3, kernel_quantizer="sign", padding="same")(inputs)
    x = graph_ops.ShiftBatchNormalization(0.9)(graph_ops.MaxPooling2D()(x))
    y = keras.layers.Activation(graph_ops.binarize)(x)
    y = graph_ops.QuantConv2D(4, 3, graph_ops.Sign(), graph_ops.Ternary(sigma=0.6), padding="same")(
        y
    )
    x = keras.layers.Add()([x, graph_ops.ShiftBatchNormalization()(y)])
    x = keras.layers.Activation(graph_ops.clip)(x)
    x = graph_ops.BinaryConv2D(3, pool=True)(x)
    x = keras.layers.Flatten()(x)
    x = graph_ops.QuantDense(
        5, graph_ops.Uniform(4, scale=1.0), graph_ops.LloydMax(4), use_bias=True
    )(x)
    return keras.Model(inputs, x)
