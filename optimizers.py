"""Optimizers of latent weights, and one that needs none: which weight moves, flips or freezes."""

from collections.abc import Sequence

import utils  # noqa: F401 (first: its settings are read when TensorFlow is imported)
from straight_through import binarize

# isort: split
import keras
import numpy as np
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

    def __init__(
        self,
        learning_rate: float = 0.001,
        clip: float = 1.0,
        beta_2: float = 0.99,
        **kwargs: object,
    ):
        super().__init__(learning_rate, beta_2=beta_2, **kwargs)
        self.clip = clip

    def get_config(self) -> dict:
        return {**super().get_config(), "clip": self.clip}

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor | keras.Variable
    ) -> None:
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


class _KernelAdam(LatentAdam):
    """`LatentAdam` that does something more with some of the variables.

    Parameters
    ----------
    learning_rate : float
    kernels : sequence of str
        Paths of these variables, `keras.Variable.path`.
    **kwargs
        Those of `LatentAdam`.
    """

    def __init__(self, learning_rate: float, kernels: Sequence[str] = (), **kwargs: object):
        super().__init__(learning_rate, **kwargs)
        self.kernels = list(kernels)

    def get_config(self) -> dict:
        return {**super().get_config(), "kernels": self.kernels}

    def _slots(self, variables, name, initializer="zeros"):
        """A new variable for each kernel, by the index of the kernel's variable."""
        return {
            self._get_variable_index(variable): self.add_variable_from_reference(
                variable, name, initializer
            )
            for variable in variables
            if variable.path in self.kernels
        }


@keras.saving.register_keras_serializable("bnn")
class AveragingAdam(_KernelAdam):
    """`LatentAdam` that keeps the average of the kernels' gradients which `Bop` would keep.

    m ← (1 − γ)·m + γ·g for each kernel, before its weights change. It changes nothing else.

    Parameters
    ----------
    learning_rate : float
    gamma : float
        γ of the first epoch. As Bop's own, it falls with the learning rate.
    **kwargs
        `kernels` and those of `LatentAdam`.
    """

    def __init__(
        self,
        learning_rate: float,
        gamma: float = 1e-4,
        first_rate: float | None = None,
        **kwargs: object,
    ):
        super().__init__(learning_rate, **kwargs)
        self.gamma = gamma
        self.first_rate = float(learning_rate) if first_rate is None else first_rate

    def get_config(self) -> dict:
        return {**super().get_config(), "gamma": self.gamma, "first_rate": self.first_rate}

    def build(self, variables: list[keras.Variable]) -> None:
        """Make the averages, zero at first."""
        if self.built:
            return
        super().build(variables)
        self._averages = self._slots(variables, "average")

    def averages(self, model: keras.Model) -> dict[str, np.ndarray]:
        """m of every kernel of `model`, an array by the name of its layer."""
        return {
            layer.name: self._averages[index].numpy()
            for layer in model.layers
            if hasattr(layer, "latent_kernel")
            and (index := self._get_variable_index(layer.latent_kernel)) in self._averages
        }

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor | keras.Variable
    ) -> None:
        average = self._averages.get(self._get_variable_index(variable))
        if average is not None:
            # In float32, as the learning rate is: in the first epoch γ is what was asked for.
            decay = learning_rate / tf.cast(self.first_rate, learning_rate.dtype)
            gamma = tf.cast(self.gamma * decay, variable.dtype)
            average.value.assign((1 - gamma) * average.value + gamma * gradient)
        self._move(gradient, variable, learning_rate, average)

    def _move(self, gradient, variable, learning_rate, average):
        super().update_step(gradient, variable, learning_rate)


@keras.saving.register_keras_serializable("bnn")
class Bop(AveragingAdam):
    """Flip binary weights against a consistent gradient; there are no latent weights.

    The average m ← (1 − γ)·m + γ·g of its gradient decides over each weight of the kernels: it
    flips where |m| > τ and m has the weight's sign. A weight that is not ±1 becomes its sign. All
    other variables go by `LatentAdam`. Gradients of the kernels are not clipped.

    Parameters
    ----------
    learning_rate : float
        Of the other variables. γ falls with it.
    gamma : float
        γ of the first epoch.
    threshold : float
        τ, for gradients of the mean loss.
    **kwargs
        `kernels` and those of `LatentAdam`.

    References
    ----------
    K. Helwegen et al., "Latent Weights Do Not Exist", NeurIPS 2019 (arXiv 1906.02107).
    """

    def __init__(
        self, learning_rate: float, gamma: float = 1e-4, threshold: float = 1e-8, **kwargs: object
    ):
        super().__init__(learning_rate, gamma, **kwargs)
        self.threshold = threshold

    def get_config(self) -> dict:
        return {**super().get_config(), "threshold": self.threshold}

    def _move(self, gradient, variable, learning_rate, average):
        if average is None:
            super()._move(gradient, variable, learning_rate, average)
            return
        signs = binarize(variable)
        variable.assign(tf.where(signs * average.value > self.threshold, -signs, signs))


# Steps that the frequency of flips and the mean sign of `FreezingAdam` remember.
FLIP_MEMORY = 100


@keras.saving.register_keras_serializable("bnn")
class FreezingAdam(_KernelAdam):
    """`LatentAdam` that freezes the weights whose sign flips too often.

    A weight of the kernels is frozen for the rest of the training once the moving average of its
    flips per step, over some `FLIP_MEMORY` steps, is above `limit`. It keeps its size and takes
    the sign that it had most of that time.

    Parameters
    ----------
    learning_rate : float
    limit : float
        Flips per step.
    **kwargs
        `kernels` and those of `LatentAdam`.

    References
    ----------
    M. Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", ICML 2022 (arXiv
    2203.11086).
    """

    def __init__(self, learning_rate: float, limit: float = 0.02, **kwargs: object):
        super().__init__(learning_rate, **kwargs)
        self.limit = limit

    def get_config(self) -> dict:
        return {**super().get_config(), "limit": self.limit}

    def build(self, variables: list[keras.Variable]) -> None:
        """Make the averages of flips and signs."""
        if self.built:
            return
        super().build(variables)
        self._rates = self._slots(variables, "flip_rate")
        self._signs = self._slots(variables, "mean_sign")

    def frozen_share(self) -> float:
        """Share of the kernels' weights that are frozen."""
        rates = [rate.numpy() for rate in self._rates.values()]
        return sum((rate > self.limit).sum() for rate in rates) / sum(rate.size for rate in rates)

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor | keras.Variable
    ) -> None:
        index = self._get_variable_index(variable)
        if index not in self._rates:
            super().update_step(gradient, variable, learning_rate)
            return
        rate, mean_sign = self._rates[index].value, self._signs[index].value
        before = tf.identity(variable)
        with tf.control_dependencies([before]):
            super().update_step(gradient, variable, learning_rate)
        # What is frozen keeps a frequency above the limit, and so stays frozen.
        frozen = rate > self.limit
        after = tf.where(frozen, before, variable)
        sign, share = binarize(after), 1 / FLIP_MEMORY
        flips = tf.cast(sign != binarize(before), rate.dtype)
        rate.assign(tf.where(frozen, rate, (1 - share) * rate + share * flips))
        mean_sign.assign(tf.where(frozen, mean_sign, (1 - share) * mean_sign + share * sign))
        freezes = (rate > self.limit) & ~frozen
        variable.assign(tf.where(freezes, tf.abs(after) * binarize(mean_sign), after))
