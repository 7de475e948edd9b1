"""Optimizers of latent weights."""

import utils  # noqa: F401 (first: its settings are read when TensorFlow is imported)

# isort: split
import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("bnn")
class LatentAdam(keras.optimizers.Adam):
    """Adam on gradients clipped elementwise, in two passes over memory.

    The framework's own kernel updates moments and weights in place and in parallel; Keras'
    formula, the same one, makes a pass for every operation in it. Gradients are clipped here and
    not by `clipvalue`, as devices and workers have been summed over by now: the result does not
    depend on how many there are. Latent weights are clipped by their `WeightClip`, afterwards.

    Parameters
    ----------
    learning_rate : float
    clip : float
        Largest gradient. To clip to [−1, 1] the gradient of a loss summed over n terms, of which
        the loss is the mean, it is 1/n: Adam does not care for the factor that is left.
    beta_2 : float
        The usual 0.999 remembers the large gradients of the first steps for thousands of others,
        which then are too small: most of a run of a few epochs.
    """

    def __init__(self, learning_rate=0.001, clip=1.0, beta_2=0.99, **kwargs):
        super().__init__(learning_rate, beta_2=beta_2, **kwargs)
        self.clip = clip

    def get_config(self):
        return {**super().get_config(), "clip": self.clip}

    def update_step(self, gradient, variable, learning_rate):
        step = tf.cast(self.iterations + 1, variable.dtype)
        index = self._get_variable_index(variable)
        moments = (self._momentums[index].value, self._velocities[index].value)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=moments[0].handle,
            v=moments[1].handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.clip_by_value(gradient, -self.clip, self.clip),
        )
