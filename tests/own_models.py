"""Keras models such as a user would write, for tests: a subclassed one, a cell of one's own."""

import keras

from graph_ops import QuantConv2D, QuantDense, ShiftBatchNormalization


@keras.saving.register_keras_serializable("tests")
class Block(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.product = QuantConv2D(
            6, 3, padding="same", use_bias=False, kernel_quantizer="sign", name="product"
        )
        self.norm = ShiftBatchNormalization()

    def call(self, x, training=False):
        return self.norm(self.product(x, training=training), training=training)


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = Block(name="block")
        self.second = QuantDense(
            16, input_quantizer="sign", kernel_quantizer="sign", use_bias=False, name="second"
        )
        self.norm = ShiftBatchNormalization()
        self.scores = keras.layers.Dense(10, name="scores")

    def call(self, x, training=False):
        x = self.inner(x, training=training)
        x = keras.ops.reshape(x, (-1, 8 * 8 * 6))
        return self.scores(self.norm(self.second(x, training=training), training=training))


@keras.saving.register_keras_serializable("tests")
class BinaryCell(keras.layers.Layer):
    """tanh of the quantized products of input and state."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units
        binary = {"input_quantizer": "sign", "kernel_quantizer": "sign", "use_bias": False}
        self.of_input = QuantDense(units, name="of_input", **binary)
        self.of_state = QuantDense(units, name="of_state", **binary)

    def build(self, input_shape):
        self.of_input.build(input_shape)
        self.of_state.build((input_shape[0], self.units))

    def call(self, inputs, states, training=False):
        hidden = self.of_input(inputs, training=training) / 3
        hidden = keras.ops.tanh(hidden + self.of_state(states[0], training=training) / 3)
        return hidden, [hidden]

    def get_config(self):
        return {**super().get_config(), "units": self.units}
