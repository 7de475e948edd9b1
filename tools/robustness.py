"""Natural, attacked and verified accuracy, from the files of attack.py and verify.py.

python -m tools.robustness results/verify

reads `NETWORK/EPSILON/attack.csv` and `verify.csv` with their records under the folder, and writes
`accuracy.csv` and the figure `verified.png` there. Of each `NETWORK/network.keras`, with
its `run.json`, it measures the geometry, and writes `geometry.csv`.
"""

import argparse
import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

import attack
from data.load_data import load_data
from files import atomic_path
from utils import one_line_errors, require
from verification import results

PROGRAM = "python -m tools.robustness"
MEASURED_IMAGES = 500
COLUMNS = (
    *("network", "epsilon", "images", "natural", "attacked", "verified", "undecided"),
    *("mean_seconds", "median_seconds", "worst_seconds"),
)


def summary(
    network: str, epsilon: float, verdicts: dict[int, dict], attacks: dict[int, dict]
) -> dict:
    """One row of the table, a dict of `COLUMNS`.

    Parameters
    ----------
    network : str
    epsilon : float
    verdicts, attacks : dict of int to dict
        Rows of verify.csv and of attack.csv, by image. Only images in both are counted.

    Raises
    ------
    ValueError
        If the two are not about the same network, or an attack fools a network on an image that is
        called robust.
    """
    both = sorted(verdicts.keys() & attacks.keys())
    require(both, f"{network} at {epsilon}: no image was both attacked and verified")
    proved, tried = ([rows[index] for index in both] for rows in (verdicts, attacks))
    for one, other in zip(proved, tried, strict=True):
        same = all(one[name] == other[name] for name in ("label", "predicted"))
        require(same, f"{network}: image {one['index']} has other labels in the two tables")
        require(
            not (one["verdict"] == results.ROBUST and other["verdict"] == attack.FOOLED),
            f"{network} at {epsilon}: image {one['index']} is called robust, but an attack "
            "fools it",
        )

    def share(rows, verdict):
        return float(np.mean([row["verdict"] == verdict for row in rows]))

    seconds = [float(row["seconds"]) for row in proved]
    values = (
        *(network, epsilon, len(both), 1 - share(proved, results.MISCLASSIFIED)),
        *(share(tried, attack.NOT_FOOLED), share(proved, results.ROBUST)),
        share(proved, results.UNDECIDED),
        *(float(f(seconds)) for f in (np.mean, np.median, np.max)),
    )
    return dict(zip(COLUMNS, values, strict=True))


def summaries(folder: str | os.PathLike) -> list[dict]:
    """A row for each network and ε under a folder, sorted."""
    found = []
    for table in sorted(Path(folder).glob(f"*/*/{results.TABLE}")):
        if not (table.parent / attack.TABLE).is_file():
            continue
        verified, attacked = (
            json.loads((table.parent / name).read_text(encoding="utf-8"))
            for name in (results.RECORD, attack.RECORD)
        )
        same = verified["epsilon"] == attacked["epsilon"]
        require(same, f"{table.parent} holds two values of epsilon")
        rows = (_rows(table.parent / name) for name in (results.TABLE, attack.TABLE))
        found.append(summary(table.parent.parent.name, verified["epsilon"], *rows))
    require(found, f"{folder} holds no NETWORK/EPSILON with {results.TABLE} and {attack.TABLE}")
    return sorted(found, key=lambda row: (row["network"], row["epsilon"]))


def _rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return {int(row["index"]): row for row in csv.DictReader(file)}


def geometry_rows(checkpoint: str | os.PathLike, x: np.ndarray) -> list[dict]:
    """Geometry of each layer of a network, dicts: angles in degrees, r pooled.

    Parameters
    ----------
    checkpoint : path-like
        `NETWORK/network.keras`.
    x : ndarray of uint8
        Test images on which r is measured.
    """
    from bnn import BinaryNeuralNetwork
    from measure import measure_layers

    def row(layer):
        angles, activations = np.degrees(layer.angles), layer.activations_dot
        return {
            "network": Path(checkpoint).parent.name,
            "layer": layer.name,
            "zeros": float(np.mean(layer.wb == 0)),
            "angle": float(np.nanmean(angles)),
            "angle_sd": float(np.nanstd(angles)),
            "kurtosis": float(layer.kurtosis),
            "r_weights": float(layer.weights_dot.r),
            "r_activations": float(activations.r) if activations else "",
        }

    return [row(layer) for layer in measure_layers(BinaryNeuralNetwork.load(checkpoint), x)]


def _measured(folder):
    for checkpoint in tqdm(sorted(folder.glob("*/network.keras")), "geometry", unit="network"):
        record = (checkpoint.parent / "run.json").read_text(encoding="utf-8")
        data_set = json.loads(record)["data_set"]
        yield from geometry_rows(checkpoint, load_data(data_set).x_test[:MEASURED_IMAGES])


def _write_table(path, rows):
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`; bad input ends with exit code 2."""
    cli = argparse.ArgumentParser(prog=PROGRAM, description=(__doc__ or "").partition("\n")[0])
    cli.add_argument("folder", type=Path, help="folder of the networks")
    with one_line_errors(PROGRAM):
        folder = cli.parse_args(argv).folder
        rows, layers = summaries(folder), list(_measured(folder))
        from experiment_figures import plot_verified
        from plotting import save_figure

        _write_table(folder / "accuracy.csv", rows)
        save_figure(plot_verified(rows), folder, "verified")
        print(tabulate(rows, headers="keys", floatfmt=".4g"))
        if layers:
            _write_table(folder / "geometry.csv", layers)
            print(tabulate(layers, headers="keys", floatfmt=".4g"))


if __name__ == "__main__":
    main()
