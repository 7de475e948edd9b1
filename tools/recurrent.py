"""Recurrent networks with binary, ternary and float kernels, trained alike from several seeds.

python -m tools.recurrent                       # digits; goes on where it was interrupted
python -m tools.recurrent --data_set MNIST
python -m tools.recurrent --network scaled_gru  # without batch norm

Each finished run adds a row to results/recurrent.csv, and rows for each time step to
results/recurrent_time.csv. Accuracies are those of validation images, the last training images.
"""

import argparse
import csv
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.load_data import IMAGE_SHAPES, Data, load_data
from files import atomic_path
from tools.arms import add_row, rows_of, without_empty
from utils import NetworkParams, TrainingParams, one_line_errors

# isort: split
from tabulate import tabulate

if TYPE_CHECKING:
    import keras

    from bnn import BinaryNeuralNetwork

PROGRAM = "python -m tools.recurrent"
KINDS = {
    "binary": {},
    "ternary": {"levels": 3, "threshold_sigma": 0.612},
    "float": {"bin_weights": False, "bin_acts": False},
}
NETWORKS = ("gru", "lstm", "scaled_gru", "raw_gru", "scaled_lstm", "raw_lstm")
SEEDS = (0, 1, 2)
# Of each data set: training images, validation images, epochs.
SIZES = {"digits": (1000, 257, 20), "MNIST": (20_000, 10_000, 5)}
UNITS = 128
# Networks without batch norm: the power of the fan-in by which the products of the recurrent
# layer are multiplied instead.
WITHOUT_NORM = {"scaled": -0.5, "raw": 0.0}
RESULTS = Path(__file__).parent.parent / "results"
# Validation images on which the geometry is measured.
IMAGES = 250

# --- Runs -------------------------------------------------------------------------------------


def train(network: str, kind: str, seed: int, data_set: str) -> tuple["BinaryNeuralNetwork", Data]:
    """A trained network and the images that it was trained and is judged on."""
    from bnn import BinaryNeuralNetwork

    count, valid, epochs = SIZES[data_set]
    data = load_data(data_set, None, valid)
    params = NetworkParams(network=_cell(network), fc=(UNITS,), **KINDS[kind])
    training = TrainingParams(
        batch_size=50 if data_set == "digits" else 100,
        epochs=epochs,
        lr_start=4e-3,
        lr_end=1e-5,
        lr_schedule="linear",
        seed=seed,
    )
    made = BinaryNeuralNetwork(IMAGE_SHAPES[data_set], 10, params, training)
    if network != _cell(network):
        made.model = without_norm(made, WITHOUT_NORM[network.partition("_")[0]])
    made.fit(data.x_train[:count], data.y_train[:count], verbose=2)
    return made, data._replace(x_train=data.x_train[:count])


def without_norm(network: "BinaryNeuralNetwork", power: float) -> "keras.Model":
    """The model of a recurrent network without batch norm and without gains.

    Products of the recurrent layer with quantized weights are multiplied by a power of the fan-in
    instead. −1/2 normalizes them for independent inputs of variance 1. Nothing but signs is then
    learned of a kernel, as Ott et al. (2016, arXiv 1608.06902) trained binary and ternary kernels.
    """
    import networks

    # isort: split
    import keras

    class Layers(networks.Layers):
        def norm(self, x, suffix="", **options):
            layer = x._keras_history.operation
            fan_in = layer.latent_kernel.shape[0] if layer.kernel_quantizer else 1
            # Scores have no suffix: they are alike in all networks.
            return keras.layers.Rescaling(fan_in ** (power if suffix else -0.5))(x)

    params, shape = network.network_params, network.in_dim
    images = keras.Input(shape, dtype="uint8", name="images")
    layers = Layers(params, network.training_params)
    scores = networks.NETWORKS[params.network](images, network.out_dim, params, layers)
    model = keras.Model(images, scores)
    step = model.get_layer(f"{params.network}_1_step")
    for gain in (step.input_gain, step.state_gain):
        gain.assign(keras.ops.ones_like(gain))
        gain.trainable = False
    return model


def _cell(network):
    """`gru` or `lstm`, with or without batch norm."""
    return network.rpartition("_")[2]


def spectral_radius(kernel: np.ndarray) -> float:
    """Largest |eigenvalue| of a state's kernel, mean over the gates side by side in it."""
    gates = np.split(kernel, kernel.shape[1] // len(kernel), axis=1)
    return float(np.mean([np.abs(np.linalg.eigvals(gate)).max() for gate in gates]))


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
    if network != _cell(network):
        state = made.model.get_layer(f"{_cell(network)}_1_state")
        kernel = np.asarray(state.quantized_kernel())
        power = WITHOUT_NORM[network.partition("_")[0]] if state.kernel_quantizer else 0
        row["radius"] = round(spectral_radius(len(kernel) ** power * kernel), 3)
    elif kind != "float":
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


def table(rows: Sequence[dict], data_set: str, networks: Sequence[str] = ("gru",)) -> str:
    """Means over seeds by network and kind, as Markdown.

    Parameters
    ----------
    rows : sequence of dict
        Of recurrent.csv, as `tools.arms.rows_of` reads them.
    data_set : str
    networks : sequence of str
        Of one cell.
    """
    columns, lines = _columns(networks[0]), []
    for network, kind in itertools.product(networks, KINDS):
        chosen = _chosen(rows, data_set, network, kind)
        numbers = {
            name: np.array([float(row[name]) for row in chosen if row.get(name)])
            for name in ("val_accuracy", *columns.values(), "radius")
        }
        numbers["val_accuracy"] *= 100
        forms = ["{:.2f}", *_FORMS, "{:.2f}"]
        cells = map(_mean, numbers.values(), forms)
        lines.append((network, kind, len(chosen), *cells))
    head = ["network", "kernels", "seeds", "validation (%)", *columns, "spectral radius"]
    return tabulate(*without_empty(lines, head), "github", disable_numparse=True)


def over_time(rows: Sequence[dict], data_set: str, network: str = "gru") -> dict:
    """The panels of `experiment_figures.plot_over_time`, of the rows of recurrent_time.csv."""
    layer = _cell(network)
    titles = {
        f"{layer}_1_input": "A·w$^c$ and A·w$^b$ of the input",
        f"{layer}_1_state": "A·w$^c$ and A·w$^b$ of the state",
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
        if lines:
            panels[title] = lines
    return panels


def _columns(network):
    layer = _cell(network)
    return {
        f"{figure} of the {part}": f"{layer}_1_{part}_{name}"
        for part in ("input", "state")
        for figure, name in (("angle (°)", "angle"), ("r", "r"))
    }


_FORMS = ["{:.1f}", "{:.3f}"] * 2


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
    cli.add_argument("--network", default="gru", choices=NETWORKS)
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
