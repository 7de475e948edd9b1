"""The networks, by name: short functions that connect layers.

The paper's network is BinaryNet's (Hubara et al. 2016).
"""

import collections

import graph_ops
import training
from utils import NetworkParams, TrainingParams

# isort: split
import keras
import numpy as np


def scaled(images: np.ndarray) -> np.ndarray:
    """Images as the network sees them: uint8 means 2x/255 − 1, float32 is taken as it is."""
    return (2 * images.astype(np.float32) - 255) / 255 if images.dtype == np.uint8 else images


class Layers:
    """Makes the layers of a network in order, each with its quantizers, its seed and its name."""

    def __init__(self, params: NetworkParams, training_params: TrainingParams):
        self._params, self._training = params, training_params
        self._made = collections.Counter()
        self._position, self._name = -1, ""
        # One seed per layer, none of them shared with the shuffling.
        self._seeds = np.random.SeedSequence(training_params.seed).generate_state(params.layers)

    def images(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Images, with their pixels rounded where `params` says so."""
        levels = self._params.input_levels
        return x if levels is None else graph_ops.PixelLevels(levels, name="levels")(x)

    def conv(
        self, x: keras.KerasTensor, filters: int, strides: int = 1, **options: object
    ) -> keras.KerasTensor:
        """A quantized convolution, SAME; the first layer's may be quantized in another basis."""
        self._next("conv")
        size, options = (
            self._params.filter_size,
            self._options(self._seeds[self._position]) | options,
        )
        options |= {"strides": strides, "padding": "same", "name": self._name}
        if self._position == 0 and self._params.rotate_first:
            whitens = self._params.rotate_first == "zca"
            basis = "whitening" if whitens else "rotation"
            return graph_ops.RotatedConv2D(filters, size, basis=basis, **options)(x)
        return graph_ops.QuantConv2D(filters, size, **options)(x)

    def dense(self, x: keras.KerasTensor, units: int, **options: object) -> keras.KerasTensor:
        """A quantized fully connected layer."""
        self._next("fc")
        options = self._options(self._seeds[self._position]) | options
        return graph_ops.QuantDense(units, name=self._name, **options)(x)

    def pool(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """2×2 max pooling."""
        return graph_ops.MaxPooling2D(name=f"{self._name}_pool")(x)

    def norm(self, x: keras.KerasTensor, suffix: str = "", **options: object) -> keras.KerasTensor:
        """Batch norm of what the last product was made into."""
        norm = graph_ops.ShiftBatchNormalization(
            self._training.bn_momentum,
            self._training.threshold_penalty,
            name=f"{self._name}{suffix}_norm",
            dtype="float32",
            **options,
        )
        return norm(x)

    def bits(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """The signs of what batch norm gives."""
        return keras.layers.Activation(graph_ops.Sign(), autocast=False)(x)

    def shortcut(self, x: keras.KerasTensor, filters: int, strides: int) -> keras.KerasTensor:
        """`x` in another shape: a quantized 1×1 convolution, then batch norm."""
        options = {**self._options(self._second_seed()), "strides": strides, "padding": "same"}
        name = f"{self._name}_shortcut"
        return self.norm(graph_ops.QuantConv2D(filters, 1, name=name, **options)(x), "_shortcut")

    def recurrent(
        self,
        x: keras.KerasTensor,
        units: int,
        kind: str,
        step: type[graph_ops.GRUStep | graph_ops.LSTMStep],
    ) -> list[keras.KerasTensor]:
        """The states of a recurrent layer with quantized kernels, one for each time step.

        Products of the inputs share their statistics over all time steps. Those of the state have
        other statistics at each, as Cooijmans et al. (2016, arXiv 1603.09025) found necessary.
        """
        self._next(kind)
        step = step(units, name=f"{self._name}_step", dtype="float32")
        of_input, of_state = (
            graph_ops.QuantDense(
                step.gates * units,
                name=f"{self._name}_{part}",
                **{**self._options(seed), "input_quantizer": None},
            )
            for part, seed in (
                ("input", self._seeds[self._position]),
                ("state", self._second_seed()),
            )
        )
        of_input = self.norm(of_input(x), "_input", center=False)
        states, cell = [], None
        for time in range(x.shape[1]):
            parts = [of_input[:, time]]
            if time:
                normal = self.norm(of_state(states[-1]), f"_state_{time}", center=False)
                parts += [normal, states[-1] if cell is None else cell]
            made = step(parts)
            state, cell = made if isinstance(made, tuple | list) else (made, None)
            states.append(state)
        return states

    def _second_seed(self):
        """For a layer's other kernel."""
        return np.random.SeedSequence([self._training.seed, self._position]).generate_state(1)[0]

    def _next(self, kind):
        self._made[kind] += 1
        self._position += 1
        self._name = f"{kind}_{self._made[kind]}"

    def _options(self, seed):
        return {
            "kernel_quantizer": self._kernel_quantizer(),
            "input_quantizer": self._input_quantizer(),
            "kernel_constraint": graph_ops.WeightClip(),
            "kernel_regularizer": self._regularizer(),
            "kernel_initializer": keras.initializers.GlorotUniform(int(seed)),
            "use_bias": False,
            "dtype": self._training.precision,
        }

    def _regularizer(self):
        target = self._training.kurtosis
        return None if target is None else training.Kurtosis(target)

    @property
    def _quantizer_name(self):
        return self._params.quantizer or ("binary" if self._params.levels == 2 else "ternary")

    def _kernel_quantizer(self):
        params = self._params
        if not params.per_layer("bin_weights")[self._position]:
            return None
        in_sigmas = params.threshold_sigma is not None
        threshold = None if in_sigmas else params.threshold
        return graph_ops.get_quantizer(
            self._quantizer_name, threshold=threshold, sigma=params.threshold_sigma
        )

    def _input_quantizer(self):
        params = self._params
        if self._position == 0:
            return None  # Pixels.
        if not params.per_layer("bin_acts")[self._position - 1]:
            return graph_ops.Clip()
        # Activations are batch-normed: their standard deviation is 1.
        thresholds = params.activation_threshold, params.threshold_sigma, params.threshold
        threshold = next(value for value in thresholds if value is not None)
        name = graph_ops.activation_quantizer_of(self._quantizer_name)
        return graph_ops.get_quantizer(name, threshold=threshold)


def paper_network(
    x: keras.KerasTensor, out_dim: int, params: NetworkParams, layers: Layers
) -> keras.KerasTensor:
    """The paper's network: images to scores.

    Convolutions, each with pooling where `params` says so and then batch norm, and fully connected
    layers with batch norm. The quantizers of activations sit on the layers that read them.
    """
    for filters, stride, pool in zip(params.conv, params.strides, params.max_pool, strict=True):
        x = layers.conv(x, filters, stride)
        x = layers.norm(layers.pool(x) if pool else x)
    return _fully_connected(x, out_dim, params, layers)


def residual_network(
    x: keras.KerasTensor, out_dim: int, params: NetworkParams, layers: Layers
) -> keras.KerasTensor:
    """The paper's network with a shortcut around every convolution but the first.

    Float activations are added to the output of batch norm, as in Bi-Real Net (Liu et al. 2018,
    arXiv 1808.00278). Where the paper's network pools, the convolution has twice the stride, and
    the shortcut is a quantized 1×1 convolution of this stride.
    """
    for number, (filters, strides) in enumerate(_strided(params)):
        y = layers.norm(layers.conv(x, filters, strides))
        if number > 0:
            same = strides == 1 and x.shape[-1] == filters
            y = keras.layers.Add()([y, x if same else layers.shortcut(x, filters, strides)])
        x = y
    return _fully_connected(x, out_dim, params, layers)


def _strided(params):
    """Filters and stride of each convolution, twice the stride in place of pooling."""
    for filters, stride, pool in zip(params.conv, params.strides, params.max_pool, strict=True):
        yield filters, 2 * stride if pool else stride


def boolean_network(
    x: keras.KerasTensor, out_dim: int, params: NetworkParams, layers: Layers
) -> keras.KerasTensor:
    """`residual_network` with one bit in place of each float, as in BoolNet (Guo et al. 2021).

    The first layer reads thresholds of the pixels, and every activation is a sign. A shortcut is
    joined by XNOR and by OR in turn (arXiv 2106.06991).
    """
    x = graph_ops.PixelSlices(params.slices, name="slices")(x)
    for number, (filters, strides) in enumerate(_strided(params)):
        y = layers.conv(x, filters, strides, input_quantizer=graph_ops.Sign())
        y = layers.bits(layers.norm(y))
        if number > 0:
            same = strides == 1 and x.shape[-1] == filters
            bits = x if same else layers.bits(layers.shortcut(x, filters, strides))
            y = graph_ops.LogicMerge("xnor" if number % 2 else "or")([y, bits])
        x = y
    return _fully_connected(x, out_dim, params, layers)


def gru_network(
    x: keras.KerasTensor, out_dim: int, params: NetworkParams, layers: Layers
) -> keras.KerasTensor:
    """A GRU that reads an image row by row, then the output layer.

    Kernels of inputs and states are quantized and their products batch-normed, as in Ardakani et
    al. (2018, arXiv 1809.11086). States stay floats.
    """
    return _recurrent(x, out_dim, params, layers, graph_ops.GRUStep)


def lstm_network(
    x: keras.KerasTensor, out_dim: int, params: NetworkParams, layers: Layers
) -> keras.KerasTensor:
    """`gru_network` with LSTM layers."""
    return _recurrent(x, out_dim, params, layers, graph_ops.LSTMStep)


def _recurrent(x, out_dim, params, layers, step):
    rows, columns, channels = x.shape[1:]
    x = keras.layers.Reshape((rows, columns * channels), autocast=False)(x)
    for number, units in enumerate(params.fc, 1):
        states = layers.recurrent(x, units, params.network, step)
        if number < len(params.fc):
            x = keras.ops.stack(states, axis=1)
    scores = layers.norm(layers.dense(states[-1], out_dim, input_quantizer=None))
    return keras.layers.Activation("linear", name="scores", dtype="float32")(scores)


def _fully_connected(x, out_dim, params, layers):
    # In float32, so that no policy rounds activations before they are quantized.
    x = keras.layers.Flatten(name="flatten", dtype="float32")(x)
    for units in (*params.fc, out_dim):
        x = layers.norm(layers.dense(x, units))
    return keras.layers.Activation("linear", name="scores", dtype="float32")(x)


NETWORKS = {
    "paper": paper_network,
    "residual": residual_network,
    "boolnet": boolean_network,
    "gru": gru_network,
    "lstm": lstm_network,
}
