"""Layers in order of harm, accuracy against bytes, a plan, and the model that it describes."""

import dataclasses
import math
from collections.abc import Sequence

import graph_ops
import walk
from stream import refit_batch_norm
from survey_inputs import Site
from survey_measure import TENSOR, Scores, best, packed_bytes, quantizer_named, write_quantized
from utils import require

# isort: split
import keras
import numpy as np
from tqdm import tqdm

# --- Order and curve --------------------------------------------------------------------------


def harm(layer: dict, name: str) -> float:
    """Predicted harm of a quantizer in a layer, 1 − r; more than any where r is not known."""
    r = layer["quantizers"][name]["predicted_r"]
    return 2.0 if r is None or math.isnan(r) else 1 - r


class Planner:
    """Accuracies and bytes of a model some of whose layers are quantized.

    Parameters
    ----------
    scores : survey_measure.Scores
    sites : list of survey_inputs.Site
    layers : list of dict
        As `survey.survey` lists them, in the order of `sites`.
    names : sequence of str
        Quantizers.
    progress : bool
    """

    def __init__(
        self,
        scores: Scores | None,
        sites: Sequence[Site],
        layers: Sequence[dict],
        names: Sequence[str],
        progress: bool = False,
    ):
        self.scores, self.layers, self.progress = scores, layers, progress
        self.sites = {site.name: site for site in sites}
        # The fewest levels: in this quantizer's order of harm the layers are quantized.
        self.first = min(names, key=lambda n: (quantizer_named(n).levels, n.endswith(TENSOR)))
        # Of two equal choices the one with a scale per unit is never worse.
        self.names = [name for name in names if not name.endswith(TENSOR)] or list(names)

    def orders(self) -> dict[str, list[str]]:
        """Names of the layers from least harm to most: predicted and, with labels, measured."""
        harms = {"predicted": lambda layer: harm(layer, self.first)}
        if self.scores is not None:
            harms["measured"] = lambda layer: layer["quantizers"][self.first]["lost"]
        return {
            key: [layer["name"] for layer in sorted(self.layers, key=of)]
            for key, of in harms.items()
        }

    def point(self, chosen: dict[str, str | None]) -> dict:
        """Bytes and accuracies with the quantizers `chosen`, a dict by layer."""
        chosen = {name: quantizer for name, quantizer in chosen.items() if quantizer}
        sites = [self.sites[name] for name in chosen]
        found = self.scores.of_plan(sites, chosen.values())
        return {"bytes": self.bytes_of(chosen), **found}

    def bytes_of(self, chosen: dict[str, str]) -> int:
        saved = (
            packed_bytes(self.sites[name], None)
            - packed_bytes(self.sites[name], quantizer_named(quantizer))
            for name, quantizer in chosen.items()
        )
        return 4 * self.scores.model.count_params() - sum(saved)

    def curves(self, orders: dict[str, list[str]]) -> dict:
        """For each of the `orders` a point after each layer that is quantized."""
        return {"quantizer": self.first, **{key: self._curve(o) for key, o in orders.items()}}

    def _curve(self, order):
        chosen, points = {}, [{"layer": None, **self.point({})}]
        for layer in tqdm(order, desc="curve", unit="layer", disable=not self.progress):
            chosen[layer] = self.first
            points.append({"layer": layer, **self.point(chosen)})
        return points

    def plan(self, lose: float) -> dict:
        """The fewest bytes that cost at most `lose` points of accuracy.

        One limit on the harm holds for all layers, and each takes the quantizer of fewest bytes
        within it. Bisection finds the largest limit that the accuracy of the whole allows: once
        for the predicted harm, and once for the accuracy that is lost with the layer alone
        quantized.

        Returns
        -------
        dict
            lose, by ('predicted' or 'measured', of which the better is returned), limit,
            float_accuracy, float_bytes, bytes, accuracy, refitted_accuracy, quantizers by layer
            (None: float32), and every point that was tried.
        """
        base, tried = self.point({}), []
        lowest = base["accuracy"] - lose / 100 - 1e-9
        measured = lambda layer, name: layer["quantizers"][name]["lost"]  # noqa: E731
        found = []
        for by, of in (("predicted", harm), ("measured", measured)):
            limits = sorted({of(layer, name) for layer in self.layers for name in self.names})
            low, high = -1, len(limits)
            plan = {"by": by, "limit": None, **base, "quantizers": dict.fromkeys(self.sites)}
            while high - low > 1:
                middle = (low + high) // 2
                chosen = self._choice(of, limits[middle])
                point = {"by": by, "limit": limits[middle], **self.point(chosen)}
                tried.append(point)
                if best(point) >= lowest:
                    low, plan = middle, {**point, "quantizers": chosen}
                else:
                    high = middle
            found.append(plan)
        return {
            "lose": lose,
            "float_accuracy": base["accuracy"],
            "float_bytes": self.bytes_of({}),
            **min(found, key=lambda plan: plan["bytes"]),
            "tried": sorted(tried, key=lambda point: (point["bytes"], -point["limit"])),
        }

    def _choice(self, of, limit):
        """For each layer the quantizer of fewest bytes whose harm is within the limit, or None."""
        chosen = {}
        for layer in self.layers:
            within = [name for name in self.names if of(layer, name) <= limit]
            cost = {name: layer["quantizers"][name]["bytes"] for name in within}
            chosen[layer["name"]] = min(cost, key=cost.get, default=None)
        return chosen


# --- The model that a plan describes ----------------------------------------------------------

_QUANTIZED = {
    keras.layers.Dense: graph_ops.QuantDense,
    keras.layers.Conv2D: graph_ops.QuantConv2D,
    graph_ops.QuantDense: graph_ops.QuantDense,
    graph_ops.QuantConv2D: graph_ops.QuantConv2D,
}


def apply(model: keras.Model, plan: dict, x: np.ndarray | None = None) -> keras.Model:
    """A copy of a model that is quantized as a plan says.

    Dense becomes `QuantDense` and Conv2D `QuantConv2D`, with the quantizer in place and the float
    weights as latent weights: these can be fine-tuned. Layers of other types get quantized weights
    written in.

    Parameters
    ----------
    model : keras.Model
        The one that was surveyed.
    plan : dict
        A survey's 'plan', or a dict of quantizers by layer.
    x : ndarray, optional
        Images on which batch norm's statistics are re-estimated, as they were when the plan's
        accuracy was measured. A model that is not functional needs some to be copied.

    Returns
    -------
    keras.Model
        Keras saves it and `checkpoint.open_model` opens it.

    Raises
    ------
    ValueError
        If the plan names a layer that the model lacks, or the model cannot be copied.
    """
    chosen = {name: q for name, q in plan.get("quantizers", plan).items() if q}
    kernels = walk.kernels(model)
    unknown = [name for name in chosen if name not in kernels]
    require(not unknown, f"the model has no layer {', '.join(unknown)}")
    by_layer = {id(kernels[name][0]): quantizer_named(q) for name, q in chosen.items()}
    copy = _copied(model, by_layer, x)
    copy.set_weights(model.get_weights())
    places = {id(variable): number for number, variable in enumerate(model.weights)}
    quantizing = {
        id(layer.latent_kernel)
        for layer in copy._flatten_layers(include_self=False)
        if getattr(layer, "kernel_quantizer", None) is not None
    }
    for name, quantizer in chosen.items():
        kernel = kernels[name][1]
        variable = copy.weights[places[id(kernel.variable)]]
        if id(variable) not in quantizing:
            write_quantized(
                dataclasses.replace(kernel, variable=variable), quantizer_named(quantizer)
            )
    if x is not None:
        refit_batch_norm(copy, x)
    return copy


def _copied(model, quantizers, x):
    """A copy whose layers have the kernel quantizers of `quantizers`, by id, if their type can."""

    def clone(layer):
        kind = _QUANTIZED.get(type(layer))
        config = layer.get_config()
        if kind is None or id(layer) not in quantizers:
            return type(layer).from_config(config)
        quantizer = keras.saving.serialize_keras_object(quantizers[id(layer)])
        return kind.from_config({**config, "kernel_quantizer": quantizer})

    if walk.graph_of(model) is not None:
        return keras.models.clone_model(model, clone_function=clone, recursive=True)
    require(x is not None, f"the model {model.name} is not functional: it is copied only with x")
    try:
        copy = type(model).from_config(model.get_config())
        copy(x[:1])
    except Exception as error:  # Whatever the class of someone else raises.
        raise ValueError(f"the model {model.name} cannot be copied: {error}") from None
    return copy
