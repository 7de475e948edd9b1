"""Small networks and smooth images that several tests share."""

import numpy as np

from bnn import BinaryNeuralNetwork, NetworkParams, TrainingParams

KINDS = {
    "binary": {},
    "ternary": {"levels": 3, "threshold": 0.05},
    "continuous": {"bin_weights": False, "bin_acts": False},
}


def smooth_images(count, shape=(7, 6, 2), seed=0):
    """Smooth images, as patches of noise would be uncorrelated."""
    noise = np.random.default_rng(seed).standard_normal((count, *shape))
    smooth = (
        noise
        + np.roll(noise, 1, 1)
        + np.roll(noise, 1, 2)
        + 2 * noise.mean((1, 2, 3))[:, None, None, None]
    )
    return np.clip(128 + 40 * smooth, 0, 255).astype(np.uint8)


def trained_network(kind):
    """A small network of one of `KINDS`, after two epochs."""
    params = NetworkParams(conv=[5, 8], max_pool=[0, 1], fc=[7], **KINDS[kind])
    training = TrainingParams(epochs=2, batch_size=10, lr_start=1e-2, lr_end=1e-3)
    made = BinaryNeuralNetwork((7, 6, 2), 4, params, training)
    return made.fit(smooth_images(60, seed=1), np.arange(60) % 4)
