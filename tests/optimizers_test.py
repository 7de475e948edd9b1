"""Adam on latent weights is Keras' Adam."""

import keras
import numpy as np
import tensorflow as tf

from optimizers import LatentAdam


def test_latent_adam_is_keras_adam_on_clipped_gradients():
    rng = np.random.default_rng(0)
    # From gradients that ε drowns to gradients that are clipped.
    scales = 10.0 ** rng.integers(-9, 2, (50, 40))
    gradients = [(rng.standard_normal((50, 40)) * scales).astype(np.float32) for _ in range(20)]
    ends = []
    for optimizer in (
        keras.optimizers.Adam(0.01, beta_2=0.99, clipvalue=0.5),
        LatentAdam(0.01, 0.5),
    ):
        variable = keras.Variable(np.zeros((50, 40), np.float32))
        for value in gradients:
            optimizer.apply([tf.constant(value)], [variable])
        ends.append(variable.numpy())
    assert np.abs(ends[0]).min() > 0
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-4, atol=1e-7)


def test_latent_adam_is_saved_with_its_clip():
    config = LatentAdam(0.01, clip=0.25).get_config()
    assert LatentAdam.from_config(config).clip == 0.25
