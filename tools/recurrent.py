"""Recurrent networks with binary, ternary and float kernels, trained alike from several seeds.

python -m tools.recurrent                       # digits; goes on where it was interrupted
python -m tools.recurrent --data_set MNIST

Each finished run adds a row to results/recurrent.csv, and rows for each time step to
results/recurrent_time.csv. Accuracies are those of validation images, the last training images.
"""

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.load_data import IMAGE_SHAPES, Data, load_data
from files import atomic_path
from tools.arms import add_row, rows_of
from utils import NetworkParams, TrainingParams, one_line_errors

# isort: split
from tabulate import tabulate

if TYPE_CHECKING:
    from bnn import BinaryNeuralNetwork

PROGRAM = "python -m tools.recurrent"
KINDS = {
    "binary": {},
    "ternary": {"levels": 3, "threshold_sigma": 0.612},
    "float": {"bin_weights": False, "bin_acts": False},
}
SEEDS = (0, 1, 2)
# Of each data set: training images, validation images, epochs.
SIZES = {"digits": (1000, 257, 20), "MNIST": (20_000, 10_000, 5)}
UNITS = 128
RESULTS = Path(__file__).parent.parent / "results"
# Validation images on which the geometry is measured.
IMAGES = 250

# --- Runs -------------------------------------------------------------------------------------


def train(network: str, kind: str, seed: int, data_set: str) -> tuple["BinaryNeuralNetwork", Data]:
    """A trained network and the images that it was trained and is judged on."""
    from bnn import BinaryNeuralNetwork

    count, valid, epochs = SIZES[data_set]
    data = load_data(data_set, None, valid)
    params = NetworkParams(network=network, fc=(UNITS,), **KINDS[kind])
    training = TrainingParams(
        batch_size=50 if data_set == "digits" else 100,
        epochs=epochs,
        lr_start=4e-3,
        lr_end=1e-5,
        lr_schedule="linear",
        seed=seed,
    )
    made = BinaryNeuralNetwork(IMAGE_SHAPES[data_set], 10, params, training)
    made.fit(data.x_train[:count], data.y_train[:count], verbose=2)
    return made, data._replace(x_train=data.x_train[:count])


def rows_of_run(network: str, kind: str, seed: int, data_set: str) -> tuple[dict, list[dict]]:
    """Train, and measure: a row of the run, and the rows of its time steps."""
    from experiments import correlations_over_time, drift_over_time
    from measure import measure_layers

    started = time.perf_counter()
    made, data = train(network, kind, seed, data_set)
    key = {"data_set": data_set, "network": network, "kind": kind, "seed": seed}
    row = {
        **key,
        "epochs": made.training_params.epochs,
        "training_images": len(data.x_train),
        "validation_images": len(data.x_valid),
        "val_accuracy": round(made.score(data.x_valid, data.y_valid), 4),
    }
    x = data.x_valid[:IMAGES]
    for layer in measure_layers(made, x):
        row[f"{layer.name}_angle"] = round(float(np.degrees(np.nanmean(layer.angles))), 2)
        row[f"{layer.name}_r"] = round(float(layer.weights_dot.r), 4)
        row[f"{layer.name}_kurtosis"] = round(float(layer.kurtosis), 3)
    series = dict(correlations_over_time(made.model, x))
    if kind != "float":
        # The twin has its batch norm re-estimated on the same images.
        made.refit_batch_norm(data.x_train[:1000])
        for part in ("input", "state"):
            twin = made.with_weights([f"{network}_1_{part}"])
            twin.refit_batch_norm(data.x_train[:1000])
            series[f"state, latent {part} kernel"] = drift_over_time(made, twin, x)
            row[f"latent_{part}_val_accuracy"] = round(twin.score(data.x_valid, data.y_valid), 4)
    steps = [
        # The first product of a state is that of the second time step.
        {**key, "what": what, "step": step + what.endswith("_state"), "r": round(float(r), 4)}
        for what, values in series.items()
        for step, r in enumerate(values, 1)
    ]
    row["minutes"] = round((time.perf_counter() - started) / 60, 1)
    return row, steps


def _put(path, steps):
    """Write rows of time steps in the place of those of the same run, whole or not at all."""
    names = ("data_set", "network", "kind", "seed")
    run = [str(steps[0][name]) for name in names]
    kept = [row for row in rows_of(path) if [row[name] for name in names] != run]
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, steps[0].keys())
        writer.writeheader()
        writer.writerows([*kept, *steps])


# --- What was measured ------------------------------------------------------------------------


def table(rows: Sequence[dict], data_set: str, network: str = "gru") -> str:
    """Means over seeds by kind, as Markdown.

    Parameters
    ----------
    rows : sequence of dict
        Of recurrent.csv, as `tools.arms.rows_of` reads them.
    data_set, network : str
    """
    lines = []
    for kind in KINDS:
        chosen = _chosen(rows, data_set, network, kind)
        numbers = {
            name: np.array([float(row[name]) for row in chosen if row.get(name)])
            for name in ("val_accuracy", *_columns(network).values())
        }
        accuracy = 100 * numbers["val_accuracy"]
        forms = ["{:.1f}" if name.endswith("angle") else "{:.3f}" for name in numbers]
        cells = map(_mean, list(numbers.values())[1:], forms[1:])
        lines.append((kind, len(chosen), _mean(accuracy, "{:.2f}"), *cells))
    head = ("kernels", "seeds", "validation accuracy (%)", *_columns(network))
    return tabulate(lines, head, "github", disable_numparse=True)


def over_time(rows: Sequence[dict], data_set: str, network: str = "gru") -> dict:
    """The panels of `experiment_figures.plot_over_time`, of the rows of recurrent_time.csv."""
    titles = {
        f"{network}_1_input": "A·w$^c$ and A·w$^b$ of the input",
        f"{network}_1_state": "A·w$^c$ and A·w$^b$ of the state",
        "state, latent input kernel": "state, with w$^c$ in the input kernel",
        "state, latent state kernel": "state, with w$^c$ in the state kernel",
    }
    panels = {}
    for what, title in titles.items():
        lines = {}
        for kind in KINDS:
            chosen = [row for row in _chosen(rows, data_set, network, kind) if row["what"] == what]
            series = [
                [(int(row["step"]), float(row["r"])) for row in chosen if row["seed"] == seed]
                for seed in dict.fromkeys(row["seed"] for row in chosen)
            ]
            if series:
                steps, values = np.moveaxis(np.array(series), -1, 0)
                lines[kind] = steps[0], values
        panels[title] = lines
    return panels


def _columns(network):
    return {
        f"{figure} of the {part}": f"{network}_1_{part}_{name}"
        for part in ("input", "state")
        for figure, name in (("angle (°)", "angle"), ("r", "r"))
    }


def _chosen(rows, *key):
    names = ("data_set", "network", "kind")
    return [row for row in rows if tuple(row[name] for name in names) == key]


def _mean(values, form):
    if len(values) < 2:
        return " ".join(map(form.format, values)) or "—"
    return f"{form.format(values.mean())} ± {form.format(values.std(ddof=1))}"


# --- Command line -----------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing; bad input ends with exit code 2."""
    cli = argparse.ArgumentParser(prog=PROGRAM, description=(__doc__ or "").partition("\n")[0])
    cli.add_argument("--data_set", default="digits", choices=SIZES)
    cli.add_argument("--network", default="gru", choices=("gru", "lstm"))
    cli.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="N")
    cli.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    args = cli.parse_args(argv)
    runs, times = args.results / "recurrent.csv", args.results / "recurrent_time.csv"
    with one_line_errors(PROGRAM, "interrupted: the same command goes on"):
        for seed in args.seeds:
            for kind in KINDS:
                key = (args.data_set, args.network, kind, str(seed))
                done = {
                    tuple(row[n] for n in ("data_set", "network", "kind", "seed"))
                    for row in rows_of(runs)
                }
                if key in done:
                    continue
                row, steps = rows_of_run(args.network, kind, seed, args.data_set)
                _put(times, steps)
                add_row(runs, row)
                print(row, flush=True)


if __name__ == "__main__":
    main()
