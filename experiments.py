"""What if? Other bases of the first layer, latent weights in place of quantized ones, controls."""

import geometry
import walk
from bnn import WHITENING_FLOOR, BinaryNeuralNetwork, scaled
from graph_ops import QuantConv2D, Quantizer, Sign, Ternary
from measure import COVARIANCE_IMAGES, measure_layers, sampled_patches
from stream import INFERENCE_BATCH, Stream
from walk import Window

# isort: split
import keras
import numpy as np
from tqdm import tqdm

# Training images on which batch-norm statistics are re-estimated.
REFIT_IMAGES = 2000

# --- The first layer in other bases -----------------------------------------------------------


def rotation_correlations(
    network: BinaryNeuralNetwork, x: np.ndarray, x_train: np.ndarray, progress: bool = False
) -> dict:
    """r of the first layer's dot products when it is quantized in another basis.

    Parameters
    ----------
    network : BinaryNeuralNetwork
    x, x_train : ndarray, shape (n, height, width, channels)
        Test images, whose patches are multiplied (`COVARIANCE_POSITIONS` of each of the first
        `COVARIANCE_IMAGES`), and training images, which give principal axes and whitening.
    progress : bool
        Draw a progress bar?

    Returns
    -------
    dict
        By basis ('as is', 'random', 'pca', 'zca') a dict of r by what is quantized there
        ('weights', 'patches', 'both'), each against the dot products of nothing quantized.
        Patches are whitened as (x − mean)Z and multiplied with the latent weights as they are.
        Empty if the first layer is no convolution of pixels.
    """
    layer = network.layers[0]
    if not isinstance(layer, QuantConv2D) or layer.input_quantizer is not None:
        return {}
    statistics = network.first_patches(x_train)
    covariance, d = statistics.covariance, statistics.d
    window = Window(layer.kernel_size, layer.strides)
    patches = sampled_patches(scaled(x[:COVARIANCE_IMAGES]), window, 0)
    patches = patches.reshape(-1, d)
    w = layer.latent_kernel.numpy().reshape(d, -1)
    whitening = geometry.whitening(covariance, WHITENING_FLOOR * np.diag(covariance).mean())
    ternary = isinstance(layer.kernel_quantizer, Ternary)
    threshold = float(layer.kernel_quantizer.threshold(layer.coordinates())) if ternary else 0
    bases = {"as is": (patches, w)}
    for name, rotation in (
        ("random", geometry.random_rotation(d, 0)),
        ("pca", geometry.principal_axes(covariance)),
    ):
        bases[name] = patches @ rotation.T, rotation @ w
    bases["zca"] = (patches - statistics.mean) @ whitening, w
    return {
        name: _quantized_correlations(*basis, threshold)
        for name, basis in tqdm(bases.items(), desc="rotation", disable=not progress)
    }


def _quantized_correlations(patches, w, threshold):
    patches_b, w_b = (geometry.quantized(values, threshold) for values in (patches, w))
    exact = patches @ w
    quantized = {"weights": patches @ w_b, "patches": patches_b @ w, "both": patches_b @ w_b}
    return {
        name: float(geometry.DotProductStatistics(w.shape[1]).update(exact, dots).correlation())
        for name, dots in quantized.items()
    }


# --- Latent weights in place of quantized ones ------------------------------------------------


def substitution_accuracies(
    network: BinaryNeuralNetwork,
    x_train: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    progress: bool = False,
) -> dict:
    """Accuracy with the latent weights of one layer, or all, in place of the quantized ones.

    Latent weights are smaller than ±1, which batch norm's statistics know nothing of: each network
    is measured as it is and with the statistics re-estimated on training images, from the
    substituted layer on. The layers below it are left alone and computed once.

    Parameters
    ----------
    network : BinaryNeuralNetwork
    x_train, x : ndarray, shape (n, height, width, channels)
        Training images, the first `REFIT_IMAGES` of which re-estimate the statistics, and test
        images.
    y : ndarray of integers, shape (n,)
        Labels of `x`.
    progress : bool
        Draw a progress bar?

    Returns
    -------
    dict
        Of (accuracy as it is, accuracy re-estimated), by what is substituted: 'none', the control,
        each quantized layer's name, and 'all'.
    """
    quantized = {layer.name for layer in network.layers if layer.kernel_quantizer is not None}
    steps = dict.fromkeys(step.layer.name for step in walk.steps(network.model))
    names = [name for name in steps if name in quantized]
    images = Stream(network.model, x_train[:REFIT_IMAGES]), Stream(network.model, x)
    experiments = [("none", None, []), ("all", None, names), *((n, n, [n]) for n in names)]
    accuracies = {}
    for name, start, substitute in tqdm(experiments, desc="substitution", disable=not progress):
        while start is not None and images[0].next_product != start:
            for stream in images:
                stream.advance()
        as_it_is, refitted = (network.with_weights(substitute).model for _ in range(2))
        training, testing = images
        training.along(refitted).refit()
        accuracies[name] = tuple(
            float(np.mean(scores.argmax(axis=1) == y))
            for scores in testing.outputs(as_it_is, refitted)
        )
    return accuracies


# --- Time steps -------------------------------------------------------------------------------


def correlations_over_time(
    model: keras.Model,
    x: np.ndarray,
    quantizer: Quantizer = Sign(),  # noqa: B008
) -> dict:
    """r of A·w^c and A·w^b of a recurrent model's products, at each time step.

    Parameters
    ----------
    model : keras.Model
        A product that is formed once for all time steps has them on the second axis of its inputs.
    x : ndarray, shape (n, ...)
        All of them go through the model at once.
    quantizer : graph_ops.Quantizer
        Against which weights are measured in a layer that does not quantize them.

    Returns
    -------
    dict
        By product an ndarray of shape (steps,), pooled over units; nan where all products of a
        step are equal.
    """
    steps = {}

    def look(product):
        wb = product.quantized_kernel if product.kernel_quantizer else quantizer(product.kernel)
        pair = [
            keras.ops.convert_to_numpy(product.dot(product.quantized_inputs, kernel))
            for kernel in (product.kernel, wb)
        ]
        at_once = pair[0].ndim == 3
        steps.setdefault(product.name, []).extend(
            zip(*(np.moveaxis(dots, 1, 0) if at_once else dots[None] for dots in pair), strict=True)
        )

    walk.visit(model, x, look)
    return {
        name: np.array([_correlation(*pair) for pair in pairs]) for name, pairs in steps.items()
    }


def drift_over_time(
    network: BinaryNeuralNetwork, other: BinaryNeuralNetwork, x: np.ndarray
) -> np.ndarray:
    """r of each product of one recurrent network with that of another, at each time step.

    Set against `correlations_over_time`, whose inputs are the same at each step, it tells what the
    recurrence makes of the difference of the weights.

    Parameters
    ----------
    network, other : BinaryNeuralNetwork
        The second as from `with_weights`, with its batch norm re-estimated: products are compared
        after batch norm.
    x : ndarray, shape (n, height, width, channels)

    Returns
    -------
    ndarray, shape (steps,)
        Pooled over units and images, of the states of the first recurrent layer.
    """
    states = [_states(each, x) for each in (network, other)]
    return np.array([_correlation(*pair) for pair in zip(*states, strict=True)])


def _states(network, x):
    """What each time step of the first recurrent layer makes."""
    graph = walk.graph_of(network.model_for(x))
    tensors = {graph.inputs[0]: keras.ops.convert_to_tensor(x)}
    for step in graph.steps:
        step.run(tensors)
    first = [
        step
        for step in graph.steps
        if step.layer.name == f"{network.network_params.network}_1_step"
    ]
    outputs = (keras.tree.flatten(step.outputs)[0] for step in first)
    return [keras.ops.convert_to_numpy(tensors[slot.number]) for slot in outputs]


def _correlation(a, b):
    return float(geometry.DotProductStatistics(a.shape[-1]).update(a, b).correlation())


# --- Controls ---------------------------------------------------------------------------------


def control_measurements(
    network: BinaryNeuralNetwork,
    floating: BinaryNeuralNetwork | None,
    x: np.ndarray,
    x_train: np.ndarray,
    progress: bool = False,
) -> dict:
    """Angles and r of a trained network beside what they are without its training.

    Parameters
    ----------
    network : bnn.BinaryNeuralNetwork
        Trained with binary or ternary weights.
    floating : bnn.BinaryNeuralNetwork or None
        The same network, trained without any quantization; its weights are binarized afterwards.
    x, x_train : ndarray, shape (n, height, width, channels)
        Images on which r is measured, and training images, the first `REFIT_IMAGES` of which
        give the untrained network its batch-norm statistics.
    progress : bool
        Draw a progress bar?

    Returns
    -------
    dict
        By control ('trained', 'untrained', 'float', 'shuffled') a dict by layer of (mean angle in
        radians, pooled r). 'shuffled' has the weights of each unit in a random order and the
        activations of the trained network: the same angles without the structure.
    """
    params = network.network_params, network.training_params
    untrained = BinaryNeuralNetwork(network.in_dim, network.out_dim, *params)
    untrained.refit_batch_norm(x_train[:REFIT_IMAGES])
    networks = {"trained": network, "untrained": untrained, "float": floating}
    networks = {control: one for control, one in networks.items() if one is not None}
    found = {
        control: {
            layer.name: (float(np.nanmean(layer.angles)), layer.weights_dot.r)
            for layer in measure_layers(one, x)
        }
        for control, one in tqdm(networks.items(), desc="controls", disable=not progress)
    }
    return found | {"shuffled": _shuffled_measurements(network, x)}


def _shuffled_measurements(network, x):
    rng, layers = np.random.default_rng(0), {}

    def count(product):
        if product.name not in layers:
            wc = keras.ops.convert_to_numpy(product.kernel)
            columns = rng.permuted(wc.reshape(-1, wc.shape[-1]), axis=0)
            shuffled = columns.reshape(wc.shape)
            quantizer = product.kernel_quantizer or Sign()
            wb = keras.ops.convert_to_numpy(quantizer(shuffled))
            layers[product.name] = shuffled, wb, geometry.DotProductStatistics(wc.shape[-1])
        *kernels, statistics = layers[product.name]
        inputs = product.quantized_inputs
        dots = (keras.ops.convert_to_numpy(product.dot(inputs, kernel)) for kernel in kernels)
        statistics.update(*dots)

    model = network.model_for(x)
    for start in range(0, len(x), INFERENCE_BATCH):
        walk.visit(model, x[start : start + INFERENCE_BATCH], count)
    return {
        name: (float(np.nanmean(geometry.unit_angles(wc, wb))), float(statistics.correlation()))
        for name, (wc, wb, statistics) in layers.items()
    }
