"""The report of a trained network: measured, stored, restored, rendered.

`python report.py CHECKPOINT` measures everything and writes the report beside the checkpoint.
"""

if __name__ == "__main__":
    import signal

    # Until `main` has a line for it, Ctrl-C just ends the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import dataclasses
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import geometry
from checkpoint import saved_parameters
from claims import Claim, derived, judge, table, tally
from data.load_data import DATA_SETS, data_md5, images_and_classes, load_data, missing_files
from files import atomic_path, file_digest, require_writable, write_json, write_text
from utils import one_line_errors, require

# isort: split
import numpy as np
from tabulate import tabulate

if TYPE_CHECKING:
    from measure import LayerMeasurement

# The parts of a LayerMeasurement that report.npz stores: arrays, and pairs of dot products.
_LAYER_ARRAYS = ("spectrum", "predicted_r", "deflated_r", "textured")
_PAIRS = ("weights_dot", "activations_dot", "entries", "permuted")
# Of a report.npz, in bytes: those of the paper's network have less than a tenth.
LARGEST_ARRAYS = 2**27


# --- Measured ---------------------------------------------------------------------------------


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

    def summary(self) -> dict:
        """What report.json holds, without the claims."""
        return _plain(
            {
                "sha256": self.sha256,
                **self.about,
                "layers": [layer_summary(layer) for layer in self.layers],
                "rotation": self.rotation,
                "substitution": self.substitution,
            }
        )

    def claims(self) -> list[Claim]:
        """The paper's claims, a list of `claims.Claim`."""
        return judge(self.summary())

    def judged(self) -> dict:
        """What report.json holds."""
        return _judged(self.summary())


def measure_checkpoint(
    checkpoint: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    images: int | None = None,
    batch_size: int = 100,
    data_set: str | None = None,
) -> Report:
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

    for name, number in (("images", images or 1), ("batch_size", batch_size)):
        require(number >= 1, f"{name} must be at least 1, not {number}")
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
    rotation = rotation_correlations(network, x, x_train, progress=True)
    substitution = substitution_accuracies(network, x_train, x, y, progress=True)
    about = {
        "data_set": data_set,
        "test_images": len(x),
        "test_accuracy": substitution["none"][0],
        "network_params": dataclasses.asdict(network.network_params),
        "optimizer": network.training_params.optimizer,
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


def data_set_of_run(
    checkpoint: str | os.PathLike, in_dim: Sequence[int], data_set: str | None = None
) -> str:
    """What a network was trained on: `data_set`, or what the `run.json` beside it records.

    Raises
    ------
    FileNotFoundError
        If it is a .npz file that is not there.
    ValueError
        If nothing is recorded, the files were others than today's, or the images do not fit.
    """
    record = Path(checkpoint).parent / "run.json"
    if data_set is None:
        try:
            run = json.loads(record.read_text(encoding="utf-8"))
            data_set, md5 = run["data_set"], run["data_md5"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(
                f"{record} does not tell what {checkpoint} was trained on: name it with --data_set"
            ) from None
        require(md5 == data_md5(data_set), f"{record}: the run's {data_set} had other files")
    shape = tuple(images_and_classes(data_set)[0])
    require(
        tuple(in_dim) == shape,
        f"{checkpoint} takes images of shape {tuple(in_dim)}, but {data_set} has {shape}",
    )
    return data_set


def _peak_memory_mb():
    import resource  # Not on Windows.

    unit = 1024**2 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


# Attributes of a LayerMeasurement that report.json holds as they are.
_FIGURES = (
    *("convolutional", "first", "quantized", "quantized_input", "tau", "shares"),
    *("sd_over_initial", "kurtosis", "near_threshold", "spread_ratio"),
)
_TEXTURED = ("share", "entries_r", "r")


def layer_summary(layer: "LayerMeasurement") -> dict:
    """The figures of one layer, as report.json holds them: a dict, angles in degrees.

    A figure that does not exist is nan or None.
    """
    figures = {name: getattr(layer, name) for name in _FIGURES}
    angles, peaked, textured = np.degrees(layer.angles), layer.peaked_angle, layer.textured
    spectrum = None if layer.spectrum is None else layer.spectrum / layer.spectrum.sum()
    return {"layer": layer.name, "d": layer.fan_in, **figures} | {
        "units": layer.wc.shape[-1],
        "angle": np.nanmean(angles),
        "angle_sd": np.nanstd(angles),
        "cosine": np.nanmean(np.cos(layer.angles)),
        "gaussian_angle": np.degrees(layer.theory[0]),
        "latent_sd": layer.wc.std(),
        "kurtosis_angle": np.degrees(layer.shape_angle),
        "peak": peaked[1],
        "peaked_angle": np.degrees(peaked[0]),
        "zeros": layer.shares[1],
        "gaussian_zero_share": geometry.ternary_zero_fraction(layer.tau),
        "saturated": geometry.saturated_share(layer.wc),
        "predicted_unit_r": None if layer.predicted_r is None else np.nanmean(layer.predicted_r),
        "deflated_unit_r": None if layer.deflated_r is None else np.nanmean(layer.deflated_r),
        "first_axis": None if spectrum is None else spectrum[0],
        "variance_shares": None if spectrum is None else spectrum[:10],
        "textured": None if textured is None else dict(zip(_TEXTURED, textured, strict=True)),
        **{which: _pairs_summary(getattr(layer, which)) for which in _PAIRS},
    }


def _pairs_summary(pairs):
    if pairs is None:
        return None
    unit_r, inside = (r[np.isfinite(r)] for r in (pairs.unit_r, pairs.inside_unit_r))
    summary = {name: getattr(pairs, name) for name in ("r", "inside_r", "slope", "sign_changes")}
    for name, r in (("unit_r", unit_r), ("inside_unit_r", inside)):
        summary[name] = r.mean() if len(r) else np.nan
        summary[f"{name}_error"] = r.std(ddof=1) / np.sqrt(len(r)) if len(r) > 1 else np.nan
    lowest, highest = np.percentile(unit_r, (0, 100)) if len(unit_r) else (np.nan, np.nan)
    return summary | {"lowest_unit_r": lowest, "highest_unit_r": highest}


def _plain(value):
    """`value` in the types of JSON. nan becomes None, because JSON has no nan."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value


# --- Stored and restored ----------------------------------------------------------------------


def write_report(report: Report, folder: str | os.PathLike) -> list[dict]:
    """Write report.json, report.npz with the arrays, `figures/`, report.md and report.html.

    The folder is that of the checkpoint. The figures show the training, too, if it has a
    `geometry.csv`. Returns the claims as `write_verdicts` does.
    """
    from geometry_log import read_geometry
    from plotting import run_figures

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
    history = read_geometry(folder / "geometry.csv")
    experiments = report.rotation, report.substitution, report.about["test_images"]
    run_figures(report.layers, folder / "figures", history, *experiments)
    return write_verdicts(report.summary(), folder)


def write_verdicts(summary: dict, folder: str | os.PathLike) -> list[dict]:
    """Judge a summary; write report.json, report.md, and report.html with the figures in `folder`.

    Parameters
    ----------
    summary : dict
        From `Report.summary`, or what report.json holds.
    folder : path-like

    Returns
    -------
    list of dict
        The claims.
    """
    folder, summary = Path(folder), _judged(summary)
    write_json(folder / "report.json", summary)
    write_text(folder / "report.md", report_text(summary))
    write_text(folder / "report.html", report_page(summary, folder / "figures"))
    return summary["claims"]


def _judged(summary):
    return summary | {"claims": [vars(claim) for claim in judge(summary)]}


def stored_report(checkpoint: str | os.PathLike) -> Report | None:
    """Restore the report that is stored beside a checkpoint.

    Returns
    -------
    Report or None
        None if there is no report, if it is damaged, or if it belongs to another checkpoint.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no checkpoint, or it is damaged.
    """
    from measure import layer_weights

    folder = Path(checkpoint).parent
    network, digest = _opened(checkpoint)
    try:
        summary = _read(folder / "report.json")
        with np.load(folder / "report.npz", allow_pickle=False) as archive:
            sizes = sum(info.file_size for info in archive.zip.infolist())
            require(sizes <= LARGEST_ARRAYS, f"its arrays have {sizes} bytes")
            arrays = dict(archive)
        if not summary["sha256"] == str(arrays["sha256"]) == digest:
            return None
        names = ("data_set", "test_images", "test_accuracy", "network_params")
        about = {name: summary[name] for name in (*names, "seconds", "peak_memory_mb")}
        about["optimizer"] = summary.get("optimizer", "adam")
        rotation, substitution = summary["rotation"], summary["substitution"]
        layers = [_restored(layer, arrays) for layer in layer_weights(network)]
    # Whatever is wrong with them, they are measured anew.
    except Exception:
        return None
    return Report(digest, about, layers, rotation, substitution)


def _read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _restored(layer, arrays):
    from measure import DotProducts

    for name in _LAYER_ARRAYS:
        setattr(layer, name, arrays.get(f"{layer.name}/{name}"))
    for which in _PAIRS:
        prefix = f"{layer.name}/{which}/"
        parts = {
            name.removeprefix(prefix): value if value.ndim else value[()]
            for name, value in arrays.items()
            if name.startswith(prefix)
        }
        setattr(layer, which, DotProducts(**parts) if parts else None)
    return layer


def find_report(checkpoint: str | os.PathLike, images: int = 2000) -> tuple[Report, str]:
    """Restore the report of a checkpoint; if there is none, measure one on `images` test images.

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


def layer_points(summary: dict) -> np.ndarray:
    """Threshold τ = t/σ, mean angle in radians and share of zeros of a summary's inner layers.

    Returns
    -------
    ndarray, shape (layers, 3)
    """
    inner = [one for one in summary["layers"] if one["convolutional"] and not one["first"]]
    rows = [(one["tau"], np.radians(one["angle"]), one["zeros"]) for one in inner]
    return np.reshape(rows, (-1, 3))


def ternary_layers(results: str | os.PathLike | None = None) -> dict[str, np.ndarray]:
    """The `layer_points` of all ternary networks that have a report in the folder `results`.

    The default is this repository's.

    Returns
    -------
    dict
        Description of the network to an array of shape (layers, 3). Networks that differ only in
        their seed share an array.
    """
    networks = defaultdict(list)
    for path in sorted(_repository(results, "results").glob("*/report.json")):
        summary = _read(path)
        if summary["network_params"]["levels"] == 3:
            networks[_description(summary)].append(layer_points(summary))
    return {name: np.concatenate(points) for name, points in networks.items()}


def _description(summary):
    """Data set, first width and thresholds of a ternary network."""
    # An older report lacks what was not yet a parameter.
    params = defaultdict(lambda: None, summary["network_params"])
    sigma, activations = params["threshold_sigma"], params["activation_threshold"]
    weights = params["threshold"] if sigma is None else f"{sigma}σ"
    activations = (sigma or params["threshold"]) if activations is None else activations
    widths = f"{params['conv'][0]} filters" if params["conv"] else "no convolution"
    return f"{summary['data_set']}, {widths}, t = {weights}, activations {activations}"


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
_HOLDS = {True: "yes", False: "no", None: "—"}
_LAYERS = {
    "Weights of every layer": "layer, d, units, angle (°), sd (°), Gaussian at d (°), σ, "
    "σ / initial, at ±1, sd of cos / i.i.d.",
    "Their distribution": "layer, κ, of κ (°), peak, of κ and peak (°), t/σ, zeros, Gaussian zeros",
    "Dot products with quantized weights": "layer, r, unit r, unit r off the border, "
    "predicted unit r, first axis, slope, sign changes",
    "Dot products with permuted inputs": "layer, permuted pooled r, "
    "permuted unit r off the border, mean cosine",
    "Dot products with quantized activations": "layer, r of activations, their unit r, "
    "their lowest unit r, their highest unit r, their sign changes",
}


def _about(summary):
    return [
        f"Checkpoint sha256 {summary['sha256']}, on {summary['test_images']} test images of "
        f"{summary['data_set']}, test accuracy {summary['test_accuracy']:.2%}. Measured in "
        f"{summary['seconds']} s, peak memory {summary['peak_memory_mb']} MB.",
        _tally(summary["claims"]),
    ]


def _tally(claims):
    return tally([claim["holds"] for claim in claims if claim["part"] == "evidence"])


def _tables(summary):
    """What the report shows, as (title, remark, what failed, rows): first the verdicts."""
    for part, (title, remark) in _PARTS.items():
        claims = [claim for claim in summary["claims"] if claim["part"] == part]
        rows = [
            {
                "claim": claim["id"],
                "holds": _HOLDS[claim["holds"]],
                "measured": claim["measured"],
                "condition": claim["condition"],
            }
            for claim in claims
        ]
        yield title, remark, "", rows
    for claim in summary["claims"]:
        if claim["rows"]:
            yield claim["id"], claim["theory"], claim["why"], claim["rows"]
    layers = [derived(layer) for layer in summary["layers"]]
    for title, columns in _LAYERS.items():
        yield title, "", "", table(layers, columns)


def _notes():
    from experiments import REFIT_IMAGES
    from measure import COVARIANCE_IMAGES, COVARIANCE_POSITIONS, WIDEST_COVARIANCE

    return (
        "Inner layers are the convolutional layers except the first. Fully connected layers are "
        "measured, not judged. An error (±) is the standard error over units or samples. "
        "r is the correlation of dot products, pooled over units, positions and images; unit r is "
        "the mean over units of each unit's own. Covariances come from "
        f"{COVARIANCE_POSITIONS} patches at random positions of each of up to {COVARIANCE_IMAGES} "
        f"training images, for fan-ins up to {WIDEST_COVARIANCE}. Batch norm is re-estimated on up "
        f"to {REFIT_IMAGES} training images. The columns 'of κ' and 'of κ and peak' are the angles "
        "of distributions with the kurtosis of the weights; 'i.i.d.' are weights that are drawn "
        "independently from those of the layer."
    )


def report_text(summary: dict) -> str:
    """Render report.md from what report.json holds: verdicts, figures of the claims and layers."""
    lines = ["# Geometry of a trained network", "", "\n\n".join(_about(summary))]
    for number, (title, remark, failure, rows) in enumerate(_tables(summary)):
        lines += ["", f"## {title}", "", remark, ""] if remark else ["", f"## {title}", ""]
        lines += [f"**Does not hold:** {failure}", ""] if failure else []
        # Short columns are padded, so that they can be read as they are.
        padded = {"stralign": None} if number < len(_PARTS) else {"stralign": "left"}
        lines.append(tabulate(rows, "keys", "github", disable_numparse=True, **padded))
    return "\n".join([*lines, "", _notes(), ""])


def report_page(summary: dict, figures: str | os.PathLike) -> str:
    """Render report.html, a page that needs no other file, from what report.json holds.

    The figures that stand in the folder `figures` are shown, each with its caption.
    """
    from page import CAPTIONS, render

    paths = {name: Path(figures) / f"{name}.png" for name in CAPTIONS}
    shown = [(*CAPTIONS[name], path.read_bytes()) for name, path in paths.items() if path.is_file()]
    return render(
        "Geometry of a trained network", [*_about(summary), _notes()], shown, _tables(summary)
    )


# --- Which network ----------------------------------------------------------------------------


def choose_checkpoint(
    output: str | os.PathLike | None = None, results: str | os.PathLike | None = None
) -> tuple[Path, str]:
    """Choose the checkpoint that a notebook opens.

    It is the first of these that exists:

    1. the one that the environment variable `BNN_CHECKPOINT` names;
    2. the newest one under `output`, without the demos';
    3. the paper's network under `results`;
    4. the demo's under `output`, which is also taken if the data set of the others is missing.

    `output` and `results` are those of this repository unless named, whatever the working
    directory.

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
        in_dim = saved_parameters(chosen)[0]
        try:
            data_set = data_set_of_run(chosen, in_dim)
            if not missing_files(data_set):
                return chosen, f"{chosen}: {why}, on {data_set}"
            why = f"the data set {data_set} of {chosen} is not here"
        except FileNotFoundError as error:
            why = str(error)
        why += ", so this is the demo's network"
    else:
        why = "no trained run is here, so this is the demo's network"
    if not demo.is_file():
        raise FileNotFoundError("there is no trained network: run make demo, or set BNN_CHECKPOINT")
    return demo, f"{demo}: {why}"


def _repository(folder, name):
    """`folder`, or else the repository's folder `name`, seen from the working directory."""
    return Path(folder or os.path.relpath(Path(__file__).resolve().parent / name))


# --- Command line -----------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Measure a checkpoint, write the report beside it, and print which claims hold."""
    cli = argparse.ArgumentParser(
        prog="report.py", description="Judge the paper's claims on a trained network."
    )
    cli.add_argument("checkpoint", help="a network that run_bnn.py has written")
    names = ", ".join(DATA_SETS)
    cli.add_argument(
        "--data_set", help=f"{names} or a .npz file (default: what run.json beside it says)"
    )
    cli.add_argument("--data_dir", help="folder of the data sets (default: $BNN_DATA_DIR, data/)")
    cli.add_argument("--images", type=int, help="only the first test images (default: all)")
    cli.add_argument(
        "--overwrite", action="store_true", help="replace a report of more images than --images"
    )
    cli.add_argument(
        "--rejudge",
        action="store_true",
        help="measure nothing: judge the report.json beside the checkpoint by today's conditions",
    )
    args = cli.parse_args(argv)
    with one_line_errors("report.py", "interrupted: nothing was written"):
        require(args.checkpoint, "name a checkpoint: make report CHECKPOINT=output/…/network.keras")
        require(args.images is None or args.images >= 1, "--images must be at least 1")
        folder = Path(args.checkpoint).parent
        if args.rejudge:
            claims = write_verdicts(_stored_summary(folder), folder)
        else:
            saved_parameters(args.checkpoint)
            require_writable(folder)
            if args.images is not None and not args.overwrite:
                _require_no_larger_report(args.checkpoint, args.images)
            report = measure_checkpoint(
                args.checkpoint, args.data_dir, args.images, data_set=args.data_set
            )
            claims = write_report(report, folder)
        for claim in claims:
            print(f"{claim['id']:<16} {_HOLDS[claim['holds']]}")
        print(_tally(claims))
        print(folder / "report.md")


def _require_no_larger_report(checkpoint, images):
    path = Path(checkpoint).parent / "report.json"
    try:
        summary = _read(path)
        stored = (
            summary["test_images"] if summary["sha256"] == file_digest(checkpoint, "sha256") else 0
        )
        larger = stored > images
    except (OSError, ValueError, TypeError, KeyError):
        return  # There is no report, or a damaged one.
    message = f"{path} was measured on {stored} images: --overwrite replaces it by one of {images}"
    require(not larger, message)


def _stored_summary(folder):
    try:
        summary = _read(folder / "report.json")
        require(isinstance(summary.get("layers"), list), "it lists no layers")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / 'report.json'} is damaged ({error})") from None
    return summary


if __name__ == "__main__":
    main()
