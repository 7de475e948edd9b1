"""What a trained network's geometry is: angles, dot products and weights, layer by layer."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import geometry
from bnn import INFERENCE_BATCH
from data.load_data import data_set_of, missing_files
from utils import saved_parameters

# isort: split
import keras
import numpy as np

# Images that fix the histograms' extents: the first ones, so that no batch size changes them.
PILOT_IMAGES = 50
HISTOGRAM_BINS = 60


@dataclass
class LayerMeasurement:
    """The geometry of one layer.

    Attributes
    ----------
    name : str
    fan_in : int
        d, the length of a unit's weight vector.
    convolutional : bool
    wc, wb : ndarray, shape (…, units)
        Latent and quantized weights.
    threshold : float
        Of the ternary weight quantizer, absolute; 0 for a binary one.
    weights_dot : geometry.DotProductStatistics
        A·w^c (x) against A·w^b (y).
    activations_dot : geometry.DotProductStatistics or None
        A^c·w^b (x) against A^b·w^b (y); None in the first layer, whose input is not quantized.
    """

    name: str
    fan_in: int
    convolutional: bool
    wc: np.ndarray = field(repr=False)
    wb: np.ndarray = field(repr=False)
    threshold: float
    weights_dot: geometry.DotProductStatistics = None
    activations_dot: geometry.DotProductStatistics = None

    @property
    def angles(self):
        """Angle(w^c, w^b) of each unit in radians, shape (units,)."""
        return geometry.unit_angles(self.wc, self.wb)

    @property
    def theory(self):
        """Mean angle in radians of Gaussian weights, and its standard deviation for this fan-in.

        Ternary quantizers have a closed form only for many dimensions: their deviation is nan.
        """
        if self.threshold == 0:
            return geometry.angle_moments(self.fan_in)
        return np.arccos(geometry.ternary_cosine(self.threshold / self.wc.std())), np.nan


def measure_layers(network, x):
    """Measure every layer of a network on images.

    Parameters
    ----------
    network : bnn.BinaryNeuralNetwork
    x : ndarray, shape (n, height, width, channels)
        Images as `network.predict` takes them.

    Returns
    -------
    list of LayerMeasurement
        From the first layer to the output.
    """
    measured = [_weights_of(layer) for layer in network.model.quantized_layers]
    for images in np.array_split(x, -(-len(x) // INFERENCE_BATCH)):
        passes = network.model.layer_inputs(keras.ops.convert_to_tensor(images))
        for result, (layer, inputs, unquantized) in zip(measured, passes, strict=True):
            wb = layer.quantized_kernel()
            quantized = _dot(layer, inputs, wb)
            latent = _dot(layer, inputs, layer.latent_kernel)
            result.weights_dot = _updated(result.weights_dot, latent, quantized)
            if layer is not network.model.quantized_layers[0]:
                before = _dot(layer, unquantized, wb)
                result.activations_dot = _updated(result.activations_dot, before, quantized)
    return measured


def _weights_of(layer):
    wc = layer.latent_kernel.numpy()
    ternary = layer.weight_quantizer == "ternary"
    return LayerMeasurement(
        name=layer.name,
        fan_in=wc[..., 0].size,
        convolutional=wc.ndim == 4,
        wc=wc,
        wb=keras.ops.convert_to_numpy(layer.quantized_kernel()),
        threshold=float(layer.weight_threshold(layer.latent_kernel)) if ternary else 0.0,
    )


def _dot(layer, inputs, kernel):
    return keras.ops.convert_to_numpy(layer.dot_products(inputs, kernel))


def _updated(statistics, x, y):
    """`statistics`, or new ones whose histogram fits the first images, with the pairs added."""
    if statistics is None:
        extent = (*_range(x[:PILOT_IMAGES]), *_range(y[:PILOT_IMAGES]))
        statistics = geometry.DotProductStatistics(x.shape[-1], extent, HISTOGRAM_BINS)
    return statistics.update(x, y)


def _range(values):
    limit = 4 * float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) or 1.0
    if np.array_equal(values[:1], np.rint(values[:1])):
        # Dot products of ±1 vectors move in steps of 2: cells of an even width hold as many of
        # their values each, where others would draw stripes.
        limit = HISTOGRAM_BINS * np.ceil(limit / HISTOGRAM_BINS)
    return -limit, limit


def format_table(measured):
    """The layers' geometry as a plain-text table, angles in degrees."""
    row = "{:<8}{:>7}  {:>16}  {:>16}  {:>6}  {:>8}".format
    lines = [row("layer", "d", "angle(wc, wb)", "Gaussian theory", "r", "|w| = 1")]
    for layer in measured:
        angles = np.degrees(layer.angles)
        lines.append(
            row(
                layer.name,
                layer.fan_in,
                _spread(np.nanmean(angles), np.nanstd(angles)),
                _spread(*np.degrees(layer.theory)),
                f"{layer.weights_dot.correlation():.3f}",
                f"{geometry.saturated_share(layer.wc):.2%}",
            )
        )
    return "\n".join(lines)


def _spread(mean, deviation):
    return f"{mean:.2f}°" if np.isnan(deviation) else f"{mean:.2f}° ± {deviation:.2f}°"


# --- Which network ----------------------------------------------------------------------------


def choose_checkpoint(output="output"):
    """The checkpoint that a notebook should open.

    `BNN_CHECKPOINT` if it is set; else the newest trained run under `output`, the demo's aside;
    the demo's where there is no other, or where the data set of the other is missing.

    Returns
    -------
    path : pathlib.Path
    why : str
        One line for the reader.

    Raises
    ------
    FileNotFoundError
        If there is none at all.
    """
    output = Path(output)
    demo = output / "demo" / "network.keras"
    if os.environ.get("BNN_CHECKPOINT"):
        chosen, why = Path(os.environ["BNN_CHECKPOINT"]), "named by BNN_CHECKPOINT"
    else:
        runs = [path for path in output.glob("*/network.keras") if path != demo]
        chosen = max(runs, key=lambda path: path.stat().st_mtime, default=None)
        why = "the newest trained run"
    if chosen is not None:
        data_set = data_set_of(saved_parameters(chosen)[0])
        if not missing_files(data_set):
            return chosen, f"{chosen}: {why}, on {data_set}"
        why = f"the data set {data_set} of {chosen} is not here, so this is the demo's network"
    else:
        why = "no trained run is here, so this is the demo's network"
    if not demo.is_file():
        raise FileNotFoundError("there is no trained network: run make demo, or set BNN_CHECKPOINT")
    return demo, f"{demo}: {why}"
