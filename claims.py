"""The paper's claims, judged by what was measured on a network.

`judge` takes a report: an object with the attributes `layers`, `convs`, `inner`, `ternary`,
`rotation`, `substitution` and `about`, as `report.Report` has them. Each claim is judged by a
condition that was fixed before the measurement.
"""

import functools
from dataclasses import dataclass, field

import numpy as np
from scipy.integrate import cumulative_trapezoid
from scipy.stats import kstest

import geometry

# --- Claims -----------------------------------------------------------------------------------

# The conditions under which the claims hold. r is the correlation of dot products.
CONDITIONS = {
    "angle-random": "Kolmogorov–Smirnov p > 0.01",
    "angle-binary": "sampled mean within 3 standard errors",
    "angle-layers": "inner layers within 4° of 37.07°, and within 1° of the angle that their κ "
    "predicts",
    "angle-scaling": "exponent −0.5 ± 0.15 over the convolutional layers",
    "weights-dot": "r ≥ 0.9 in the inner layers, r of the first layer below all of them",
    "activations-dot": "r ≥ 0.85 in the inner layers",
    "permutation": "permuted r within 0.03 of the mean cosine, r at least 0.08 higher without the "
    "permutation",
    "first-layer": "first axis ≥ 50% of the patch variance; r after ZCA whitening at least 0.15 "
    "above r as is; unit r within 0.03 of the predicted one",
    "rotation": "rotated mean within 3° of 37.07°, plain mean off by more than 20°",
    "ternary": "inner layers within 4° of the Gaussian angle at their t/σ, and within 1° of the "
    "angle that their κ and t/σ predict",
    "substitution": "loss of at most 2 points in each inner layer",
    "weights-hist": "drawn",
}
# The claims that say nothing, or nothing new, about the network. All others are evidence.
_PARTS = {
    "angle-random": "mathematics",
    "angle-binary": "mathematics",
    "rotation": "mathematics",
    "permutation": "controls",
    "weights-hist": "controls",
}


@dataclass
class Claim:
    """A claim and what was measured about it.

    Attributes
    ----------
    id : str
        A key of `CONDITIONS`.
    theory : str
        What is predicted, in a sentence or two.
    measured : str
        The headline figure.
    holds : bool or None
        None if the claim does not apply to the network; `measured` then says why.
    why : str
        If the claim fails, where it fails and what explains it.
    rows : list of dict
        Table of the figures: for each layer, dimension or basis a dict of column to cell.
    condition : str
        When the claim holds; from `CONDITIONS`.
    part : {"evidence", "controls", "mathematics"}
        Evidence is measured on the network. Controls follow from other claims, or are only drawn.
        Mathematics is sampled from random vectors and is the same for every network.
    """

    id: str
    theory: str
    measured: str
    holds: bool | None
    why: str = ""
    rows: list = field(default_factory=list)
    condition: str = field(init=False)
    part: str = field(init=False)

    def __post_init__(self):
        self.condition = CONDITIONS[self.id]
        self.part = _PARTS.get(self.id, "evidence")


def judge(report):
    """Judge every claim of `CONDITIONS`.

    Parameters
    ----------
    report : report.Report

    Returns
    -------
    list of Claim
        In the order of `CONDITIONS`.
    """
    return [judge_claim(report) for judge_claim in _JUDGES]


def tally(claims):
    """How many conditions hold, in one line, of the evidence that applies to the network."""
    holds = [c.holds for c in claims if c.part == "evidence" and c.holds is not None]
    if not holds:
        return "No condition applies to this network."
    return f"{sum(holds)} of {len(holds)} conditions on this network hold."


# --- Text -------------------------------------------------------------------------------------


def mean_and_error(values, form="{:.3f}"):
    """Mean of the finite values with its standard error, as text."""
    values = np.asarray(values)[np.isfinite(values)]
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{form.format(values.mean())} ± {form.format(error)}"


def predicted_r(layer):
    """Mean over units of the r that the covariance of the inputs predicts, as text."""
    return "unknown" if layer.predicted_r is None else f"{np.nanmean(layer.predicted_r):.3f}"


def first_axis_share(layer):
    """Share of the first principal axis in the variance of a layer's inputs, as text."""
    if layer.spectrum is None:
        return "unknown"
    return f"{layer.spectrum[0] / layer.spectrum.sum():.1%}"


def _range(values, form="{:.3f}"):
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _cosine(layer):
    return np.nanmean(np.cos(layer.angles))


def _not_judged(claim_id, why="no inner layer with quantized weights"):
    return Claim(claim_id, "—", why, None)


# --- Mathematics: random vectors --------------------------------------------------------------

# Vectors in each dimension.
SAMPLES = 4000
DIMENSIONS = (3, 10, 27, 1152)


@functools.cache
def _random_pairs():
    """By dimension, p of the sampled angles of random pairs under the density of theory."""
    rng, grid, p = np.random.default_rng(0), np.linspace(0, np.pi, 20_001), {}
    for d in DIMENSIONS:
        cdf = cumulative_trapezoid(geometry.angle_density(grid, d), grid, initial=0)
        angles = geometry.random_pair_angles(d, SAMPLES, rng)
        p[d] = kstest(angles, lambda a, cdf=cdf: np.interp(a, grid, cdf)).pvalue
    return p


@functools.cache
def _binarized():
    """By dimension, cosines of random vectors with their signs."""
    rng = np.random.default_rng(1)
    return {d: np.cos(geometry.binarization_angles(d, SAMPLES, rng)) for d in DIMENSIONS}


@functools.cache
def _anisotropic():
    """By dimension, angles in degrees of plain and of rotated binarization."""
    rng = np.random.default_rng(2)
    return {d: np.degrees(geometry.anisotropic_angles(d, 1000, rng)) for d in (100, 500)}


def _angle_random(_):
    p = _random_pairs()
    return Claim(
        "angle-random",
        "The angle between two random vectors in d dimensions has a density proportional to "
        "sin^(d−2).",
        f"least p {min(p.values()):.2f}",
        bool(min(p.values()) > 0.01),
        rows=[{"d": d, "p": f"{value:.2f}"} for d, value in p.items()],
    )


def _angle_binary(_):
    off, rows = [], []
    for d, cosines in _binarized().items():
        exact, error = geometry.cosine_moments(d)[0], cosines.std() / np.sqrt(SAMPLES)
        off.append(abs(cosines.mean() - exact) / error)
        sampled = f"{cosines.mean():.4f} ± {error:.4f}"
        rows.append({"d": d, "exact mean cosine": f"{exact:.4f}", "sampled mean cosine": sampled})
    return Claim(
        "angle-binary",
        "The mean cosine between a Gaussian vector and its sign has a closed form. It tends to "
        "√(2/π), the cosine of 37.07°.",
        f"at most {max(off):.1f} standard errors off",
        bool(max(off) <= 3),
        rows=rows,
    )


def _rotation(_):
    limit = np.degrees(geometry.binary_angle())
    samples = _anisotropic()
    plain, rotated = np.abs([angles.mean(axis=1) - limit for angles in samples.values()]).T
    return Claim(
        "rotation",
        "Vectors whose entries differ in spread make a larger angle than 37.07° with their sign. "
        "A random rotation before the binarization restores 37.07°.",
        f"rotated at most {max(rotated):.2f}° off 37.07°, plain at least {min(plain):.2f}°",
        bool(max(rotated) <= 3 and min(plain) > 20),
        rows=[
            {
                "d": d,
                "plain (°)": mean_and_error(angles[0], "{:.2f}"),
                "rotated (°)": mean_and_error(angles[1], "{:.2f}"),
            }
            for d, angles in samples.items()
        ],
    )


# --- Angles of the weights --------------------------------------------------------------------


def _angle_layers(report):
    if report.ternary:
        return _not_judged("angle-layers", "a ternary network: see the claim 'ternary'")
    theory = "Gaussian weights make an angle of 37.07° with their sign."
    return _judged_angles("angle-layers", theory, report)


def _ternary(report):
    if report.inner and not report.ternary:
        return _not_judged("ternary", "a binary network: see the claim 'angle-layers'")
    theory = "The angle between Gaussian weights and their ternary form depends on t/σ alone."
    return _judged_angles("ternary", theory, report)


def _judged_angles(claim_id, theory, report):
    if not report.inner:
        return _not_judged(claim_id)
    angles, off_gaussian, off_shape, missed, rows = [], [], [], [], []
    for layer in report.inner:
        # The same as `geometry.binary_angle` where the threshold is zero.
        gaussian = np.degrees(np.arccos(geometry.ternary_cosine(layer.tau)))
        shape, peaked = np.degrees([layer.shape_angle, layer.peaked_angle[0]])
        angles.append(np.degrees(np.nanmean(layer.angles)))
        off_gaussian.append(abs(angles[-1] - gaussian))
        off_shape.append(abs(angles[-1] - shape))
        if off_gaussian[-1] > 4 or off_shape[-1] > 1:
            missed.append(
                f"{layer.name} is {off_gaussian[-1]:.2f}° off the Gaussian angle, "
                f"{off_shape[-1]:.2f}° off the angle of κ, and {abs(angles[-1] - peaked):.2f}° "
                "off the angle of κ and peak"
            )
        near = geometry.ternary_zero_fraction(layer.tau + geometry.NEAR)
        near -= geometry.ternary_zero_fraction(max(layer.tau - geometry.NEAR, 0))
        rows.append(
            {
                "layer": layer.name,
                **({"t/σ": f"{layer.tau:.3f}"} if report.ternary else {}),
                "angle (°)": mean_and_error(np.degrees(layer.angles), "{:.2f}"),
                "Gaussian (°)": f"{gaussian:.2f}",
                "κ": f"{layer.kurtosis:.2f}",
                "of κ (°)": f"{shape:.2f}",
                "of κ and peak (°)": f"{peaked:.2f}",
                "near the threshold": f"{layer.near_threshold:.1%}",
                "Gaussian near it": f"{near:.1%}",
            }
        )
    theory += (
        " Weights of another distribution make another angle: 'of κ' is the angle of a generalized "
        "Gaussian with the layer's kurtosis κ. 'Of κ and peak' adds a peak at the threshold (zero "
        f"for the sign), so that as many weights lie within {geometry.NEAR} root mean squares of "
        "the threshold as in the layer ('near the threshold')."
    )
    measured = (
        f"{_range(angles, '{:.2f}')}°; at most {max(off_gaussian):.2f}° off the Gaussian "
        f"angle, {max(off_shape):.2f}° off the angle of κ"
    )
    return Claim(claim_id, theory, measured, not missed, _sentences(missed), rows)


def _sentences(texts):
    return ". ".join(texts) + "." if texts else ""


def _angle_scaling(report):
    convs = report.convs
    d = np.array([layer.fan_in for layer in convs])
    if len(np.unique(d)) < 2:
        why = "fewer than two fan-ins among quantized convolutional layers"
        return _not_judged("angle-scaling", why)
    sds = np.array([np.nanstd(layer.angles) for layer in convs])
    pooled = np.array([layer.spread_ratio for layer in convs])
    exponent = geometry.scaling_exponent(d, sds)
    # The logarithm of a standard deviation from n units has a variance of about 1/(2(n − 1)).
    logs = np.log(d) - np.log(d).mean()
    units = np.array([layer.wc.shape[-1] for layer in convs])
    error = np.sqrt(np.sum(logs**2 / (2 * np.maximum(units - 1, 1)))) / np.sum(logs**2)
    holds = bool(abs(exponent + 0.5) <= 0.15)
    why = (
        "The spread over units differs from that of units whose weights are drawn from one pool. "
        "Divided by the ratio of the two, the spreads have the exponent "
        f"{geometry.scaling_exponent(d, sds / pooled):.3f}."
    )
    return Claim(
        "angle-scaling",
        "The standard deviation of the angle over units falls as d^(−0.5).",
        f"exponent {exponent:.3f} ± {error:.3f}",
        holds,
        "" if holds else why,
        [
            {
                "layer": layer.name,
                "d": layer.fan_in,
                "sd of the angle (°)": f"{np.degrees(sd):.2f}",
                "sd of the cosine / sd of one pool": f"{ratio:.2f}",
            }
            for layer, sd, ratio in zip(convs, sds, pooled, strict=True)
        ],
    )


# --- Dot products -----------------------------------------------------------------------------


def _weights_dot(report):
    if not report.inner:
        return _not_judged("weights-dot")
    first, inner = report.first, report.inner
    least = min(layer.weights_dot.r for layer in inner)
    missed = [
        f"{layer.name} has r = {layer.weights_dot.r:.3f}"
        for layer in inner
        if not layer.weights_dot.r >= 0.9
    ]
    if not first.weights_dot.r < least:
        missed.append(f"{first.name}, the first layer, is not below {least:.3f}")
    rows = [
        {
            "layer": layer.name,
            "r": f"{layer.weights_dot.r:.3f}",
            "unit r": mean_and_error(layer.weights_dot.unit_r),
            "predicted unit r": predicted_r(layer),
            "mean cosine": f"{_cosine(layer):.3f}",
            "first axis": first_axis_share(layer),
            "sign changes": f"{layer.weights_dot.sign_changes:.1%}",
        }
        for layer in (first, *inner)
    ]
    theory = (
        "Dot products with quantized weights correlate with those of the latent weights. r is "
        "predicted from the covariance of the layer's inputs, of whose variance the first "
        "principal axis holds a share ('first axis'). For uncorrelated inputs r is the "
        "mean cosine of the angle."
    )
    measured = (
        f"inner layers {_range([layer.weights_dot.r for layer in inner])}; "
        f"{first.name} {first.weights_dot.r:.3f}"
    )
    return Claim("weights-dot", theory, measured, not missed, _sentences(missed), rows)


def _activations_dot(report):
    layers = [layer for layer in report.inner if layer.quantized_input]
    if not layers:
        why = "no inner layer with quantized weights and input"
        return _not_judged("activations-dot", why)
    rs = [layer.activations_dot.r for layer in layers]
    missed = [
        f"{layer.name} has r = {r:.3f}; its first axis holds {first_axis_share(layer)} of the "
        "variance"
        for layer, r in zip(layers, rs, strict=True)
        if not r >= 0.85
    ]
    theory = (
        "Dot products with quantized activations A^b correlate with those of the activations "
        "A^c before the quantizer. 'Entries' is r of A^c with A^b, entry by entry: 0.798 for "
        "Gaussian entries and the sign. It is r of the dot products, too, if the entries are "
        "uncorrelated and have the same distribution. 'Textured' is the share of patches "
        "that are not constant; the last two columns are r at these patches alone."
    )
    measured = f"r {_range(rs)}"
    rows = [_activations_row(layer) for layer in layers]
    return Claim("activations-dot", theory, measured, not missed, _sentences(missed), rows)


def _activations_row(layer):
    pairs = layer.activations_dot
    share, entries, dots = np.full(3, np.nan) if layer.textured is None else layer.textured
    return {
        "layer": layer.name,
        "r": f"{pairs.r:.3f}",
        "unit r": mean_and_error(pairs.unit_r),
        "lowest … highest": " … ".join(
            f"{r:.2f}" for r in np.nanpercentile(pairs.unit_r, (0, 100))
        ),
        "sign changes": f"{pairs.sign_changes:.1%}",
        "entries": f"{layer.entries.r:.3f}",
        "textured": f"{share:.0%}",
        "r there": f"{dots:.3f}",
        "entries there": f"{entries:.3f}",
    }


def _permutation(report):
    layers = [layer for layer in report.inner if np.isfinite(layer.permuted.inside_r)]
    if not layers:
        why = "no inner layer with quantized weights and positions off the border"
        return _not_judged("permutation", why)
    missed, falls, off, rows = [], [], [], []
    for layer in layers:
        cosine = _cosine(layer)
        before, after = (
            np.nanmean(pairs.inside_unit_r) for pairs in (layer.weights_dot, layer.permuted)
        )
        falls.append(before - after)
        off.append(abs(after - cosine))
        if off[-1] > 0.03 or falls[-1] < 0.08:
            missed.append(
                f"{layer.name} falls by {falls[-1]:.3f}, to {after - cosine:+.3f} from the cosine"
            )
        rows.append(
            {
                "layer": layer.name,
                "r": mean_and_error(layer.weights_dot.inside_unit_r),
                "permuted r": mean_and_error(layer.permuted.inside_unit_r),
                "mean cosine": f"{cosine:.3f}",
                "predicted unit r": predicted_r(layer),
                "first axis": first_axis_share(layer),
            }
        )
    theory = (
        "A permutation of all inputs of a layer removes their correlations, so that r falls "
        "to the cosine of the angle. r is the mean over units, without positions at the "
        "border. (Pooled r is higher where activations have a non-zero mean.)"
    )
    measured = f"falls by {_range(falls)}, to at most {max(off):.4f} from the cosine"
    return Claim("permutation", theory, measured, not missed, _sentences(missed), rows)


_BASES = (
    "The table gives r of the first layer when its weights, its patches or both are quantized in "
    "another basis."
)


def _first_layer(report):
    bases = [
        {"basis": basis, **{name: f"{r:.3f}" for name, r in values.items()}}
        for basis, values in report.rotation.items()
    ]
    first = report.first
    if not (bases and first.quantized):
        why = "no convolutional first layer with quantized weights"
        return Claim("first-layer", _BASES, why, None, rows=bases)
    shares = first.spectrum / first.spectrum.sum()
    as_is, whitened = (report.rotation[name]["weights"] for name in ("as is", "zca"))
    predicted, measured = np.nanmean(first.predicted_r), np.nanmean(first.weights_dot.unit_r)
    unit_r = f"unit r {mean_and_error(first.weights_dot.unit_r)}"
    checks = {
        f"first axis {shares[0]:.1%}": shares[0] >= 0.5,
        f"r {as_is:.3f} as is, {whitened:.3f} whitened": whitened - as_is >= 0.15,
        f"{unit_r}, predicted {predicted:.3f}": abs(predicted - measured) <= 0.03,
    }
    failed = [text for text, passed in checks.items() if not passed]
    cosine = _cosine(first)
    why = (
        f"Missed: {'; '.join(failed)}. The first three axes hold {shares[:3].sum():.1%}. r would "
        f"be the mean cosine, {cosine:.3f}, if the patches had the same variance along all "
        f"axes. That is {cosine - as_is:.3f} above r as is."
    )
    theory = (
        f"The covariance of the patches predicts a unit r of {predicted_r(first)}. Without "
        "variance along the first principal axis it would be "
        f"{np.nanmean(first.deflated_r):.3f}. {_BASES}"
    )
    return Claim("first-layer", theory, "; ".join(checks), not failed, why if failed else "", bases)


# --- Accuracy and weights ---------------------------------------------------------------------


def _substitution(report):
    trained = report.about["test_accuracy"]
    theory = (
        "The quantized weights of one layer, or of all, are replaced by the latent weights. "
        "Test accuracy is given with batch norm's statistics as they are, and re-estimated. "
        "The loss is that after re-estimation."
    )
    rows = [
        {
            "substituted": name,
            "as they are": f"{as_they_are:.2%}",
            "re-estimated": f"{refitted:.2%}",
            "loss (points)": f"{100 * (trained - refitted):.2f}",
        }
        for name, (as_they_are, refitted) in report.substitution.items()
    ]
    if not report.inner:
        why = "no inner layer with quantized weights"
        return Claim("substitution", theory, why, None, rows=rows)
    refitted = {layer.name: report.substitution[layer.name][1] for layer in report.inner}
    missed = [name for name, accuracy in refitted.items() if trained - accuracy > 0.02]
    error = np.sqrt(trained * (1 - trained) / report.about["test_images"])
    why = (
        f"The loss exceeds 2 points in {', '.join(missed)}. Re-estimation alone, with nothing "
        f"substituted, gives {report.substitution['none'][1]:.2%}."
    )
    measured = (
        f"inner layers {_range(refitted.values(), '{:.2%}')}, as trained {trained:.2%} ± "
        f"{error:.2%}"
    )
    return Claim("substitution", theory, measured, not missed, why if missed else "", rows)


def _weights_hist(report):
    shares = _range([geometry.saturated_share(layer.wc) for layer in report.layers], "{:.2%}")
    measured = f"figures/weights.png; at ±1 lie {shares} of a layer's weights"
    return Claim("weights-hist", "—", measured, True)


# In the order of `CONDITIONS`.
_JUDGES = (
    _angle_random,
    _angle_binary,
    _angle_layers,
    _angle_scaling,
    _weights_dot,
    _activations_dot,
    _permutation,
    _first_layer,
    _rotation,
    _ternary,
    _substitution,
    _weights_hist,
)
