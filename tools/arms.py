"""Trainings that differ in one flag: each arm from several seeds, a line of a table per run.

python -m tools.arms                    # all arms and seeds, resumed where it was interrupted
python -m tools.arms --size digits      # the same on small images, in minutes
python -m tools.arms --tables           # the means over seeds, as Markdown
"""

import argparse
import csv
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from files import atomic_path
from run_folder import CHECKPOINT, FLIPS, GEOMETRY, HISTORY, RECORD, read_record
from utils import one_line_errors, require

PROGRAM = "python -m tools.arms"
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Size:
    """What all arms share.

    Parameters
    ----------
    flags : tuple of str
        Of `run_bnn.py`.
    epochs : int
    images : int
        Validation images on which r is measured.
    bop : dict
        gamma and threshold of Bop, and those of a shorter memory: in proportion to the number of
        steps, and to the size that averages of gradients have.
    """

    flags: tuple
    epochs: int
    images: int
    bop: dict

    @property
    def validation_images(self) -> int:
        """Those that the accuracies are of."""
        return int(self.flags[self.flags.index("--valid_size") + 1])


_TRACKED = ("--track_geometry", "--track_flips")
SIZES = {
    # Half the width of the paper's network, judged on the last training images.
    "half": Size(
        (
            *("--recipe", "fast", "--valid_size", "5000", *_TRACKED),
            *("--conv", "64", "64", "128", "128", "256", "256", "--fc", "512", "512"),
        ),
        epochs=8,
        images=1000,
        bop={"gamma": 1e-3, "threshold": 3e-8, "short_gamma": 1e-2, "short_threshold": 1e-7},
    ),
    "digits": Size(
        (
            *("--data_set", "digits", "--valid_size", "300", *_TRACKED),
            *("--conv", "32", "64", "--max_pool", "0", "1", "--fc", "64"),
            *("--lr_start", "4e-3", "--lr_end", "1e-5", "--lr_schedule", "linear"),
        ),
        epochs=20,
        images=300,
        bop={"gamma": 1e-2, "threshold": 1e-5, "short_gamma": 1e-1, "short_threshold": 3e-5},
    ),
}
# Where layers widen they halve the image, so that every second shortcut is the identity.
STRIDED = ("--max_pool", *"000000", "--stride", *"212121")
# What an arm adds. {teacher} is the checkpoint of the float network of the first seed.
ARMS = {
    # Keeps the average of gradients that Bop would keep, which changes nothing else.
    "baseline": ("--bop_gamma", "{gamma}"),
    "bop": ("--optimizer", "bop", "--bop_gamma", "{gamma}", "--bop_threshold", "{threshold}"),
    "kurtosis_1.8": ("--kurtosis", "1.8"),
    "kurtosis_3": ("--kurtosis", "3"),
    "kurtosis_6": ("--kurtosis", "6"),
    # Two flips in the memory of the average freeze a weight, or ten.
    "freeze": ("--freeze_oscillating", "0.02"),
    "freeze_0.1": ("--freeze_oscillating", "0.1"),
    "float": ("--continuous",),
    "teacher": ("--teacher", "{teacher}"),
    "teacher_labels": ("--teacher", "{teacher}", "--with_labels"),
    "strided": STRIDED,
    "residual": (*STRIDED, "--network", "residual"),
    "boolnet": (*STRIDED, "--network", "boolnet"),
    "bop_short": (
        *("--optimizer", "bop", "--bop_gamma", "{short_gamma}"),
        *("--bop_threshold", "{short_threshold}"),
    ),
}
# The tables, and the arms that each sets side by side.
TABLES = {
    "causes": ("baseline", "kurtosis_1.8", "kurtosis_3", "kurtosis_6", "freeze", "freeze_0.1"),
    "roads": ("baseline", "bop", "bop_short", "float", "teacher", "teacher_labels"),
    "shortcuts": ("strided", "residual", "boolnet"),
}
SEEDS = (0, 1, 2)
# The arms whose flips are drawn.
FLIPPED = ("baseline", "freeze", "freeze_0.1", "bop", "bop_short")


# --- Runs -------------------------------------------------------------------------------------


def command(
    arm: str, seed: int, output: str | os.PathLike, size: Size = SIZES["half"]
) -> list[str]:
    """The command line of a run, without the interpreter; it resumes what is there."""
    teacher = Path(output) / f"float_seed{SEEDS[0]}" / CHECKPOINT
    flags = [flag.format(teacher=teacher, **size.bop) for flag in ARMS[arm]]
    numbers = ["--epochs", str(size.epochs), "--seed", str(seed)]
    place = ["--out_dir", str(Path(output) / f"{arm}_seed{seed}"), "--resume"]
    return ["run_bnn.py", *size.flags, *flags, *numbers, *place]


def row_of(folder: str | os.PathLike, arm: str, seed: int, images: int) -> dict:
    """What a finished run gave: a dict of its figures, layer by layer.

    Parameters
    ----------
    folder : path-like
        The run's own.
    arm : str
    seed : int
    images : int
        Validation images on which r is measured.

    Returns
    -------
    dict
        `val_accuracy` is that of the last epoch. Of each layer: angle(w^c, w^b) in degrees, r,
        kurtosis, the share of weights near the threshold (`near`), `flips` as `GeometryLog` has
        it for the last epoch, what `flips_by_distance` tells of that epoch and, where the run
        kept averages m of gradients, the angle between −m and w^b, the share of their signs that
        agree, and r of A·(−m) with A·w^b.
    """
    folder = Path(folder)
    record = read_record(folder / RECORD)
    with open(folder / HISTORY, newline="", encoding="utf-8") as file:
        history = list(csv.DictReader(file))
    row = {
        "arm": arm,
        "seed": seed,
        "epochs": len(history),
        "val_accuracy": round(float(history[-1]["val_accuracy"]), 4),
        "minutes": round(sum(float(epoch["seconds"]) for epoch in history) / 60, 1),
        "precision": record["training_params"]["precision"],
        "git_revision": (record["sittings"][-1]["git_revision"] or "")[:7],
    }
    for layer, figures in _layers(folder, record, images).items():
        row |= {f"{layer}_{name}": _rounded(value) for name, value in figures.items()}
    return row


def _rounded(value):
    return round(float(value), 4)


def _layers(folder, record, images):
    """The figures of each layer of a finished run, by the layer's name."""
    from bnn import BinaryNeuralNetwork
    from data.load_data import load_data
    from flips import flips_by_distance, read_flips
    from geometry_log import read_geometry
    from measure import measure_layers, momentum_of

    network = BinaryNeuralNetwork.load(folder / CHECKPOINT)
    x = load_data(record["data_set"], None, record["valid_size"]).x_valid[:images]
    last = {row["layer"]: row for row in read_geometry(folder / GEOMETRY)}
    found = {}
    for layer in measure_layers(network, x, latent={}):
        found[layer.name] = {
            "angle": np.degrees(np.nanmean(layer.angles)),
            "r": layer.weights_dot.r,
            "kurtosis": layer.kurtosis,
            "near": layer.near_threshold,
            "flips": last[layer.name]["flips"],
        }
    weights = {layer.name: layer.latent_kernel.numpy() for layer in network.layers}
    if (folder / FLIPS).exists():
        for name, counts in read_flips(folder / FLIPS)[1].items():
            found[name] |= flips_by_distance(weights[name], counts["flips"])
    momentum = momentum_of(network)
    for layer in measure_layers(network, x, latent=momentum) if momentum else ():
        found[layer.name] |= {
            "m_angle": np.degrees(np.nanmean(layer.angles)),
            "m_agreement": layer.sign_agreement,
            "m_r": layer.weights_dot.r,
        }
    return found


def table_path(results: str | os.PathLike, table: str, size_name: str) -> Path:
    """The file of a table: NAME.csv, of another size than half width NAME_SIZE.csv."""
    return Path(results) / f"{table}{'' if size_name == 'half' else f'_{size_name}'}.csv"


def train(
    arms: Sequence[str],
    seeds: Sequence[int],
    output: str | os.PathLike,
    results: str | os.PathLike,
    size_name: str = "half",
) -> None:
    """Train what is missing, one run after another, and add a row to the tables after each.

    Seeds are the outer loop, so that a table that is not complete holds all arms alike.

    Raises
    ------
    ValueError
        If a training fails.
    """
    size = SIZES[size_name]
    for seed in seeds:
        for arm in arms:
            tables = [name for name, of in TABLES.items() if arm in of]
            paths = [table_path(results, name, size_name) for name in tables]
            missing = [path for path in paths if not _holds(path, arm, seed)]
            if not missing:
                continue
            words = command(arm, seed, output, size)
            print(" ".join(words), flush=True)
            code = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
            require(
                code == 0, f"the training of {arm} from seed {seed} ended with exit code {code}"
            )
            row = row_of(ROOT / output / f"{arm}_seed{seed}", arm, seed, size.images)
            for path in missing:
                add_row(path, row)


def write_controls(
    output: str | os.PathLike, results: str | os.PathLike, size_name: str = "half"
) -> None:
    """Measure the baseline of the first seed beside its controls, if that is still to be done.

    Writes controls.csv, a row for each control and layer, and a figure of it.
    """
    path = table_path(results, "controls", size_name)
    baseline, floating = (
        ROOT / output / f"{arm}_seed{SEEDS[0]}" / CHECKPOINT for arm in ("baseline", "float")
    )
    if path.exists() or not (baseline.exists() and floating.exists()):
        return
    from bnn import BinaryNeuralNetwork
    from data.load_data import load_data
    from experiment_figures import plot_controls
    from experiments import control_measurements
    from plotting import save_figure

    networks = map(BinaryNeuralNetwork.load, (baseline, floating))
    record = read_record(baseline.parent / RECORD)
    data = load_data(record["data_set"], None, record["valid_size"])
    images = data.x_valid[: SIZES[size_name].images]
    controls = control_measurements(*networks, images, data.x_train, progress=True)
    for control, layers in controls.items():
        for layer, (angle, r) in layers.items():
            figures = {"angle": _rounded(np.degrees(angle)), "r": _rounded(r)}
            add_row(path, {"control": control, "layer": layer, **figures})
    save_figure(plot_controls(controls), path.parent, path.stem)


def write_drift(
    output: str | os.PathLike, results: str | os.PathLike, size_name: str = "half"
) -> None:
    """Write drift.csv and a figure: how latent weights of the baseline, seed 0, drift.

    A row for each layer and cell of distances from the threshold; see `flips.FlipLog`.
    """
    path = table_path(results, "drift", size_name)
    flips = ROOT / output / f"baseline_seed{SEEDS[0]}" / FLIPS
    if path.exists() or not flips.exists():
        return
    from experiment_figures import plot_drift
    from flips import drift_distances, read_flips
    from plotting import save_figure

    edges, layers = drift_distances(), read_flips(flips)[1]
    rows = [
        {"layer": name, "from": start, "to": end, "drift": f"{drift:.3e}", "count": count}
        for name, found in layers.items()
        for start, end, drift, count in zip(
            edges, edges[1:], found["drift"], found["drift_count"], strict=False
        )
        if count
    ]
    _write_rows(path, rows)
    save_figure(plot_drift(edges, layers), path.parent, path.stem)


def write_flips(output: str, results: str, size_name: str = "half") -> None:
    """Write flips.csv: the share of each layer's weights that each epoch changed.

    Adds the finished runs of the arms in `FLIPPED` that the table lacks.
    """
    from geometry_log import read_geometry

    path = table_path(results, "flips", size_name)
    rows = rows_of(path)
    held = {(row["arm"], row["seed"]) for row in rows}
    finished = [row for name in TABLES for row in rows_of(table_path(results, name, size_name))]
    for arm, seed in dict.fromkeys((row["arm"], row["seed"]) for row in finished):
        if arm in FLIPPED and (arm, seed) not in held:
            for row in read_geometry(ROOT / output / f"{arm}_seed{seed}" / GEOMETRY):
                kept = {name: row[name] for name in ("layer", "epochs", "flips")}
                rows.append({"arm": arm, "seed": seed, **kept})
    if rows:
        _write_rows(path, rows)


def flips_by_arm(path: str | os.PathLike) -> dict[str, tuple[list[int], list[list[float]]]]:
    """The share of weights that flipped in each epoch, of the layers that `markdown` summarizes.

    Returns
    -------
    dict
        By arm the epochs, and for each seed the means over its inner layers.
    """
    flips = defaultdict(lambda: defaultdict(list))
    for row in rows_of(path):
        if _is_inner(row["layer"]) and int(row["epochs"]):
            flips[row["arm"]][int(row["epochs"]), row["seed"]].append(float(row["flips"]))
    found = {}
    for arm in filter(flips.get, FLIPPED):
        epochs, seeds = (sorted(set(parts)) for parts in zip(*flips[arm], strict=True))
        means = [[np.mean(flips[arm][epoch, seed]) for epoch in epochs] for seed in seeds]
        found[arm] = epochs, means
    return found


def geometry_by_arm(
    path: str | os.PathLike, arms: Sequence[str] = TABLES["causes"]
) -> dict[str, np.ndarray]:
    """Angle in degrees, r, both means over the inner layers, and validation accuracy of each run.

    Returns
    -------
    dict
        By arm an array of shape (seeds, 3).
    """
    found = defaultdict(list)
    for row in rows_of(path):
        angle, r = (np.mean(_inner(row, name)) for name in ("angle", "r"))
        found[row["arm"]].append((angle, r, float(row["val_accuracy"])))
    return {arm: np.array(found[arm]) for arm in arms if arm in found}


def draw(results: str | os.PathLike, size_name: str = "half") -> None:
    """Draw what is in causes.csv and flips.csv, in files of the same names."""
    from experiment_figures import plot_causes, plot_flips
    from plotting import save_figure

    images = SIZES[size_name].validation_images
    causes, flips = (table_path(results, name, size_name) for name in ("causes", "flips"))
    if causes.exists():
        save_figure(plot_causes(geometry_by_arm(causes), images), causes.parent, causes.stem)
    if flips.exists():
        save_figure(plot_flips(flips_by_arm(flips)), flips.parent, flips.stem)


# --- Tables -----------------------------------------------------------------------------------


def rows_of(path: str | os.PathLike) -> list[dict[str, str]]:
    """The rows of a table, dicts of text; none where there is no file."""
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _holds(path, arm, seed):
    return any((row["arm"], row["seed"]) == (arm, str(seed)) for row in rows_of(path))


def add_row(path: str | os.PathLike, row: dict) -> None:
    """Add a row to the table at `path`, with columns that it lacks; whole or not at all."""
    _write_rows(path, [*rows_of(path), row])


def _write_rows(path, rows):
    columns = dict.fromkeys(name for one in rows for name in one)
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def markdown(path: str | os.PathLike) -> str:
    """The table at `path` by arm: mean and spread over seeds, ranges over the inner layers.

    Inner layers are the convolutional layers but the first.
    """
    by_arm = defaultdict(list)
    for row in rows_of(path):
        by_arm[row["arm"]].append(row)
    lines = []
    for arm, rows in by_arm.items():
        accuracies = [100 * float(row["val_accuracy"]) for row in rows]
        cells = (range_of(rows, *column) for column in _COLUMNS.values())
        lines.append((arm, len(rows), spread(accuracies), *cells))
    head = ("arm", "seeds", "validation (%)", *_COLUMNS)
    return tabulate(*without_empty(lines, head), "github", disable_numparse=True)


def without_empty(lines: Sequence[Sequence], head: Sequence[str]) -> tuple[list[list], list[str]]:
    """The lines and the head of a table without the columns that hold dashes alone."""
    kept = [i for i, cells in enumerate(zip(*lines, strict=True)) if set(cells) != {"—"}]
    return [[line[i] for i in kept] for line in lines], [head[i] for i in kept]


# Columns of `markdown`: the figure of a layer, and how it is written.
_COLUMNS = {
    "angle (°)": ("angle", "{:.1f}"),
    "κ": ("kurtosis", "{:.2f}"),
    "r": ("r", "{:.3f}"),
    "near": ("near", "{:.3f}"),
    "flipped": ("flipped", "{:.3f}"),
    "near that flipped": ("near_flipped", "{:.2f}"),
    "near of the rest": ("still_near", "{:.3f}"),
    "angle of −m (°)": ("m_angle", "{:.1f}"),
    "r of −m": ("m_r", "{:.3f}"),
}


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, or the values where there are fewer than three."""
    if len(values) < 3:  # Two values do not estimate a spread.
        return ", ".join(f"{value:.2f}" for value in values)
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def _is_inner(layer):
    return bool(re.fullmatch(r"conv_\d+", layer)) and layer != "conv_1"


def _inner(row, name):
    """The figure `name` of each inner layer of a run that has it."""
    return [
        float(text)
        for column, text in row.items()
        if text not in ("", "nan")
        and column.endswith(f"_{name}")
        and _is_inner(column.removesuffix(f"_{name}"))
    ]


def range_of(rows: Sequence[dict], name: str, form: str) -> str:
    """Least to greatest figure `name` of the inner layers of runs, each written in `form`."""
    values = [value for row in rows for value in _inner(row, name)]
    if not values:
        return "—"
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


# --- Command line -----------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`; bad input ends with exit code 2."""
    cli = argparse.ArgumentParser(prog=PROGRAM, description=(__doc__ or "").partition("\n")[0])
    add = cli.add_argument
    add("--arms", nargs="+", choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    add("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="N", help="default: 0 1 2")
    add("--size", default="half", choices=SIZES, help="half width on CIFAR-10 (default), or digits")
    add("--output", help="folder of the runs (default: output/arms_SIZE)")
    add("--results", default="results", help="folder of the tables (default: results)")
    add("--tables", action="store_true", help="train nothing: print the tables as they are")
    args = cli.parse_args(argv)
    resume = "interrupted: the same command goes on"
    with one_line_errors(PROGRAM, resume):
        if not args.tables:
            output = args.output or f"output/arms_{args.size}"
            # Digits are too small for six convolutions with strides.
            fitting = [arm for arm in ARMS if args.size == "half" or arm not in TABLES["shortcuts"]]
            train(args.arms or fitting, args.seeds, output, args.results, args.size)
            write_controls(output, args.results, args.size)
            write_drift(output, args.results, args.size)
            write_flips(output, args.results, args.size)
            draw(args.results, args.size)
        for name in TABLES:
            path = table_path(args.results, name, args.size)
            if path.exists():
                print(f"{name}\n\n{markdown(path)}\n")


if __name__ == "__main__":
    main()
