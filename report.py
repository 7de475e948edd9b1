"""The report of a trained network: measured, stored, restored, rendered.

`python report.py CHECKPOINT` measures everything and writes the report beside the checkpoint.
"""

import argparse
import dataclasses
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
from checkpoint import saved_parameters
from claims import first_axis_share, judge, mean_and_error, predicted_r, tally
from data.load_data import DATA_SETS, IMAGE_SHAPES, data_md5, load_data, missing_files
from utils import (
    atomic_path,
    file_digest,
    one_line_errors,
    require,
    require_writable,
    write_json,
    write_text,
)

# isort: split
import numpy as np
from tabulate import tabulate

# --- Measured ---------------------------------------------------------------------------------

# The parts of a LayerMeasurement that report.npz stores: arrays, and pairs of dot products.
_LAYER_ARRAYS = ("spectrum", "predicted_r", "deflated_r", "textured")
_PAIRS = ("weights_dot", "activations_dot", "entries", "permuted")


@dataclass
class Report:
    """What was measured on a checkpoint.

    Attributes
    ----------
    sha256 : str
        Digest of the checkpoint.
    about : dict
        The data set, the number of test images, test accuracy, the network's parameters, and the
        seconds and the memory (MB) that the measurement took.
    layers : list of LayerMeasurement
        From the first layer to the output.
    rotation : dict
        From `experiments.rotation_correlations`; empty without a convolutional layer.
    substitution : dict
        From `experiments.substitution_accuracies`.
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
        """The layers of `convs` except the network's first layer."""
        return [layer for layer in self.convs if not layer.first]

    @property
    def first(self):
        """The first layer by the flow of data: no other product has a part in its inputs."""
        return next(layer for layer in self.layers if layer.first)

    @property
    def ternary(self):
        """Whether any layer has ternary weights."""
        return any(layer.threshold > 0 for layer in self.layers)

    def claims(self):
        """Judge the paper's claims.

        Returns
        -------
        list of claims.Claim
        """
        return judge(self)


def measure_checkpoint(checkpoint, data_dir=None, images=None, batch_size=100, data_set=None):
    """Measure the network in a checkpoint, with progress bars.

    Parameters
    ----------
    checkpoint : path-like
        A network that `run_bnn.py` has written.
    data_dir : path-like, optional
        Folder of the data sets.
    images : int, optional
        Number of test images to measure on, the first ones. The default is all of them.
    batch_size : int
        Number of images at a time. It changes memory and speed, not the result.
    data_set : str, optional
        What the network was trained on. By default the `run.json` beside the checkpoint tells.

    Returns
    -------
    Report

    Raises
    ------
    FileNotFoundError
        If the checkpoint or its data set is missing.
    ValueError
        If the checkpoint is damaged, it is not known what it was trained on, or `images` or
        `batch_size` is not positive.
    """
    from experiments import REFIT_IMAGES, rotation_correlations, substitution_accuracies
    from measure import COVARIANCE_IMAGES, measure_network

    for name, value in (("images", images or 1), ("batch_size", batch_size)):
        require(value >= 1, f"{name} must be at least 1, not {value}")
    started = time.perf_counter()
    in_dim = saved_parameters(checkpoint)[0]
    data_set = data_set_of_run(checkpoint, in_dim, data_set)
    network, digest = _opened(checkpoint)
    data = load_data(data_set, data_dir)
    x, y = data.x_test[:images], data.y_test[:images]
    # A copy, so that the memory of the other training images is freed.
    x_train = data.x_train[: max(COVARIANCE_IMAGES, REFIT_IMAGES)].copy()
    del data
    layers = measure_network(network, x, x_train, batch_size, progress=True)
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
    """The network in a checkpoint, and the sha256 of the file."""
    # Late, as TensorFlow takes seconds to import.
    from bnn import BinaryNeuralNetwork

    saved_parameters(checkpoint)  # Raises, with the reason, if the file is damaged.
    digest = file_digest(checkpoint, "sha256")
    network = BinaryNeuralNetwork.load(checkpoint)
    require(
        file_digest(checkpoint, "sha256") == digest,
        f"{checkpoint} changed while it was read: is its training still running?",
    )
    return network, digest


def data_set_of_run(checkpoint, in_dim, data_set=None):
    """What a network was trained on: `data_set`, or what the `run.json` beside it records.

    Raises
    ------
    ValueError
        If nothing is recorded, the files were others than today's, or the images do not fit.
    """
    record = Path(checkpoint).parent / "run.json"
    if data_set is None:
        try:
            run = json.loads(record.read_text(encoding="utf-8"))
            data_set, md5 = run["data_set"], run["data_md5"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"{record} does not tell what {checkpoint} was trained on: name it with --data_set"
            ) from None
        require(
            data_set in DATA_SETS, f"{record} names the data set {data_set!r}, which is unknown"
        )
        require(md5 == data_md5(data_set), f"{record}: the run's {data_set} had other files")
    require(data_set in DATA_SETS, f"there is no data set {data_set!r}: {', '.join(DATA_SETS)}")
    require(
        tuple(in_dim) == IMAGE_SHAPES[data_set],
        f"{checkpoint} takes images of shape {tuple(in_dim)}, but {data_set} has "
        f"{IMAGE_SHAPES[data_set]}",
    )
    return data_set


def _peak_memory_mb():
    import resource  # Not on Windows.

    unit = 1024**2 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


# --- Stored and restored ----------------------------------------------------------------------


def write_report(report, folder):
    """Write a report: report.md, report.json, report.npz with the arrays, and `figures/`.

    Parameters
    ----------
    report : Report
    folder : path-like
        The folder of the checkpoint. The figures show the training, too, if it has a
        `geometry.csv`.
    """
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
        "claims": [vars(claim) for claim in claims],
        "layers": [layer_summary(layer) for layer in report.layers],
        "rotation": report.rotation,
        "substitution": report.substitution,
    }
    write_json(folder / "report.json", _plain(summary))
    write_text(folder / "report.md", report_text(report, claims))
    from geometry_log import read_geometry
    from plotting import run_figures

    run_figures(report.layers, folder / "figures", read_geometry(folder / "geometry.csv"))


def stored_report(checkpoint):
    """Restore the report that is stored beside a checkpoint.

    Parameters
    ----------
    checkpoint : path-like

    Returns
    -------
    Report or None
        None if there is no report, if it is damaged, or if it belongs to another checkpoint.

    Raises
    ------
    FileNotFoundError
        If there is no checkpoint.
    ValueError
        If the checkpoint is damaged.
    """
    from measure import layer_weights

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
    """Restore the report of a checkpoint; if there is none, measure and store one.

    Parameters
    ----------
    checkpoint : path-like
    images : int
        Number of test images, if it has to be measured.

    Returns
    -------
    Report
    why : str
        One line that says where the report comes from.
    """
    stored = stored_report(checkpoint)
    if stored is not None:
        return stored, f"stored report of this checkpoint, on {stored.about['test_images']} images"
    measured = measure_checkpoint(checkpoint, images=images)
    write_report(measured, Path(checkpoint).parent)
    count = measured.about["test_images"]
    return measured, f"no stored report of this checkpoint: measured on {count} test images"


def ternary_layers(results=None):
    """Read the layers of all ternary networks from the reports under `results`.

    Parameters
    ----------
    results : path-like, optional
        Folder with a folder for each network. The default is this repository's `results`.

    Returns
    -------
    dict
        Name of the network to an array of shape (layers, 3). Its columns are the threshold
        τ = t/σ, the mean angle in radians, and the share of weights that are zero. Networks that
        differ only in their seed (folders `name`, `name_seed1`, …) share an array.
    """
    networks = defaultdict(list)
    for path in sorted(_repository(results, "results").glob("*/report.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["network_params"]["levels"] == 3:
            networks[path.parent.name.partition("_seed")[0]] += [
                # The shares are those of −1, 0 and 1.
                (layer["tau"], np.radians(layer["angle"]), layer["shares"][1])
                for layer in summary["layers"]
            ]
    return {name: np.array(rows) for name, rows in networks.items()}


def _restored(layer, arrays):
    from measure import DotProducts

    for name in _LAYER_ARRAYS:
        setattr(layer, name, arrays.get(f"{layer.name}/{name}"))
    for which in _PAIRS:
        prefix = f"{layer.name}/{which}/"
        parts = {
            name.removeprefix(prefix): value
            for name, value in arrays.items()
            if name.startswith(prefix)
        }
        parts = {name: value if value.ndim else value[()] for name, value in parts.items()}
        setattr(layer, which, DotProducts(**parts) if parts else None)
    return layer


def layer_summary(layer):
    """The figures of one layer, as report.json holds them.

    Parameters
    ----------
    layer : measure.LayerMeasurement

    Returns
    -------
    dict
        Angles are in degrees.
    """
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
    """`value` in the types of JSON. nan becomes None, because JSON has no nan."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value


# --- Rendered ---------------------------------------------------------------------------------

_PARTS = {
    "evidence": ("Evidence from this network", "Measured on this network, and counted."),
    "controls": (
        "Controls",
        "`permutation` follows from `weights-dot` and the angle. `weights-hist` is only drawn.",
    ),
    "mathematics": (
        "Mathematics",
        "Sampled from random vectors. The same for every network: checked, not counted.",
    ),
}
_HOLDS = {True: "yes", False: "**no**", None: "—"}


def report_text(report, claims):
    """Render report.md: the claims, their figures, and the figures of every layer.

    Parameters
    ----------
    report : Report
    claims : list of claims.Claim
        From `Report.claims`.

    Returns
    -------
    str
        Markdown.
    """
    about = report.about
    lines = [
        "# Geometry of a trained network",
        "",
        f"Checkpoint sha256 {report.sha256}, on {about['test_images']} test images of "
        f"{about['data_set']}, test accuracy {about['test_accuracy']:.2%}. Measured in "
        f"{about['seconds']} s, peak memory {about['peak_memory_mb']} MB.",
        "",
        f"**{tally(claims)}**",
        "",
    ]
    parts = [(*_PARTS[part], [c for c in claims if c.part == part]) for part in _PARTS]
    for title, note, members in parts:
        rows = [
            {
                "claim": claim.id,
                "holds": _HOLDS[claim.holds],
                "condition": claim.condition,
                "measured": claim.measured,
            }
            for claim in members
        ]
        lines += [f"## {title}", "", note, "", _table(rows, stralign=None), ""]
    lines += ["## Figures of the claims", "", _notes(), ""]
    for claim in (claim for *_, members in parts for claim in members if claim.rows):
        lines += [f"### {claim.id}", "", claim.theory, ""]
        if claim.holds is False:
            lines += [f"**Does not hold:** {claim.why or claim.measured}", ""]
        lines += [_table(claim.rows), ""]
    lines += ["## Weights of every layer", "", _table(map(_weights_row, report.layers)), ""]
    lines += ["## Dot products of every layer", "", _table(map(_dots_row, report.layers)), ""]
    return "\n".join(lines)


def _notes():
    from experiments import REFIT_IMAGES
    from measure import COVARIANCE_IMAGES, COVARIANCE_POSITIONS, WIDEST_COVARIANCE

    return (
        "Inner layers are the convolutional layers except the first. Fully connected layers are "
        "measured, not judged. An error (±) is the standard error of a mean over units or samples. "
        "r is the correlation of dot products, pooled over units, positions and images; unit r is "
        "the mean over units of each unit's own. Covariances come from "
        f"{COVARIANCE_POSITIONS} patches at random positions of each of up to {COVARIANCE_IMAGES} "
        f"training images, for fan-ins up to {WIDEST_COVARIANCE}. Batch norm is re-estimated on up "
        f"to {REFIT_IMAGES} training images."
    )


def _table(rows, stralign="left"):
    """A Markdown table of dicts. Without `stralign`, its cells are not padded."""
    return tabulate(
        list(rows), headers="keys", tablefmt="github", disable_numparse=True, stralign=stralign
    )


def _weights_row(layer):
    peaked_angle, peak = layer.peaked_angle
    return {
        "layer": layer.name,
        "d": layer.fan_in,
        "angle (°)": mean_and_error(np.degrees(layer.angles), "{:.2f}"),
        "sd (°)": f"{np.degrees(np.nanstd(layer.angles)):.2f}",
        "Gaussian (°)": f"{np.degrees(layer.theory[0]):.2f}",
        "σ": f"{layer.wc.std():.3f}",
        "σ / initial": f"{layer.sd_over_initial:.1f}",
        "κ": f"{layer.kurtosis:.2f}",
        "of κ (°)": f"{np.degrees(layer.shape_angle):.2f}",
        "peak at t": f"{peak:.1%}",
        "of κ and peak (°)": f"{np.degrees(peaked_angle):.2f}",
        "sd of cos / i.i.d.": f"{layer.spread_ratio:.2f}",
        "t/σ": f"{layer.tau:.3f}",
        "−1 / 0 / 1": " / ".join(f"{share:.1%}" for share in layer.shares),
        "Gaussian 0": f"{geometry.ternary_zero_fraction(layer.tau):.1%}",
        "at ±1": f"{geometry.saturated_share(layer.wc):.2%}",
    }


def _dots_row(layer):
    weights, permuted, activations = layer.weights_dot, layer.permuted, layer.activations_dot
    return {
        "layer": layer.name,
        "r": f"{weights.r:.3f}",
        "unit r": mean_and_error(weights.unit_r),
        "off the border": f"{_mean(weights.inside_unit_r):.3f}",
        "predicted": predicted_r(layer),
        "slope": f"{weights.slope:.2f}",
        "sign changes": f"{weights.sign_changes:.1%}",
        "permuted r": f"{permuted.r:.3f}",
        "permuted, units off the border": f"{_mean(permuted.inside_unit_r):.3f}",
        "mean cosine": f"{np.nanmean(np.cos(layer.angles)):.3f}",
        "r of activations": f"{activations.r:.3f}" if activations else "—",
        "its unit r": mean_and_error(activations.unit_r) if activations else "—",
        "first axis": first_axis_share(layer),
    }


# --- Which network ----------------------------------------------------------------------------


def choose_checkpoint(output=None, results=None):
    """Choose the checkpoint that a notebook opens.

    It is the first of these that exists:

    1. the one that the environment variable `BNN_CHECKPOINT` names;
    2. the newest one under `output`, without the demos';
    3. the paper's network under `results`;
    4. the demo's under `output`, which is also taken if the data set of the others is missing.

    Parameters
    ----------
    output, results : path-like, optional
        Folders with a folder for each run. The default are those of this repository, whatever the
        working directory.

    Returns
    -------
    path : pathlib.Path
    why : str
        One line that says why it was chosen.

    Raises
    ------
    FileNotFoundError
        If there is no checkpoint.
    """
    output, results = _repository(output, "output"), _repository(results, "results")
    demo = output / "demo" / "network.keras"
    if os.environ.get("BNN_CHECKPOINT"):
        chosen, why = Path(os.environ["BNN_CHECKPOINT"]), "named by BNN_CHECKPOINT"
    else:
        demos = (demo, output / "cluster_demo" / "network.keras")
        runs = (path for path in output.glob("*/network.keras") if path not in demos)
        runs = [path for path in runs if path.with_name("run.json").is_file()]
        # A clock that was wrong once makes no run the newest for ever.
        runs = [path for path in runs if path.stat().st_mtime <= time.time()] or runs
        chosen = max(runs, key=lambda path: path.stat().st_mtime, default=None)
        why = "the newest trained run"
        published = results / "cifar-10_binary" / "network.keras"
        if chosen is None and published.is_file():
            chosen, why = published, "the network trained for this repository"
    if chosen is not None:
        data_set = data_set_of_run(chosen, saved_parameters(chosen)[0])
        if not missing_files(data_set):
            return chosen, f"{chosen}: {why}, on {data_set}"
        why = f"the data set {data_set} of {chosen} is not here, so this is the demo's network"
    else:
        why = "no trained run is here, so this is the demo's network"
    if not demo.is_file():
        raise FileNotFoundError("there is no trained network: run make demo, or set BNN_CHECKPOINT")
    return demo, f"{demo}: {why}"


def _repository(folder, name):
    """`folder`, or else the repository's folder `name`, seen from the working directory."""
    return Path(folder or os.path.relpath(Path(__file__).resolve().parent / name))


# --- Command line -----------------------------------------------------------------------------


def main(argv=None):
    """Measure a checkpoint, write the report beside it, and print which claims hold."""
    cli = argparse.ArgumentParser(
        prog="report.py", description="Judge the paper's claims on a trained network."
    )
    cli.add_argument("checkpoint", help="a network that run_bnn.py has written")
    cli.add_argument("--data_set", choices=DATA_SETS, help="default: what run.json beside it says")
    cli.add_argument("--data_dir", help="folder of the data sets (default: $BNN_DATA_DIR, data/)")
    cli.add_argument("--images", type=int, help="only the first test images (default: all)")
    args = cli.parse_args(argv)
    with one_line_errors("report.py", "interrupted: nothing was written"):
        require(args.checkpoint, "name a checkpoint: make report CHECKPOINT=output/…/network.keras")
        require(args.images is None or args.images >= 1, "--images must be at least 1")
        folder = Path(args.checkpoint).parent
        saved_parameters(args.checkpoint)
        require_writable(folder)
        report = measure_checkpoint(
            args.checkpoint, args.data_dir, args.images, data_set=args.data_set
        )
        write_report(report, folder)
        claims = report.claims()
        for claim in claims:
            print(f"{claim.id:<16} {_HOLDS[claim.holds]}")
        print(tally(claims))
        print(folder / "report.md")


if __name__ == "__main__":
    main()
