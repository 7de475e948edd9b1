"""The tables of README.md and docs/results.md, from the files under results/.

`python -m tools.summary` prints them, and a test compares both documents with them.
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from tabulate import DataRow, TableFormat, tabulate

import geometry
from utils import one_line_errors, require

PROGRAM = "python -m tools.summary"
# The columns of the tables of claims: the folder of a network, and its title. The folders of the
# same training from other seeds have the suffix _seed1, _seed2, …
PAPER_NETWORKS = {
    "cifar-10_binary": "CIFAR-10, binary",
    "cifar-10_ternary": "CIFAR-10, ternary",
}
NETWORKS = {
    **PAPER_NETWORKS,
    "cifar-10_binary_half": "CIFAR-10, binary, half width",
    "cifar-10_ternary_half_sigma": "CIFAR-10, ternary at t = 0.612σ, half width",
    "MNIST_binary": "MNIST, binary",
    "MNIST_ternary": "MNIST, ternary",
}

# The lines of the table of costs: networks of half the width, trained with the same recipe, and how
# they quantize weights and activations.
TWINS = {
    "cifar-10_binary_half": "binary",
    "cifar-10_ternary_half": "ternary: weights 0.02, activations 0.02",
    "cifar-10_ternary_half_activations": "ternary: weights 0.02, activations 0.612",
    "cifar-10_ternary_half_weights": "ternary: weights 0.612σ, activations 0.02",
    "cifar-10_ternary_half_sigma": "ternary: weights 0.612σ, activations 0.612",
    "cifar-10_continuous_half": "float (`--continuous`)",
}

# Flags that do not change what is trained: with a value, and without.
_ELSEWHERE = ("--data_dir", "--out_dir", "--seed")
_KEEPING = ("--resume", "--track_geometry", "--pack", "--compact")


# --- Tables -----------------------------------------------------------------------------------

_ROW = DataRow("|", "|", "|")
# Without padding, which would change every line of a table with its longest cell.
_UNPADDED = TableFormat(
    lineabove=None,
    linebelowheader=lambda widths, _: "|" + " --- |" * len(widths),
    linebetweenrows=None,
    linebelow=None,
    headerrow=_ROW,
    datarow=_ROW,
    padding=1,
    with_header_hide=None,
)


def _markdown(head, rows):
    """Lines of a Markdown table."""
    options = {"stralign": None, "disable_numparse": True}
    return tabulate(rows, head, _UNPADDED, **options).splitlines()


# --- Claims -----------------------------------------------------------------------------------


def claims_table(results="results", networks=NETWORKS):
    """What the paper claims, and what was measured on each network.

    A cell gives the lowest and the highest value over the inner layers, which are the convolutional
    layers except the first, and over all seeds. It is bold if it misses the condition by which
    `report.py` judges the claim. An accuracy is listed for each of two seeds; of more it is the
    mean with the standard deviation over seeds.

    Parameters
    ----------
    results : path-like
        Folder of the runs, one folder each.
    networks : mapping
        From a run's folder to the title of its column. Those without a report are left out.

    Returns
    -------
    list of str
        Lines of Markdown.

    Raises
    ------
    ValueError
        If none of the networks has a report there.
    """
    columns = _labelled(results, networks)
    rows = [
        (claim, theory, *(figure(reports) for reports in columns.values()))
        for claim, theory, figure in CLAIMS
    ]
    return _markdown(("quantity", "paper, theory or condition", *columns), rows)


def paper_table(results="results"):
    """The part of `claims_table` that is about the paper's two networks.

    Parameters, what is returned and errors are those of `claims_table`.
    """
    return claims_table(results, PAPER_NETWORKS)


def costs_table(results="results"):
    """What quantization costs: angles and r of the inner layers, and test accuracy, of `TWINS`.

    Parameters, what is returned and errors are those of `claims_table`.
    """
    kept = {
        _ANGLE: _inner(lambda layer: layer["angle"], "{:.1f}"),
        _WEIGHTS_R: _inner(lambda layer: layer["weights_dot"]["r"]),
        _ACTIVATIONS_R: _inner(lambda layer: layer["activations_dot"]["r"]),
        "test accuracy (%)": _accuracy,
        "seeds": len,
    }
    rows = [
        (label, *(figure(reports) for figure in kept.values()))
        for label, reports in _labelled(results, TWINS).items()
    ]
    return _markdown(("half width", *kept), rows)


def _labelled(results, labels):
    """From the label of each network that has reports to its reports, of all seeds."""
    networks = {label: _reports(Path(results), name) for name, label in labels.items()}
    networks = {label: reports for label, reports in networks.items() if reports}
    require(networks, f"{results} holds no report of any of {', '.join(labels)}")
    return networks


def _reports(results, name):
    """Those of a network from all seeds."""
    folders = [results / name, *sorted(results.glob(f"{name}_seed*"))]
    return [_read(path) for folder in folders if (path := folder / "report.json").is_file()]


def _read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _convs(report):
    return [layer for layer in report["layers"] if layer["layer"].startswith("conv_")]


def _inner_layers(reports):
    return [layer for report in reports for layer in _convs(report)[1:]]


def _first_layers(reports):
    return [_convs(report)[0] for report in reports]


def _range(values, form):
    low, high = (form.format(bound).replace("-", "−") for bound in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _over_seeds(values):
    # Two values do not estimate a spread.
    if len(values) < 3:
        return ", ".join(f"{value:.2f}" for value in values)
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def _inner(value, form="{:.3f}", at_least=-np.inf, at_most=np.inf):
    """The range of a figure over the inner layers, bold if it leaves its bounds."""

    def figure(reports):
        values = [value(layer) for layer in _inner_layers(reports)]
        text = _range(values, form)
        return text if at_least <= min(values) and max(values) <= at_most else f"**{text}**"

    return figure


def _judged(claim_id, figure):
    """A figure, bold if the claim fails in a report, a dash if it does not apply."""

    def judged(reports):
        claims = [claim for report in reports for claim in report["claims"]]
        holds = [claim["holds"] for claim in claims if claim["id"] == claim_id]
        if None in holds:
            return "—"
        return figure(reports) if all(holds) else f"**{figure(reports)}**"

    return judged


def _accuracy(reports):
    return _over_seeds([100 * report["test_accuracy"] for report in reports])


def _off_closed_form(layer):
    return abs(layer["angle"] - np.degrees(np.arccos(geometry.ternary_cosine(layer["tau"]))))


def _off_kurtosis(layer):
    return abs(layer["angle"] - layer["kurtosis_angle"])


def _off_peaked(layer):
    return abs(layer["angle"] - layer["peaked_angle"])


def _exponent(reports):
    convs = [[(layer["d"], layer["angle_sd"]) for layer in _convs(report)] for report in reports]
    return _range([geometry.scaling_exponent(*np.transpose(pairs)) for pairs in convs], "{:.2f}")


def _fall(reports):
    before = _inner(lambda layer: layer["weights_dot"]["inside_unit_r"], "{:.2f}")(reports)
    after = _inner(lambda layer: layer["permuted"]["inside_unit_r"], "{:.2f}")(reports)
    return f"{before} → {after}"


def _first_r(reports):
    return _range([layer["weights_dot"]["r"] for layer in _first_layers(reports)], "{:.3f}")


def _whitened(reports):
    shares = [100 * layer["variance_shares"][0] for layer in _first_layers(reports)]
    whitened = [report["rotation"]["zca"]["weights"] for report in reports]
    return f"{_range(shares, '{:.0f} %')}; {_first_r(reports)} → {_range(whitened, '{:.3f}')}"


def _points_lost(reports):
    lost = [
        report["test_accuracy"] - report["substitution"][layer["layer"]][1]
        for report in reports
        for layer in _convs(report)[1:]
    ]
    return _range([100 * points for points in lost], "{:.2f}")


_ANGLE = "angle between w<sup>c</sup> and w<sup>b</sup> (°)"
_WEIGHTS_R = "pooled r of A·w<sup>c</sup> and A·w<sup>b</sup>"
_ACTIVATIONS_R = "pooled r of A<sup>c</sup>·w<sup>b</sup> and A<sup>b</sup>·w<sup>b</sup>"

# What is measured; what the paper, theory or the condition says; the figure.
CLAIMS = (
    ("test accuracy (%)", "CIFAR-10: 88.6 to 89.9 after 500 epochs", _accuracy),
    (_ANGLE, "37.07; less if ternary", _inner(lambda layer: layer["angle"], "{:.1f}")),
    (
        "distance to the Gaussian angle at t/σ (°)",
        "≤ 4",
        _inner(_off_closed_form, "{:.1f}", at_most=4),
    ),
    ("distance to the angle of κ (°)", "≤ 1", _inner(_off_kurtosis, "{:.2f}", at_most=1)),
    (
        "distance to the angle of κ and peak (°)",
        "≤ 1",
        _inner(_off_peaked, "{:.2f}", at_most=1),
    ),
    (
        "σ of w<sup>c</sup> / σ at initialization",
        "≥ 2",
        _inner(lambda layer: layer["sd_over_initial"], "{:.1f}", at_least=2),
    ),
    (
        "spread of the angle over units: exponent of d",
        "−0.5 ± 0.15",
        _judged("angle-scaling", _exponent),
    ),
    (
        _WEIGHTS_R,
        "≥ 0.9",
        _judged("weights-dot", _inner(lambda layer: layer["weights_dot"]["r"])),
    ),
    ("the same in the first layer", "below", _judged("weights-dot", _first_r)),
    (
        _ACTIVATIONS_R,
        "≥ 0.85",
        _judged("activations-dot", _inner(lambda layer: layer["activations_dot"]["r"])),
    ),
    (
        "r by unit of A·w<sup>c</sup> and A·w<sup>b</sup>: inputs as they are → permuted",
        "→ cosine of the angle",
        _judged("permutation", _fall),
    ),
    (
        "first layer: variance on the first axis; pooled r as it is → whitened",
        "≥ 50 %; up by 0.15",
        _judged("first-layer", _whitened),
    ),
    (
        "accuracy lost with w<sup>c</sup> in place of w<sup>b</sup> in one layer (points)",
        "≤ 2",
        _judged("substitution", _points_lost),
    ),
)


# --- Runs -------------------------------------------------------------------------------------


def runs_table(results="results"):
    """Every trained network under `results`. Runs that differ only in their seed share a line.

    Accuracies are those of `claims_table`, minutes the least and the most of the runs. The
    parameter and what is returned are those of `claims_table`.

    Raises
    ------
    ValueError
        If no run is there.
    """
    groups = defaultdict(list)
    for path in sorted(Path(results).glob("*/run.json")):
        run = _read(path)
        groups[_training(run)].append((run, path.parent))
    require(groups, f"{results} holds no run")
    rows = []
    for runs in sorted(groups.values(), key=lambda runs: _flags(runs[0][0])):
        flags = _flags(runs[0][0])
        seeds = sorted(run["training_params"]["seed"] for run, _ in runs)
        minutes = [_minutes(folder) for _, folder in runs]
        rows.append(
            (
                f"`{flags}`" if flags else "none",
                ", ".join(map(str, seeds)),
                runs[0][0]["training_params"]["epochs"],
                _over_seeds([100 * run["test_accuracy"] for run, _ in runs]),
                _range(minutes, "{:.0f}"),
            )
        )
    return _markdown(("flags", "seeds", "epochs", "test accuracy (%)", "minutes"), rows)


def _training(run):
    """Everything but the seed that decides what a run trains, in any order of flags."""
    parts = [run[name] for name in ("data_set", "valid_size", "debug")]
    # An option that did not exist yet is missing in a run, and None in later ones.
    network = {name: value for name, value in run["network_params"].items() if value is not None}
    return json.dumps([*parts, network, {**run["training_params"], "seed": None}], sort_keys=True)


def _flags(run):
    """The flags of a run's first command that say what it trains."""
    words, kept = run["sittings"][0]["command"][1:], []
    while words:
        word, *words = words
        if word in _ELSEWHERE:
            words = words[1:]
        elif word not in _KEEPING:
            kept.append(word)
    return " ".join(kept)


def _minutes(folder):
    with open(folder / "history.csv", encoding="utf-8", newline="") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file)) / 60


# --- Command line -----------------------------------------------------------------------------


def main(argv=None):
    """`python -m tools.summary`: print the tables."""
    cli = argparse.ArgumentParser(
        prog=PROGRAM,
        description="The tables of README.md and docs/results.md, from the files under results/.",
    )
    cli.parse_args(argv)
    with one_line_errors(PROGRAM):
        tables = paper_table(), claims_table(), costs_table(), runs_table()
        print("\n\n".join("\n".join(lines) for lines in tables))


if __name__ == "__main__":
    main()
