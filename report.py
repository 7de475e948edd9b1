"""Judge the paper's claims by what was measured on a trained network, and keep the report.

`python report.py CHECKPOINT` measures everything and writes the report beside the checkpoint.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import geometry
from bnn import INFERENCE_BATCH, BinaryNeuralNetwork
from data.load_data import data_set_of, load_data, missing_files
from measure import (
    COVARIANCE_IMAGES,
    COVARIANCE_POSITIONS,
    REFIT_IMAGES,
    WIDEST_COVARIANCE,
    DotProducts,
    layer_weights,
    measure_network,
    read_geometry,
    rotation_correlations,
    substitution_accuracies,
)
from plotting import run_figures
from utils import (
    atomic_path,
    file_digest,
    markdown_table,
    one_line_errors,
    require,
    saved_parameters,
    write_json,
    write_text,
)

# isort: split
import numpy as np
from scipy.integrate import cumulative_trapezoid
from scipy.stats import kstest

# --- Claims -----------------------------------------------------------------------------------

# The claims of the paper with the conditions under which they are said to hold, fixed beforehand.
CONDITIONS = {
    "angle-random": "Kolmogorov–Smirnov p > 0.01",
    "angle-binary": "sampled mean within 3 standard errors",
    "angle-layers": "inner layers within 4° of 37.07°, and within 1° of the angle that its units' "
    "mean kurtosis alone predicts (generalized Gaussian, below)",
    "angle-scaling": "fitted exponent −0.5 ± 0.15 over the conv layers",
    "weights-dot": "r ≥ 0.9 in the inner layers, layer 1 below all of them",
    "activations-dot": "r ≥ 0.85",
    "permutation": "per-unit r away from the border, mean over units, within 0.03 of the mean "
    "cosine (after the permutation this must be so; pooled r is higher where activations have a "
    "non-zero mean); the evidence is the fall: r unpermuted at least 0.08 higher in every inner "
    "layer",
    "first-layer": "first principal axis ≥ 50 % of the patch variance; r after ZCA whitening at "
    "least 0.15 above r as is; r on test images within 0.03 of the one predicted from the "
    "covariance of training images",
    "rotation": "rotated mean within 3° at d = 100, 500; plain off by more than 20°",
    "ternary": "inner layers within 4° of the Gaussian closed form at their t/σ, within 1° of the "
    "generalized Gaussian's at their kurtosis and t/σ",
    "substitution": "inner layers each within 2 points",
    "weights-hist": "drawn",
}


@dataclass
class Claim:
    """One line of the report.

    Attributes
    ----------
    id, condition : str
        As in `CONDITIONS`.
    theory, measured : str
        Figures; means over units or samples with their standard errors.
    holds : bool or None
        None: there is nothing to judge, and `measured` says why.
    why : str
        Where the claim fails, what else was measured that explains it.
    """

    id: str
    theory: str
    measured: str
    holds: bool | None
    why: str = ""

    @property
    def condition(self):
        return CONDITIONS[self.id]


@dataclass
class Report:
    """All that was measured on one checkpoint.

    Attributes
    ----------
    sha256 : str
        Of the checkpoint.
    about : dict
        Data set, numbers of images, accuracy, parameters, time and memory.
    layers : list of LayerMeasurement
    rotation, substitution : dict
        From `rotation_correlations` (empty without a convolutional layer) and
        `substitution_accuracies`.
    """

    sha256: str
    about: dict
    layers: list
    rotation: dict
    substitution: dict

    @property
    def convs(self):
        """The convolutional layers with quantized weights."""
        return [layer for layer in self.layers if layer.convolutional and layer.quantized]

    @property
    def inner(self):
        """Those of them that claims about inner layers judge: all but the network's first."""
        return [layer for layer in self.convs if layer is not self.layers[0]]

    @property
    def ternary(self):
        return any(layer.threshold > 0 for layer in self.layers)

    def claims(self):
        """Every claim of `CONDITIONS`, judged.

        Returns
        -------
        list of Claim
        """
        judges = (
            lambda _: _angle_random(),
            lambda _: _angle_binary(),
            _angle_layers,
            _angle_scaling,
            _weights_dot,
            _activations_dot,
            _permutation,
            _first_layer,
            lambda _: _rotation(),
            _ternary,
            _substitution,
            _weights_hist,
        )
        return [
            Claim(claim_id, *judge(self))
            for claim_id, judge in zip(CONDITIONS, judges, strict=True)
        ]


NO_INNER = "—", "no inner layer with quantized weights", None


def _figure(values, form="{:.3f}"):
    """Mean over units with its standard error."""
    values = np.asarray(values)[np.isfinite(values)]
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{form.format(values.mean())} ± {form.format(error)}"


def _each(layers, text):
    return ", ".join(f"{layer.name} {text(layer)}" for layer in layers)


def _degrees(radians):
    return f"{np.degrees(radians):.2f}°"


# Random vectors need no network; they stand here so that the report is whole.
SAMPLES = 4000


@functools.cache
def _angle_random():
    rng, values = np.random.default_rng(0), {}
    for d in (3, 10, 27, 1152):
        angles = geometry.angle(*rng.standard_normal((2, SAMPLES, d)))
        grid = np.linspace(0, np.pi, 20_001)
        cdf = cumulative_trapezoid(geometry.angle_density(grid, d), grid, initial=0)
        values[d] = kstest(angles, lambda a, grid=grid, cdf=cdf: np.interp(a, grid, cdf)).pvalue
    measured = "p = " + ", ".join(f"{p:.2f} (d = {d})" for d, p in values.items())
    return "density of the angle ∝ sin^(d−2)", measured, bool(min(values.values()) > 0.01)


@functools.cache
def _angle_binary():
    rng, theory, measured, off = np.random.default_rng(1), [], [], []
    for d in (3, 10, 27, 1152):
        u = rng.standard_normal((SAMPLES, d))
        cosines = np.abs(u).sum(axis=1) / np.linalg.norm(u, axis=1) / np.sqrt(d)
        mean = geometry.cosine_moments(d)[0]
        error = cosines.std() / np.sqrt(SAMPLES)
        theory.append(f"{mean:.4f} (d = {d})")
        measured.append(f"{cosines.mean():.4f} ± {error:.4f}")
        off.append(abs(cosines.mean() - mean) / error)
    limit = _degrees(geometry.binary_angle())
    return f"mean cos {', '.join(theory)} → {limit}", ", ".join(measured), max(off) <= 3


def _angle_layers(report):
    if report.ternary:
        return "—", "a ternary network: see the claim 'ternary'", None
    return _judged_angles(report, geometry.binary_angle())


def _ternary(report):
    if report.inner and not report.ternary:
        return "—", "a binary network: see the claim 'angle-layers'", None
    return _judged_angles(report, None)


def _judged_angles(report, gaussian):
    if not report.inner:
        return NO_INNER
    theory, holds, why = [], True, []
    for layer in report.inner:
        normal = np.arccos(geometry.ternary_cosine(layer.tau)) if gaussian is None else gaussian
        measured = np.nanmean(layer.angles)
        off = (
            np.degrees(np.abs(measured - normal)),
            np.degrees(np.abs(measured - layer.shape_angle)),
        )
        theory.append(f"{layer.name} {_degrees(normal)} Gaussian")
        theory[-1] += f" at t/σ {layer.tau:.3f}" if gaussian is None else ""
        theory[-1] += f", {_degrees(layer.shape_angle)} at κ {layer.kurtosis:.2f}"
        if off[0] > 4 or off[1] > 1:
            holds = False
            why.append(f"{layer.name} is {off[0]:.2f}° off the Gaussian and {off[1]:.2f}° off the ")
            why[-1] += f"angle of its κ; {_peak(layer, measured)}"
    measured = _each(report.inner, lambda layer: _figure(np.degrees(layer.angles), "{:.2f}") + "°")
    return "; ".join(theory), measured, holds, ". ".join(why)


def _peak(layer, measured):
    """What the weights near the quantizer's threshold have to do with a layer's angle."""
    angle, peak = layer.peaked_angle
    where = "±t" if layer.threshold else "zero"
    smooth = geometry.ternary_zero_fraction(layer.tau + geometry.NEAR)
    smooth -= geometry.ternary_zero_fraction(max(layer.tau - geometry.NEAR, 0))
    text = f"{layer.near_threshold:.1%} of its weights lie within {geometry.NEAR} root mean "
    text += f"squares of {where} (Gaussian {smooth:.1%}); a peak of {peak:.1%} of the weights "
    text += "there, beside a generalized Gaussian, has as many, the same κ over all, and the "
    text += f"angle {_degrees(angle)}, {np.degrees(abs(measured - angle)):.2f}° off; "
    return text + f"{geometry.saturated_share(layer.wc):.2%} sit at ±1"


def _angle_scaling(report):
    convs = report.convs
    d = np.array([layer.fan_in for layer in convs])
    if len(np.unique(d)) < 2:
        return "−0.5", "fewer than two fan-ins among quantized convolutional layers", None
    sds = np.array([np.nanstd(layer.angles) for layer in convs])
    exponent = geometry.scaling_exponent(d, sds)
    # The logarithm of a standard deviation from n units has a variance of about 1/(2(n − 1)).
    logs = np.log(d) - np.log(d).mean()
    units = np.array([layer.wc.shape[-1] for layer in convs])
    error = np.sqrt(np.sum(logs**2 / (2 * np.maximum(units - 1, 1)))) / np.sum(logs**2)
    holds = bool(abs(exponent + 0.5) <= 0.15)
    ratios = _each(convs, lambda layer: f"{layer.spread_ratio:.2f}")
    why = f"spread over units, relative to that of units drawn from one pool: {ratios}; divided by "
    pooled = [layer.spread_ratio for layer in convs]
    why += f"these the spreads have the exponent {geometry.scaling_exponent(d, sds / pooled):.3f}"
    sd = _each(convs, lambda layer: _degrees(np.nanstd(layer.angles)))
    return "−0.5", f"{exponent:.3f} ± {error:.3f} (sd: {sd})", holds, "" if holds else why


def _weights_dot(report):
    if not report.inner:
        return NO_INNER
    first = report.layers[0]
    rs = [layer.weights_dot.r for layer in report.inner]
    holds = min(rs) >= 0.9 and first.weights_dot.r < min(rs)
    measured = _each([first, *report.inner], _pooled_r("weights_dot"))
    theory = "predicted from the input covariance, mean over units: "
    predicted = [layer for layer in (first, *report.inner) if layer.predicted_r is not None]
    theory += _each(predicted, lambda layer: f"{np.nanmean(layer.predicted_r):.3f}")
    why = "the first axis of the inputs holds " + _each(
        predicted, lambda layer: f"{layer.spectrum[0] / layer.spectrum.sum():.1%}"
    )
    why += "; cosine of the angle, which is r for uncorrelated inputs: "
    why += _each(predicted, lambda layer: f"{np.nanmean(np.cos(layer.angles)):.3f}")
    return theory, measured, bool(holds), "" if holds else why


def _pooled_r(which):
    def text(layer):
        pairs = getattr(layer, which)
        return (
            f"{pairs.r:.3f} (units {_figure(pairs.unit_r)}, sign changes {pairs.sign_changes:.1%})"
        )

    return text


def _activations_dot(report):
    layers = [layer for layer in report.inner if layer.quantized_input]
    if not layers:
        return "—", "no inner layer with quantized weights and input", None
    holds = min(layer.activations_dot.r for layer in layers) >= 0.85
    theory = "r of A^c with A^b, entry by entry: "
    theory += _each(layers, lambda layer: f"{layer.entries.r:.3f}")
    why = ". ".join(_entries(layer) for layer in layers if layer.activations_dot.r < 0.85)
    measured = _each(layers, _pooled_r("activations_dot"))
    return theory, measured, bool(holds), "" if holds else why


def _entries(layer):
    """What the single entries of a layer's input have to do with r of its dot products."""
    share, entries, dots = layer.textured
    low, high = np.nanpercentile(layer.activations_dot.unit_r, (0, 100))
    text = f"{layer.name}: entry by entry A^c correlates with A^b by {layer.entries.r:.3f} "
    text += "(Gaussian entries, binary: 0.798), which is r for inputs whose entries are alike and "
    text += f"uncorrelated. {share:.0%} of the patches are not the same all over; these alone "
    text += f"correlate by {entries:.3f} in their entries and by {dots:.3f} in their dot products. "
    return text + f"First axis {_first_share(layer)}; r by unit from {low:.2f} to {high:.2f}"


def _permutation(report):
    layers = [layer for layer in report.inner if np.isfinite(layer.permuted.inside_r)]
    if not layers:
        return "—", "no inner layer with quantized weights and positions off the border", None
    holds, why, falls = True, [], []
    for layer in layers:
        cosine = np.nanmean(np.cos(layer.angles))
        before, after = (
            np.nanmean(pairs.inside_unit_r) for pairs in (layer.weights_dot, layer.permuted)
        )
        falls.append(before - after)
        if abs(after - cosine) > 0.03 or before - after < 0.08:
            holds = False
            why.append(
                f"{layer.name}: r {before:.3f} falls by {before - after:.3f} to {after:.3f}, "
                f"{after - cosine:+.3f} from the cosine; predicted r of the unpermuted inputs "
                f"{_predicted(layer)}, of which the first axis holds {_first_share(layer)}"
            )
    theory = "cosine " + _each(layers, lambda layer: f"{np.nanmean(np.cos(layer.angles)):.3f}")
    measured = "unpermuted → permuted: " + _each(
        layers,
        lambda layer: (
            f"{_figure(layer.weights_dot.inside_unit_r)} → {_figure(layer.permuted.inside_unit_r)}"
        ),
    )
    return theory, measured, holds, "; ".join(why)


def _predicted(layer):
    return "unknown" if layer.predicted_r is None else f"{np.nanmean(layer.predicted_r):.3f}"


def _first_share(layer):
    return (
        "unknown" if layer.spectrum is None else f"{layer.spectrum[0] / layer.spectrum.sum():.1%}"
    )


def _first_layer(report):
    first = report.layers[0]
    if not (report.rotation and first.quantized):
        return "—", "no convolutional first layer with quantized weights", None
    shares = first.spectrum / first.spectrum.sum()
    as_is, whitened = (report.rotation[name]["weights"] for name in ("as is", "zca"))
    predicted, measured = np.nanmean(first.predicted_r), np.nanmean(first.weights_dot.unit_r)
    checks = {
        f"first axis {shares[0]:.1%}": shares[0] >= 0.5,
        f"r {as_is:.3f} as is and {whitened:.3f} whitened": whitened - as_is >= 0.15,
        f"unit r {_figure(first.weights_dot.unit_r)}": abs(predicted - measured) <= 0.03,
    }
    failed = [text for text, passed in checks.items() if not passed]
    cosine = np.nanmean(np.cos(first.angles))
    why = f"fails: {'; '.join(failed)}. The first three axes hold {shares[:3].sum():.1%}. "
    why += f"Where all axes are alike r is the cosine of the angle, {cosine:.3f} for these "
    why += f"weights, {cosine - as_is:.3f} above r as is. The covariance predicts a unit r of "
    why += f"{predicted:.3f}, and "
    why += f"{np.nanmean(first.deflated_r):.3f} had its first axis no variance"
    theory = f"predicted unit r {_figure(first.predicted_r)}, without the first axis "
    theory += _figure(first.deflated_r)
    return theory, "; ".join(checks), not failed, why if failed else ""


@functools.cache
def _rotation():
    rng, texts, holds = np.random.default_rng(2), [], True
    limit = np.degrees(geometry.binary_angle())
    for d in (100, 500):
        x = rng.standard_normal((1000, d)) * np.exp(0.1 * (np.arange(d) - d / 2))
        rotation = geometry.random_rotation(d, rng)
        plain, rotated = (
            np.degrees(geometry.angle(x, y))
            for y in (np.sign(x), geometry.rotated_binarization(x, rotation))
        )
        texts.append(f"d = {d}: plain {_figure(plain, '{:.2f}')}°, ")
        texts[-1] += f"rotated {_figure(rotated, '{:.2f}')}°"
        holds &= abs(rotated.mean() - limit) <= 3 and abs(plain.mean() - limit) > 20
    return f"{limit:.2f}°", "; ".join(texts), bool(holds)


def _substitution(report):
    names = [layer.name for layer in report.inner]
    if not names:
        return NO_INNER
    trained = report.about["test_accuracy"]
    losses = {name: trained - report.substitution[name][1] for name in names}
    holds = max(losses.values()) <= 0.02
    error = np.sqrt(trained * (1 - trained) / report.about["test_images"])
    measured = ", ".join(
        f"{name} {as_it_is:.2%} → {refitted:.2%}"
        for name, (as_it_is, refitted) in report.substitution.items()
    )
    control = report.substitution["none"]
    why = f"re-estimation alone, nothing substituted, gives {control[1]:.2%}; unit r of the layers "
    why += _each(report.inner, lambda layer: f"{np.nanmean(layer.weights_dot.unit_r):.3f}")
    theory = f"{trained:.2%} ± {error:.2%} as trained"
    return theory, f"as it is → re-estimated: {measured}", bool(holds), "" if holds else why


def _weights_hist(report):
    shares = _each(report.layers, lambda layer: f"{geometry.saturated_share(layer.wc):.2%}")
    return "—", f"at ±1: {shares}; figures/weights.png", True


# --- Report -----------------------------------------------------------------------------------

# Arrays of a layer that figures need, and of its pairs of dot products.
_LAYER_ARRAYS = ("spectrum", "predicted_r", "deflated_r", "textured")
_PAIRS = ("weights_dot", "activations_dot", "entries", "permuted")


def measure_checkpoint(checkpoint, data_dir=None, images=None, batch_size=INFERENCE_BATCH):
    """Measure everything on the network in a checkpoint, with progress bars.

    Parameters
    ----------
    checkpoint : path-like
    data_dir : path-like, optional
        Folder of the data sets.
    images : int, optional
        Only the first test images; all of them by default.
    batch_size : int

    Returns
    -------
    Report

    Raises
    ------
    FileNotFoundError
        If the checkpoint or its data set is missing.
    ValueError
        If the checkpoint is damaged, or images or batch_size is not positive.
    """
    for name, value in (("images", images or 1), ("batch_size", batch_size)):
        require(value >= 1, f"{name} must be at least 1, not {value}")
    started = time.perf_counter()
    network, digest = _opened(checkpoint)
    data_set = data_set_of(network.in_dim)
    data = load_data(data_set, data_dir)
    x, y = data.x_test[:images], data.y_test[:images]
    # The other training images would take memory for nothing.
    x_train = data.x_train[: max(COVARIANCE_IMAGES, REFIT_IMAGES)].copy()
    del data
    layers = measure_network(network, x, x_train, batch_size, progress=True)
    rotation = {}
    if network.network_params.conv:
        rotation = rotation_correlations(network, x, x_train)
    substitution = substitution_accuracies(network, x_train, x, y, progress=True)
    about = {
        "data_set": data_set,
        "test_images": len(x),
        "test_accuracy": substitution["none"][0],
        "network_params": dataclasses.asdict(network.network_params),
        "seconds": round(time.perf_counter() - started),
        "peak_memory_mb": _peak_memory_mb(),
    }
    return Report(digest, about, layers, rotation, substitution)


def _opened(checkpoint):
    """The network in a checkpoint and the sha256 of the very file that it came from."""
    saved_parameters(checkpoint)  # Says what is wrong with it, if anything is.
    digest = file_digest(checkpoint, "sha256")
    network = BinaryNeuralNetwork.load(checkpoint)
    require(
        file_digest(checkpoint, "sha256") == digest,
        f"{checkpoint} changed while it was read: is its training still running?",
    )
    return network, digest


def _peak_memory_mb():
    import resource  # Not on Windows.

    unit = 1024**2 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def write_report(report, folder):
    """Write report.md, report.json, report.npz with the arrays, and `figures/` to `folder`."""
    folder = Path(folder)
    arrays = {"sha256": np.array(report.sha256)}
    for layer in report.layers:
        for name in _LAYER_ARRAYS:
            if getattr(layer, name) is not None:
                arrays[f"{layer.name}/{name}"] = getattr(layer, name)
        for which in _PAIRS:
            pairs = getattr(layer, which)
            for name, value in vars(pairs).items() if pairs else ():
                arrays[f"{layer.name}/{which}/{name}"] = np.asarray(value)
    with atomic_path(folder / "report.npz") as temporary:
        np.savez_compressed(temporary, **arrays)
    claims = report.claims()
    summary = {
        "sha256": report.sha256,
        **report.about,
        "claims": [{**vars(claim), "condition": claim.condition} for claim in claims],
        "layers": [layer_summary(layer) for layer in report.layers],
        "rotation": report.rotation,
        "substitution": report.substitution,
    }
    write_json(folder / "report.json", _plain(summary))
    write_text(folder / "report.md", report_text(report, claims))
    run_figures(report.layers, folder / "figures", read_geometry(folder / "geometry.csv"))


def stored_report(checkpoint):
    """The report beside a checkpoint, or None unless it is whole and of this very checkpoint."""
    folder = Path(checkpoint).parent
    network, digest = _opened(checkpoint)
    try:
        summary = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        with np.load(folder / "report.npz", allow_pickle=False) as archive:
            arrays = dict(archive)
        if not summary["sha256"] == str(arrays["sha256"]) == digest:
            return None
        names = ("data_set", "test_images", "test_accuracy", "network_params")
        about = {name: summary[name] for name in (*names, "seconds", "peak_memory_mb")}
        rotation, substitution = summary["rotation"], summary["substitution"]
        layers = [_restored(layer, arrays) for layer in layer_weights(network)]
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error):
        return None
    return Report(digest, about, layers, rotation, substitution)


def find_report(checkpoint, images=2000):
    """The stored report of a checkpoint, or else one measured, on fewer images, and stored.

    Returns
    -------
    Report
    why : str
        One line for the reader.
    """
    stored = stored_report(checkpoint)
    if stored is not None:
        return stored, f"stored report of this checkpoint, on {stored.about['test_images']} images"
    measured = measure_checkpoint(checkpoint, images=images)
    write_report(measured, Path(checkpoint).parent)
    count = measured.about["test_images"]
    return measured, f"no stored report of this checkpoint: measured on {count} test images"


def ternary_layers(results="results"):
    """Where the layers of the ternary networks whose reports lie under `results` stand.

    Returns
    -------
    dict
        Name of the network to an array of shape (layers, 3): the threshold τ = t/σ, the mean
        angle in radians, and the share of weights that are zero. Other seeds' layers, from
        folders of that name with _seed1, _seed2 behind it, follow.
    """
    networks = defaultdict(list)
    for path in sorted(Path(results).glob("*/report.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["network_params"]["levels"] == 3:
            networks[path.parent.name.partition("_seed")[0]] += [
                # The shares are those of −1, 0 and 1.
                (layer["tau"], np.radians(layer["angle"]), layer["shares"][1])
                for layer in summary["layers"]
            ]
    return {name: np.array(rows) for name, rows in networks.items()}


def _restored(layer, arrays):
    for name in _LAYER_ARRAYS:
        setattr(layer, name, arrays.get(f"{layer.name}/{name}"))
    for which in _PAIRS:
        prefix = f"{layer.name}/{which}/"
        parts = {name.removeprefix(prefix): v for name, v in arrays.items() if prefix in name}
        parts = {name: value if value.ndim else value[()] for name, value in parts.items()}
        setattr(layer, which, DotProducts(**parts) if parts else None)
    return layer


def layer_summary(layer):
    """The figures of one layer, as they stand in report.json: angles in degrees."""
    angles = np.degrees(layer.angles)
    summary = {
        "layer": layer.name,
        "d": layer.fan_in,
        "angle": np.nanmean(angles),
        "angle_sd": np.nanstd(angles),
        "gaussian_angle": np.degrees(layer.theory[0]),
        "latent_sd": layer.wc.std(),
        "sd_over_initial": layer.sd_over_initial,
        "kurtosis": layer.kurtosis,
        "kurtosis_angle": np.degrees(layer.shape_angle),
        "peak": layer.peaked_angle[1],
        "peaked_angle": np.degrees(layer.peaked_angle[0]),
        "spread_ratio": layer.spread_ratio,
        "tau": layer.tau,
        "shares": layer.shares,
        "gaussian_zero_share": geometry.ternary_zero_fraction(layer.tau),
        "saturated": geometry.saturated_share(layer.wc),
        "predicted_unit_r": None if layer.predicted_r is None else np.nanmean(layer.predicted_r),
        "variance_shares": None
        if layer.spectrum is None
        else (layer.spectrum / layer.spectrum.sum())[:10],
    }
    for which in _PAIRS:
        pairs = getattr(layer, which)
        summary[which] = pairs and {
            "r": pairs.r,
            "inside_r": pairs.inside_r,
            "unit_r": np.nanmean(pairs.unit_r),
            "unit_r_error": np.nanstd(pairs.unit_r) / np.sqrt(len(pairs.unit_r)),
            "inside_unit_r": _mean(pairs.inside_unit_r),
            "slope": pairs.slope,
            "sign_changes": pairs.sign_changes,
        }
    return summary


def _mean(values):
    values = values[np.isfinite(values)]
    return values.mean() if len(values) else np.nan


def _plain(value):
    """`value` as JSON has it: nan, which it does not have, becomes null."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value


def report_text(report, claims):
    """report.md: the claims, why some of them fail, and the figures layer by layer."""
    about = report.about
    lines = [
        "# Geometry of a trained network",
        "",
        f"Checkpoint sha256 {report.sha256}, on {about['test_images']} test images of "
        f"{about['data_set']}, test accuracy {about['test_accuracy']:.2%}. Measured in "
        f"{about['seconds']} s, peak memory {about['peak_memory_mb']} MB.",
        "",
        "Errors are standard errors, of the mean over units or samples. r is pooled over units, "
        "positions and images, with the mean over units beside it. Covariances are those of "
        f"{COVARIANCE_POSITIONS} patches at random positions of each of up to {COVARIANCE_IMAGES} "
        f"training images, for fan-ins up to {WIDEST_COVARIANCE}; batch norm is re-estimated on up "
        f"to {REFIT_IMAGES} training images. Inner layers are the convolutional ones but the "
        "first; fully connected layers are measured, not judged.",
        "",
        *markdown_table(
            ("claim", "theory", "measured", "condition", "holds"),
            [
                (c.id, c.theory, c.measured, c.condition, {None: "—"}.get(c.holds) or _yes(c.holds))
                for c in claims
            ],
        ),
        "",
    ]
    failing = [claim for claim in claims if claim.holds is False]
    if failing:
        lines += ["## What does not hold, and what was measured there", ""]
        lines += [f"- **{claim.id}**: {claim.why or claim.measured}." for claim in failing] + [""]
    lines += ["## Weights", "", *_weights_table(report), "", "## Dot products", ""]
    lines += [*_dots_table(report), ""]
    if report.rotation:
        rows = [
            (name, *(f"{r:.3f}" for r in values.values()))
            for name, values in report.rotation.items()
        ]
        lines += ["## The first layer in other bases: r when this is quantized there", ""]
        lines += [*markdown_table(("basis", "weights", "patches", "both"), rows), ""]
    rows = [(name, *(f"{a:.2%}" for a in pair)) for name, pair in report.substitution.items()]
    lines += ["## Latent weights in place of quantized ones: test accuracy", ""]
    lines += [*markdown_table(("substituted", "as it is", "batch norm re-estimated"), rows), ""]
    return "\n".join(lines)


def _yes(holds):
    return "yes" if holds else "**no**"


def _weights_table(report):
    rows = [
        (
            layer.name,
            layer.fan_in,
            f"{_figure(np.degrees(layer.angles), '{:.2f}')}",
            f"{np.degrees(np.nanstd(layer.angles)):.2f}",
            f"{np.degrees(layer.theory[0]):.2f}",
            f"{layer.wc.std():.3f}",
            f"{layer.sd_over_initial:.1f}",
            f"{layer.kurtosis:.2f}",
            f"{np.degrees(layer.shape_angle):.2f}",
            f"{layer.peaked_angle[1]:.1%}",
            f"{np.degrees(layer.peaked_angle[0]):.2f}",
            f"{layer.spread_ratio:.2f}",
            f"{layer.tau:.3f}",
            " / ".join(f"{share:.1%}" for share in layer.shares),
            f"{geometry.ternary_zero_fraction(layer.tau):.1%}",
            f"{geometry.saturated_share(layer.wc):.2%}",
        )
        for layer in report.layers
    ]
    return markdown_table(
        (
            "layer",
            "d",
            "angle (°)",
            "sd (°)",
            "Gaussian (°)",
            "σ",
            "σ / initial",
            "κ",
            "angle of κ (°)",
            "peak at t",
            "angle of κ and peak (°)",
            "sd of cos / i.i.d.",
            "t/σ",
            "−1 / 0 / 1",
            "Gaussian 0",
            "at ±1",
        ),
        rows,
    )


def _dots_table(report):
    rows = []
    for layer in report.layers:
        w, a, p = layer.weights_dot, layer.activations_dot, layer.permuted
        rows.append(
            (
                layer.name,
                f"{w.r:.3f}",
                _figure(w.unit_r),
                f"{_mean(w.inside_unit_r):.3f}",
                _predicted(layer),
                f"{w.slope:.2f}",
                f"{w.sign_changes:.1%}",
                f"{p.r:.3f}",
                f"{_mean(p.inside_unit_r):.3f}",
                f"{np.nanmean(np.cos(layer.angles)):.3f}",
                f"{a.r:.3f}" if a else "—",
                _figure(a.unit_r) if a else "—",
                _first_share(layer),
            )
        )
    return markdown_table(
        (
            "layer",
            "r",
            "unit r",
            "off the border",
            "predicted",
            "slope",
            "sign changes",
            "permuted r",
            "permuted, units off the border",
            "mean cosine",
            "r of activations",
            "its unit r",
            "first axis",
        ),
        rows,
    )


# --- Which network ----------------------------------------------------------------------------


def choose_checkpoint(output="output", results="results"):
    """The checkpoint that a notebook should open.

    `BNN_CHECKPOINT` if it is set; else the newest trained run under `output`, the demos' aside;
    else the paper's network as it was trained for this repository, under `results`. The demo's
    where there is no other, or where the data set of the other is missing.

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
        demos = (demo, output / "cluster_demo" / "network.keras")
        runs = [path for path in output.glob("*/network.keras") if path not in demos]
        chosen = max(runs, key=lambda path: path.stat().st_mtime, default=None)
        why = "the newest trained run"
        published = Path(results) / "cifar-10_binary" / "network.keras"
        if chosen is None and published.is_file():
            chosen, why = published, "the network trained for this repository"
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


# --- Command line -----------------------------------------------------------------------------


def main(argv=None):
    """`python report.py CHECKPOINT`: measure, write the report beside it, print the claims."""
    cli = argparse.ArgumentParser(prog="report.py", description=__doc__.splitlines()[0])
    cli.add_argument("checkpoint", help="a network that run_bnn.py has written")
    cli.add_argument("--data_dir", help="folder of the data sets (default: $BNN_DATA_DIR, data/)")
    cli.add_argument("--images", type=int, help="only the first test images (default: all)")
    args = cli.parse_args(argv)
    with one_line_errors("report.py"):
        require(args.images is None or args.images >= 1, "--images must be at least 1")
        report = measure_checkpoint(args.checkpoint, args.data_dir, args.images)
        folder = Path(args.checkpoint).parent
        write_report(report, folder)
        for claim in report.claims():
            print(f"{claim.id:<16} {'—' if claim.holds is None else _yes(claim.holds)}")
        print(folder / "report.md")


if __name__ == "__main__":
    main()
