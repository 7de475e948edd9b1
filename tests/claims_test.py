"""Every claim: its condition met and missed, its part, its figures."""

import dataclasses
import json
import re

import numpy as np
import pytest

import claims
import measure
import report
from bnn import BinaryNeuralNetwork, NetworkParams
from experiments import substitution_accuracies
from walk import Window

# These need no quantized convolutional layer.
ALWAYS_JUDGED = {"angle-random", "angle-binary", "rotation", "weights-hist"}


def dot_products(r, inside=None, units=64):
    inside = r if inside is None else inside
    units = np.ones(units)
    histogram = np.eye(4, dtype=int)
    return measure.DotProducts(
        r, inside, 2.0, 0.1, r * units, inside * units, (-1, 1, -1, 1), histogram
    )


def exemplary(threshold=0.0):
    """A report in which every claim holds: Gaussian weights, and correlations as published."""
    rng, layers = np.random.default_rng(0), []
    for i, d in enumerate((27, 288, 576)):
        wc = 0.18 * rng.standard_normal((3, 3, d // 9, 64))
        layer = measure.LayerMeasurement(
            name=f"conv_{i + 1}",
            fan_in=d,
            window=Window((3, 3)),
            first=i == 0,
            wc=wc,
            wb=np.sign(wc) * (np.abs(wc) > threshold),
            threshold=threshold,
            quantized=True,
            quantized_input=i > 0,
        )
        cosine = np.cos(layer.angles).mean()
        layer.weights_dot = dot_products(0.96 if i else 0.57)
        layer.activations_dot = dot_products(0.95) if i else None
        layer.entries = dot_products(0.8) if i else None
        layer.permuted = dot_products(0.85, cosine)
        layer.spectrum = np.array([3.0, 1.0, *np.zeros(d - 2)])
        layer.predicted_r = np.full(64, 0.96 if i else 0.56)
        layer.deflated_r = None if i else np.full(64, 0.85)
        layer.textured = np.array([0.9, 0.8, 0.95]) if i else None
        layers.append(layer)
    bases = {"as is": 0.57, "random": 0.77, "pca": 0.77, "zca": 0.83}
    rotation = {
        name: dict(zip(("weights", "patches", "both"), (r, r, r / 2), strict=True))
        for name, r in bases.items()
    }
    substitution = dict.fromkeys(("none", "all", "conv_1", "conv_2", "conv_3"), (0.1, 0.89))
    about = {
        "data_set": "cifar-10",
        "test_images": 10_000,
        "test_accuracy": 0.9,
        "network_params": {},
        "seconds": 1,
        "peak_memory_mb": 1,
    }
    return report.Report("0" * 64, about, layers, rotation, substitution)


def judged(made):
    return {claim.id: claim for claim in made.claims()}


def test_an_exemplary_network_bears_out_every_claim():
    by_id = judged(exemplary())
    assert {name for name, claim in by_id.items() if not claim.holds} == {"ternary"}
    by_id = judged(exemplary(threshold=0.02))
    assert {name for name, claim in by_id.items() if not claim.holds} == {"angle-layers"}


def test_a_float_network_is_told_that_nothing_is_quantized():
    made = exemplary()
    for layer in made.layers:
        layer.quantized = layer.quantized_input = False
    told = {claim.id: claim.measured for claim in made.claims() if claim.holds is None}
    assert set(told) == set(judged(made)) - ALWAYS_JUDGED
    assert all("quantized" in measured for measured in told.values()), told


def test_bop_has_no_latent_weights_to_judge():
    made = exemplary()
    made.about["optimizer"] = "bop"
    told = {claim.id: claim.measured for claim in made.claims() if claim.holds is None}
    assert set(told) == set(judged(made)) - ALWAYS_JUDGED - {"activations-dot"} | {"weights-hist"}
    assert all("Bop keeps no latent weights" in measured for measured in told.values())


def weights_of_shape(made, kurtosis):
    rng, layer = np.random.default_rng(1), made.layers[1]
    sample = {
        "uniform": rng.uniform(-1, 1, layer.wc.shape),
        "laplace": rng.laplace(0, 0.1, layer.wc.shape),
    }
    layer.wc = sample[kurtosis]
    layer.wb = np.sign(layer.wc)


def peak_at_zero(made):
    """Every tenth input channel has weights near zero."""
    layer = made.layers[1]
    layer.wc[:, :, ::10] = 1e-3


def two_scales(made):
    """Half of the units have weights of one magnitude, so their kurtosis differs."""
    layer = made.layers[2]
    layer.wc[..., ::2] = 0.2 * np.sign(layer.wc[..., ::2])


# Each breaks one condition, or one part of it, by little.
BREACHES = {
    "angle-layers: uniform": lambda made: weights_of_shape(made, "uniform"),
    "angle-layers: laplace": lambda made: weights_of_shape(made, "laplace"),
    "angle-layers: kurtosis": two_scales,
    "angle-layers: peak": peak_at_zero,
    "angle-scaling": two_scales,
    "weights-dot: inner": lambda made: vars(made.layers[2].weights_dot).update(r=0.899),
    "weights-dot: first": lambda made: vars(made.layers[0].weights_dot).update(r=0.97),
    "activations-dot": lambda made: vars(made.layers[1].activations_dot).update(r=0.849),
    "permutation: cosine": lambda made: vars(made.layers[1].permuted).update(
        inside_unit_r=np.full(64, 0.76)
    ),
    "permutation: fall": lambda made: vars(made.layers[1].weights_dot).update(
        inside_unit_r=np.full(64, 0.87)
    ),
    "first-layer: axis": lambda made: vars(made.layers[0]).update(spectrum=np.array([0.49, 0.51])),
    "first-layer: whitening": lambda made: made.rotation["zca"].update(weights=0.71),
    "first-layer: predicted": lambda made: vars(made.layers[0]).update(
        predicted_r=np.full(64, 0.535)
    ),
    "substitution": lambda made: made.substitution.update(conv_2=(0.9, 0.879)),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_missed_condition_is_reported_and_explained(breach):
    made = exemplary()
    BREACHES[breach](made)
    claim = judged(made)[breach.split(":")[0]]
    assert claim.holds is False and claim.why
    text = report.report_text(made.judged())
    assert f"## {claim.id}\n\n{claim.theory}\n\n**Does not hold:** {claim.why}\n\n" in text


def test_the_spread_is_judged_layer_by_layer_and_the_exponents_are_printed():
    made = exemplary()
    claim = judged(made)["angle-scaling"]
    number = r"(−\d\.\d\d) ± \d\.\d\d"
    whole, inner = re.search(
        f"{number} with the first layer, {number} without", claim.measured
    ).groups()
    layers = made.summary()["layers"]
    for text, some in ((whole, layers), (inner, layers[1:])):
        points = np.log([(layer["d"], layer["angle_sd"]) for layer in some]).T
        assert float(text.replace("−", "-")) == pytest.approx(np.polyfit(*points, 1)[0], abs=0.005)
    assert [row["units"] for row in claim.rows] == ["64"] * 3
    # Units that are much more alike than independent draws miss it, too.
    made.layers[2].wc = np.tile(made.layers[2].wc[..., :1], 64)
    made.layers[2].wc[0, 0, 0] = 0.2 * np.linspace(0.9, 1.1, 64)
    made.layers[2].wb = np.sign(made.layers[2].wc)
    claim = judged(made)["angle-scaling"]
    assert not claim.holds and claim.why.startswith("conv_3 has 0.0")


def test_what_an_older_report_did_not_measure_is_left_out():
    summary = exemplary().summary()
    for layer in summary["layers"]:
        del layer["near_threshold"], layer["textured"], layer["weights_dot"]["unit_r_error"]
    by_id = {claim.id: claim for claim in claims.judge(summary)}
    assert "near the threshold" not in by_id["angle-layers"].rows[0]
    assert by_id["weights-dot"].rows[0]["unit r"] == "0.570"
    assert by_id["angle-layers"].holds and by_id["weights-dot"].holds


def test_the_tally_counts_the_evidence_that_applies():
    def tally():
        return claims.tally([claim.holds for claim in made.claims() if claim.part == "evidence"])

    made = exemplary()
    assert tally() == "6 of 6 conditions on this network hold."
    vars(made.layers[1].permuted).update(inside_unit_r=np.full(64, 0.5))
    assert not judged(made)["permutation"].holds
    assert tally() == "6 of 6 conditions on this network hold."
    vars(made.layers[1].activations_dot).update(r=0.5)
    assert tally() == "5 of 6 conditions on this network hold."
    for layer in made.layers:
        layer.quantized = layer.quantized_input = False
    assert tally() == "No condition applies to this network."


@pytest.mark.parametrize("threshold", [0, 0.02])
def test_figures_stand_in_tables_with_a_row_for_each_layer(threshold):
    made = exemplary(threshold)
    by_id = judged(made)
    assert list(by_id) == list(claims.CLAIMS)
    assert {claim.part for claim in by_id.values()} == {"evidence", "controls", "mathematics"}
    assert all(len(claim.measured) < 140 for claim in by_id.values())
    inner = ["conv_2", "conv_3"]
    for name in ("activations-dot", "permutation", "ternary" if threshold else "angle-layers"):
        assert [row["layer"] for row in by_id[name].rows] == inner
    for name in ("angle-scaling", "weights-dot"):
        assert [row["layer"] for row in by_id[name].rows] == ["conv_1", *inner]
    assert [row["substituted"] for row in by_id["substitution"].rows] == list(made.substitution)
    entries = [vars(claim) for claim in by_id.values()]
    assert json.loads(json.dumps(entries)) == entries


def test_layers_that_are_not_judged_change_no_verdict():
    made = exemplary()
    made.substitution["conv_1"] = made.substitution["all"] = (0.1, 0.1)
    vars(made.layers[0].permuted).update(inside_unit_r=np.full(64, 0.5))
    dense = dataclasses.replace(
        made.layers[2], name="fc_1", window=None, weights_dot=dot_products(0.1)
    )
    made.layers.append(dense)
    assert [c.id for c in made.claims() if not c.holds] == ["ternary"]


def test_what_cannot_be_judged_is_not():
    params = NetworkParams(conv=[], max_pool=[], fc=[5])
    network = BinaryNeuralNetwork((7, 6, 2), 4, params)
    x = np.random.default_rng(0).integers(0, 256, (20, 7, 6, 2), dtype=np.uint8)
    y = np.arange(20) % 4
    layers = measure.measure_network(network, x, x)
    about = {**exemplary().about, "test_accuracy": 0.25}
    substitution = substitution_accuracies(network, x, x, y)
    made = report.Report("", about, layers, {}, substitution)
    holds = {claim.id for claim in made.claims() if claim.holds is not None}
    assert holds == ALWAYS_JUDGED
    assert "fc_1" in report.report_text(
        {**made.summary(), "claims": list(map(vars, made.claims()))}
    )
