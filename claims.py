"""The paper's claims, judged by what was measured on a network.

`templates/claims.toml` holds their conditions. They were fixed before the measurement, all but that
of `angle-scaling`: its first condition, on the exponent of d, held through the first layer alone.
"""

import functools
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path

import numpy as np
from scipy.integrate import cumulative_trapezoid
from scipy.stats import kstest

import geometry

CLAIMS = tomllib.loads(
    (Path(__file__).parent / "templates" / "claims.toml").read_text(encoding="utf-8")
)
# Vectors that the mathematics is sampled from, in each dimension.
SAMPLES = 4000
DIMENSIONS = (3, 10, 27, 1152)


@dataclass
class Claim:
    """A claim and what was measured about it.

    Attributes
    ----------
    id : str
        A key of `CLAIMS`.
    measured : str
        The headline figure.
    holds : bool or None
        None if the claim does not apply to the network; `measured` then says why.
    missed : sequence of str
        If the claim fails, where it fails.
    rows : list of dict
        Table of the figures: for each layer, dimension or basis a dict of column to cell.
    why : str
        `missed` as sentences.
    part : {"evidence", "controls", "mathematics"}
        Evidence is measured on the network. Controls follow from other claims, or are only drawn.
        Mathematics is sampled from random vectors and is the same for every network.
    condition, theory : str
        When the claim holds, and what is predicted.
    """

    id: str
    measured: str
    holds: bool | None
    missed: InitVar[tuple] = ()
    rows: list = field(default_factory=list)

    def __post_init__(self, missed):
        self.holds = None if self.holds is None else bool(self.holds)
        self.why = ". ".join(missed) + "." if missed else ""
        self.part, self.condition, self.theory = (
            CLAIMS[self.id][name] for name in ("part", "condition", "theory")
        )


def judge(measured: dict) -> list[Claim]:
    """Judge every claim.

    Parameters
    ----------
    measured : dict
        What report.json holds, from `report.Report.summary`.

    Returns
    -------
    list of Claim
        In the order of `CLAIMS`.
    """
    network = _Network(measured)
    judges = dict(_JUDGES)
    if measured.get("optimizer") == "bop":
        judges |= {name: functools.partial(_no_latent_weights, name) for name in _ON_LATENT_WEIGHTS}
    return [judges[name](network) for name in CLAIMS]


def tally(holds: Iterable[bool | None]) -> str:
    """How many conditions hold, in one line, of the verdicts on the evidence; None is not one."""
    holds = [verdict for verdict in holds if verdict is not None]
    if not holds:
        return "No condition applies to this network."
    return f"{sum(holds)} of {len(holds)} conditions on this network hold."


# --- Layers of report.json and their tables ---------------------------------------------------


class _Network:
    """The layers of a report by their roles, with what follows from their figures."""

    def __init__(self, measured):
        self.rotation, self.substitution = measured["rotation"], measured["substitution"]
        self.accuracy, self.images = measured["test_accuracy"], measured["test_images"]
        self.layers = [derived(layer) for layer in measured["layers"]]
        self.convs = [one for one in self.layers if one["convolutional"] and one["quantized"]]
        self.inner = [one for one in self.convs if not one["first"]]
        self.first = next(one for one in self.layers if one["first"])
        self.ternary = any(one["tau"] > 0 for one in self.layers)


def figure(layer: dict | None, key: str) -> float | str | dict:
    """A figure of a layer of report.json by its dotted key; nan if it is not there."""
    for name in key.split("."):
        layer = None if layer is None else layer.get(name)
    return np.nan if layer is None else layer


def derived(layer: dict) -> dict:
    """A layer of report.json with the figures that follow from its others."""
    tau, degrees_of_freedom = layer["tau"], max(layer["units"] - 1, 1)
    # Of many dimensions, the same as `geometry.binary_angle` where the threshold is zero.
    limit = np.degrees(np.arccos(geometry.ternary_cosine(tau)))
    near = np.maximum([tau - geometry.NEAR, tau + geometry.NEAR], 0)
    angle, angle_sd, ratio = (figure(layer, key) for key in ("angle", "angle_sd", "spread_ratio"))
    as_is, permuted = (figure(layer, f"{key}.inside_unit_r") for key in ("weights_dot", "permuted"))
    return layer | {
        "limit_angle": limit,
        "off_limit": abs(angle - limit),
        "off_kurtosis": abs(angle - layer["kurtosis_angle"]),
        "off_peaked": abs(angle - layer["peaked_angle"]),
        "gaussian_near": np.diff(geometry.ternary_zero_fraction(near))[0],
        "angle_error": angle_sd / np.sqrt(degrees_of_freedom),
        "angle_sd_error": angle_sd / np.sqrt(2 * degrees_of_freedom),
        "spread_ratio_error": ratio / np.sqrt(2 * degrees_of_freedom),
        "fall": as_is - permuted,
        "off_cosine": permuted - layer["cosine"],
    }


# Of a column its format and the keys of the numbers in it.
_COLUMNS = {
    "layer": ("{}", "layer"),
    "d": ("{}", "d"),
    "units": ("{}", "units"),
    "angle (°)": ("{:.2f} ± {:.2f}", "angle", "angle_error"),
    "sd (°)": ("{:.2f} ± {:.2f}", "angle_sd", "angle_sd_error"),
    "sd of cos / i.i.d.": ("{:.2f} ± {:.2f}", "spread_ratio", "spread_ratio_error"),
    "Gaussian (°)": ("{:.2f}", "limit_angle"),
    "Gaussian at d (°)": ("{:.2f}", "gaussian_angle"),
    "κ": ("{:.2f}", "kurtosis"),
    "of κ (°)": ("{:.2f}", "kurtosis_angle"),
    "of κ and peak (°)": ("{:.2f}", "peaked_angle"),
    "near the threshold": ("{:.1%}", "near_threshold"),
    "Gaussian near it": ("{:.1%}", "gaussian_near"),
    "peak": ("{:.1%}", "peak"),
    "σ": ("{:.3f}", "latent_sd"),
    "σ / initial": ("{:.1f}", "sd_over_initial"),
    "t/σ": ("{:.3f}", "tau"),
    "zeros": ("{:.1%}", "zeros"),
    "Gaussian zeros": ("{:.1%}", "gaussian_zero_share"),
    "at ±1": ("{:.2%}", "saturated"),
    "r": ("{:.3f}", "weights_dot.r"),
    "unit r": ("{:.3f} ± {:.3f}", "weights_dot.unit_r", "weights_dot.unit_r_error"),
    "lowest unit r": ("{:.2f}", "weights_dot.lowest_unit_r"),
    "highest unit r": ("{:.2f}", "weights_dot.highest_unit_r"),
    "predicted unit r": ("{:.3f}", "predicted_unit_r"),
    "unit r off the border": ("{:.3f}", "weights_dot.inside_unit_r"),
    "permuted unit r off the border": ("{:.3f}", "permuted.inside_unit_r"),
    "permuted pooled r": ("{:.3f}", "permuted.r"),
    "mean cosine": ("{:.3f}", "cosine"),
    "first axis": ("{:.1%}", "first_axis"),
    "slope": ("{:.2f}", "weights_dot.slope"),
    "sign changes": ("{:.1%}", "weights_dot.sign_changes"),
    "r of activations": ("{:.3f}", "activations_dot.r"),
    "their unit r": ("{:.3f} ± {:.3f}", "activations_dot.unit_r", "activations_dot.unit_r_error"),
    "their lowest unit r": ("{:.2f}", "activations_dot.lowest_unit_r"),
    "their highest unit r": ("{:.2f}", "activations_dot.highest_unit_r"),
    "their sign changes": ("{:.1%}", "activations_dot.sign_changes"),
    "entries": ("{:.3f}", "entries.r"),
    "textured": ("{:.0%}", "textured.share"),
    "r there": ("{:.3f}", "textured.r"),
    "entries there": ("{:.3f}", "textured.entries_r"),
}


def table(layers: Sequence[dict], titles: str) -> list[dict[str, str]]:
    """A row for each layer of report.json: a dict of column to cell.

    Parameters
    ----------
    layers : sequence of dict
        From `derived`.
    titles : str
        Of the columns, separated by commas. Those of which no layer has a number other than zero
        are left out.
    """
    kept = {
        title: _COLUMNS[title]
        for title in titles.split(", ")
        if any(figure(layer, _COLUMNS[title][1]) not in (0, np.nan) for layer in layers)
    }
    return [{title: _cell(layer, *column) for title, column in kept.items()} for layer in layers]


def _cell(layer, form, *keys):
    first, *others = (figure(layer, key) for key in keys)
    if first != first:  # nan
        return "—"
    form = form.partition(" ±")[0] if np.isnan(others).any() else form
    return form.format(first, *others)


def _range(values, form="{:.3f}"):
    values = list(values)
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _column(layers, key):
    return [figure(layer, key) for layer in layers]


# --- Mathematics: random vectors --------------------------------------------------------------


@functools.cache
def _angle_random():
    rng, grid, p = np.random.default_rng(0), np.linspace(0, np.pi, 20_001), {}
    for d in DIMENSIONS:
        cdf = cumulative_trapezoid(geometry.angle_density(grid, d), grid, initial=0)
        angles = geometry.random_pair_angles(d, SAMPLES, rng)
        p[d] = kstest(angles, lambda a, cdf=cdf: np.interp(a, grid, cdf)).pvalue
    rows = [{"d": d, "p": f"{value:.2f}"} for d, value in p.items()]
    least = min(p.values())
    return Claim("angle-random", f"least p {least:.2f}", least > 0.01, rows=rows)


@functools.cache
def _angle_binary():
    rng, off, rows = np.random.default_rng(1), [], []
    for d in DIMENSIONS:
        cosines = np.cos(geometry.binarization_angles(d, SAMPLES, rng))
        exact, error = geometry.cosine_moments(d)[0], cosines.std() / np.sqrt(SAMPLES)
        off.append(abs(cosines.mean() - exact) / error)
        sampled = f"{cosines.mean():.4f} ± {error:.4f}"
        rows.append({"d": d, "exact mean cosine": f"{exact:.4f}", "sampled mean cosine": sampled})
    measured = f"at most {max(off):.1f} standard errors off"
    return Claim("angle-binary", measured, max(off) <= 3, rows=rows)


@functools.cache
def _rotation():
    rng, limit, off, rows = np.random.default_rng(2), np.degrees(geometry.binary_angle()), [], []
    for d in (100, 500):
        angles = np.degrees(geometry.anisotropic_angles(d, 1000, rng))
        means, errors = angles.mean(axis=1), angles.std(axis=1, ddof=1) / np.sqrt(1000)
        off.append(abs(means - limit))
        cells = (f"{mean:.2f} ± {error:.2f}" for mean, error in zip(means, errors, strict=True))
        rows.append(dict(zip(("d", "plain (°)", "rotated (°)"), (d, *cells), strict=True)))
    plain, rotated = np.transpose(off)
    measured = f"rotated at most {max(rotated):.2f}° off 37.07°, plain at least {min(plain):.2f}°"
    return Claim("rotation", measured, max(rotated) <= 3 and min(plain) > 20, rows=rows)


# --- Angles of the weights --------------------------------------------------------------------


def _angle_layers(network):
    if network.ternary:
        return Claim("angle-layers", "a ternary network: see the claim 'ternary'", None)
    return _judged_angles("angle-layers", network.inner)


def _ternary(network):
    if network.inner and not network.ternary:
        return Claim("ternary", "a binary network: see the claim 'angle-layers'", None)
    return _judged_angles("ternary", network.inner)


def _judged_angles(claim_id, inner):
    if not inner:
        return Claim(claim_id, "no inner layer with quantized weights", None)
    missed = [
        "{layer} is {off_limit:.2f}° off the Gaussian angle, {off_kurtosis:.2f}° off the angle of "
        "κ, and {off_peaked:.2f}° off the angle of κ and peak".format(**one)
        for one in inner
        if one["off_limit"] > 4 or one["off_kurtosis"] > 1
    ]
    measured = (
        f"{_range(_column(inner, 'angle'), '{:.2f}')}°; at most "
        f"{max(_column(inner, 'off_limit')):.2f}° off the Gaussian angle, "
        f"{max(_column(inner, 'off_kurtosis')):.2f}° off the angle of κ"
    )
    titles = (
        "layer, t/σ, angle (°), Gaussian (°), κ, of κ (°), of κ and peak (°), near the threshold, "
        "Gaussian near it"
    )
    return Claim(claim_id, measured, not missed, missed, table(inner, titles))


def _angle_scaling(network):
    layers = [one for one in network.convs if figure(one, "spread_ratio") > 0]
    if not layers:
        why = "no quantized convolutional layer whose units differ in their angles"
        return Claim("angle-scaling", why, None)
    missed = [
        "{layer} has {spread_ratio:.2f} times the sd of i.i.d. weights".format(**one)
        for one in layers
        if abs(np.log(one["spread_ratio"])) > np.log(geometry.SPREAD_FACTOR)
    ]
    fits = [
        f"{exponent:.2f} ± {error:.2f} {which}".replace("-", "−")
        for which, exponent, error in spread_exponents(layers)
    ]
    ratios = _range(_column(layers, "spread_ratio"), "{:.2f}")
    measured = f"{ratios} times the sd of i.i.d. weights"
    measured += f"; exponent of d {', '.join(fits)}" if fits else ""
    rows = table(layers, "layer, d, units, sd (°), sd of cos / i.i.d.")
    return Claim("angle-scaling", measured, not missed, missed, rows)


def spread_exponents(layers: Sequence[dict]) -> list[tuple[str, float, float]]:
    """Exponents of d that fit the layers' standard deviations of the angle.

    Parameters
    ----------
    layers : sequence of dict
        Of report.json: convolutional layers with more than one unit each.

    Returns
    -------
    list of (str, float, float)
        Which layers, exponent, standard error: with the first layer and without it. Fewer than
        two fan-ins have no exponent. The logarithm of the standard deviation of n units has a
        variance of about 1/(2(n − 1)).
    """
    fits = []
    for which, some in (
        ("with the first layer", layers),
        ("without it", [one for one in layers if not one["first"]]),
    ):
        d, sd, units = (np.array(_column(some, name)) for name in ("d", "angle_sd", "units"))
        if len(np.unique(d)) > 1:
            logs = np.log(d) - np.log(d).mean()
            error = np.sqrt(np.sum(logs**2 / (2 * (units - 1)))) / np.sum(logs**2)
            fits.append((which, float(geometry.scaling_exponent(d, sd)), float(error)))
    return fits


# --- Dot products -----------------------------------------------------------------------------


def _weights_dot(network):
    first, inner = network.first, network.inner
    if not inner:
        return Claim("weights-dot", "no inner layer with quantized weights", None)
    r, r_first = _column(inner, "weights_dot.r"), first["weights_dot"]["r"]
    missed = [
        f"{one['layer']} has r = {own:.3f}"
        for one, own in zip(inner, r, strict=True)
        if not own >= 0.9
    ]
    if not r_first < min(r):
        missed.append(f"{first['layer']}, the first layer, is not below {min(r):.3f}")
    titles = (
        "layer, r, unit r, lowest unit r, highest unit r, predicted unit r, mean cosine, "
        "first axis, sign changes"
    )
    measured = f"inner layers {_range(r)}; {first['layer']} {r_first:.3f}"
    return Claim("weights-dot", measured, not missed, missed, table((first, *inner), titles))


def _activations_dot(network):
    layers = [one for one in network.inner if one["quantized_input"]]
    if not layers:
        return Claim("activations-dot", "no inner layer with quantized weights and input", None)
    r = _column(layers, "activations_dot.r")
    missed = [
        f"{one['layer']} has r = {own:.3f}; its first axis holds "
        f"{_cell(one, *_COLUMNS['first axis'])} of the variance"
        for one, own in zip(layers, r, strict=True)
        if not own >= 0.85
    ]
    titles = (
        "layer, r of activations, their unit r, their lowest unit r, their highest unit r, "
        "their sign changes, entries, textured, r there, entries there"
    )
    return Claim("activations-dot", f"r {_range(r)}", not missed, missed, table(layers, titles))


def _permutation(network):
    layers = [one for one in network.inner if np.isfinite(one["fall"])]
    if not layers:
        why = "no inner layer with quantized weights and positions off the border"
        return Claim("permutation", why, None)
    missed = [
        "{layer} falls by {fall:.3f}, to {off_cosine:+.3f} from the cosine".format(**one)
        for one in layers
        if abs(one["off_cosine"]) > 0.03 or one["fall"] < 0.08
    ]
    measured = (
        f"falls by {_range(_column(layers, 'fall'))}, to at most "
        f"{max(map(abs, _column(layers, 'off_cosine'))):.4f} from the cosine"
    )
    titles = (
        "layer, unit r off the border, permuted unit r off the border, mean cosine, "
        "permuted pooled r"
    )
    return Claim("permutation", measured, not missed, missed, table(layers, titles))


def _first_layer(network):
    first, bases = network.first, network.rotation
    rows = [
        {"basis": basis, **{name: f"{r:.3f}" for name, r in values.items()}}
        for basis, values in bases.items()
    ]
    if not (bases and first["quantized"]):
        why = "no convolutional first layer with quantized weights"
        return Claim("first-layer", why, None, rows=rows)
    r, whitened = bases["as is"]["weights"], bases["zca"]["weights"]
    unit_r, predicted = first["weights_dot"]["unit_r"], first["predicted_unit_r"]
    checks = {
        f"first axis {first['first_axis']:.1%}": first["first_axis"] >= 0.5,
        f"r {r:.3f} as is, {whitened:.3f} whitened": whitened - r >= 0.15,
        f"unit r {unit_r:.3f}, predicted {predicted:.3f}": abs(predicted - unit_r) <= 0.03,
    }
    missed = [text for text, passed in checks.items() if not passed]
    rest = figure(first, "deflated_unit_r")
    measured = "; ".join(checks) + f", {rest:.3f} without the variance of the first axis"
    return Claim("first-layer", measured, not missed, missed, rows)


# --- Accuracy and weights ---------------------------------------------------------------------


def _substitution(network):
    trained, accuracies = network.accuracy, network.substitution
    rows = [
        {
            "substituted": name,
            "as they are": f"{as_they_are:.2%}",
            "re-estimated": f"{refitted:.2%}",
            "loss (points)": f"{100 * (trained - refitted):.2f}",
        }
        for name, (as_they_are, refitted) in accuracies.items()
    ]
    if not network.inner:
        return Claim("substitution", "no inner layer with quantized weights", None, rows=rows)
    refitted = {one["layer"]: accuracies[one["layer"]][1] for one in network.inner}
    missed = [
        f"{name} loses {100 * (trained - accuracy):.2f} points"
        for name, accuracy in refitted.items()
        if trained - accuracy > 0.02
    ]
    error = np.sqrt(trained * (1 - trained) / network.images)
    measured = (
        f"inner layers {_range(refitted.values(), '{:.2%}')}, as trained {trained:.2%} ± "
        f"{error:.2%}"
    )
    return Claim("substitution", measured, not missed, missed, rows)


def _weights_hist(network):
    shares = _range(_column(network.layers, "saturated"), "{:.2%}")
    return Claim("weights-hist", f"at ±1 lie {shares} of a layer's weights", True)


_ON_LATENT_WEIGHTS = (
    *("angle-layers", "angle-scaling", "weights-dot", "permutation", "first-layer", "ternary"),
    *("substitution", "weights-hist"),
)


def _no_latent_weights(name, network):
    why = "Bop keeps no latent weights; in the tables −m, its average of gradients, stands for them"
    return Claim(name, why, None)


_JUDGES = {
    "angle-random": lambda _: _angle_random(),
    "angle-binary": lambda _: _angle_binary(),
    "angle-layers": _angle_layers,
    "angle-scaling": _angle_scaling,
    "weights-dot": _weights_dot,
    "activations-dot": _activations_dot,
    "permutation": _permutation,
    "first-layer": _first_layer,
    "rotation": lambda _: _rotation(),
    "ternary": _ternary,
    "substitution": _substitution,
    "weights-hist": _weights_hist,
}
