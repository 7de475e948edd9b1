"""The README's tables, from the reports, histories and metadata under results/.

`python summary.py` prints them, and a test compares the README with them.
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import geometry
from utils import markdown_table, one_line_errors, require

# isort: split
import numpy as np

# The networks of the table of claims, a column each: those whose report is there. The same
# training from other seeds lies in folders of that name with _seed1, _seed2 behind it.
NETWORKS = {
    "cifar-10_binary": "CIFAR-10, binary",
    "cifar-10_ternary": "CIFAR-10, ternary",
    "cifar-10_binary_half": "CIFAR-10, binary, half width",
    "cifar-10_ternary_half_sigma": "CIFAR-10, ternary at t = 0.612σ, half width",
    "MNIST_binary": "MNIST, binary",
    "MNIST_ternary": "MNIST, ternary",
}

# What the same network, at half the width and with the same recipe, quantizes its weights and
# activations with: the lines of the table of costs.
TWINS = {
    "cifar-10_binary_half": "binary",
    "cifar-10_ternary_half": "ternary, weights and activations at 0.02",
    "cifar-10_ternary_half_activations": "… activations at 0.612",
    "cifar-10_ternary_half_weights": "… weights at 0.612σ",
    "cifar-10_ternary_half_sigma": "… both",
    "cifar-10_continuous_half": "float (`--continuous`)",
}

# Flags that say where a run lies and what it keeps, not what it trains.
_ELSEWHERE = ("--data_dir", "--out_dir", "--seed")
_KEEPING = ("--resume", "--track_geometry", "--pack", "--compact")


# --- Claims -----------------------------------------------------------------------------------


def claims_table(results="results"):
    """What the paper claims beside what was measured on each network of `NETWORKS`.

    Figures of layers are those of the inner ones, the convolutional layers but the first, unless
    said, those of all seeds together; accuracies are means over seeds with the standard deviation
    over them. A figure in bold misses its condition, one of those that `report.py` judges claims
    by.

    Parameters
    ----------
    results : path-like
        Folder of the runs, one folder each.

    Returns
    -------
    list of str
        Lines of Markdown.

    Raises
    ------
    ValueError
        If none of the networks has a report there.
    """
    networks = _labelled(results, NETWORKS)
    rows = [
        (claim, theory, *(figure(reports) for reports in networks.values()))
        for claim, theory, figure in CLAIMS
    ]
    return markdown_table(("claim", "paper or theory", *networks), rows)


def costs_table(results="results"):
    """What quantization costs: what inner layers keep, and test accuracy, by network of `TWINS`.

    Parameters
    ----------
    results : path-like
        Folder of the runs, one folder each.

    Returns
    -------
    list of str
        Lines of Markdown.

    Raises
    ------
    ValueError
        If none of the networks has a report there.
    """
    kept = {
        f"{_ANGLE} (°)": _inner(lambda layer: layer["angle"], "{:.1f}"),
        _WEIGHTS_R: _inner(lambda layer: layer["weights_dot"]["r"]),
        _ACTIVATIONS_R: _inner(lambda layer: layer["activations_dot"]["r"]),
        "test accuracy (%)": _accuracy,
        "seeds": len,
    }
    rows = [
        (label, *(figure(reports) for figure in kept.values()))
        for label, reports in _labelled(results, TWINS).items()
    ]
    return markdown_table(("half width", *kept), rows)


def _labelled(results, labels):
    """Label to reports, those of all seeds, for the networks that have any."""
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


def _spread(values):
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.2f}"


def _inner(value, form="{:.3f}", at_least=-np.inf, at_most=np.inf):
    """The range of a figure over the inner layers, in bold where it leaves its bounds."""

    def figure(reports):
        values = [value(layer) for layer in _inner_layers(reports)]
        text = _range(values, form)
        return text if at_least <= min(values) and max(values) <= at_most else f"**{text}**"

    return figure


def _judged(claim_id, figure):
    """A figure as reports judge its claim: in bold where one fails, a dash where it is none."""

    def judged(reports):
        claims = [claim for report in reports for claim in report["claims"]]
        holds = [claim["holds"] for claim in claims if claim["id"] == claim_id]
        if None in holds:
            return "—"
        return figure(reports) if all(holds) else f"**{figure(reports)}**"

    return judged


def _accuracy(reports):
    return _spread([100 * report["test_accuracy"] for report in reports])


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
    return f"{_range(shares, '{:.0f} %')}, {_first_r(reports)} → {_range(whitened, '{:.3f}')}"


def _points_lost(reports):
    lost = [
        report["test_accuracy"] - report["substitution"][layer["layer"]][1]
        for report in reports
        for layer in _convs(report)[1:]
    ]
    return _range([100 * points for points in lost], "{:.2f}")


_ANGLE = "angle of w<sup>c</sup> and w<sup>b</sup>"
_WEIGHTS_R = "r of A·w<sup>c</sup> and A·w<sup>b</sup>"
_ACTIVATIONS_R = "r of A<sup>c</sup>·w<sup>b</sup> and A<sup>b</sup>·w<sup>b</sup>"

# What is claimed, what the paper or theory has for it, and the figure.
CLAIMS = (
    ("test accuracy (%)", "CIFAR-10 88.6 to 89.9 after 500 epochs", _accuracy),
    (f"{_ANGLE} (°)", "37.07; less if ternary", _inner(lambda layer: layer["angle"], "{:.1f}")),
    ("… off the Gaussian one at its t/σ (°)", "≤ 4", _inner(_off_closed_form, "{:.1f}", at_most=4)),
    ("… off the one of its kurtosis (°)", "≤ 1", _inner(_off_kurtosis, "{:.2f}", at_most=1)),
    ("… and of its peak at the threshold (°)", "≤ 1", _inner(_off_peaked, "{:.2f}", at_most=1)),
    (
        "spread of w<sup>c</sup> over the one at the start",
        "≥ 2",
        _inner(lambda layer: layer["sd_over_initial"], "{:.1f}", at_least=2),
    ),
    (f"spread of {_ANGLE}: exponent of d", "−0.5 ± 0.15", _judged("angle-scaling", _exponent)),
    (
        _WEIGHTS_R,
        "≥ 0.9",
        _judged("weights-dot", _inner(lambda layer: layer["weights_dot"]["r"])),
    ),
    ("… in the first layer", "below", _judged("weights-dot", _first_r)),
    (
        _ACTIVATIONS_R,
        "≥ 0.85",
        _judged("activations-dot", _inner(lambda layer: layer["activations_dot"]["r"])),
    ),
    (
        "r by unit, inputs as they are → permuted",
        "→ cosine of the angle",
        _judged("permutation", _fall),
    ),
    (
        "first layer: variance on one axis, r as it is → whitened",
        "≥ 50 %, up by 0.15",
        _judged("first-layer", _whitened),
    ),
    (
        "points lost with w<sup>c</sup> in place of w<sup>b</sup> in one layer",
        "≤ 2",
        _judged("substitution", _points_lost),
    ),
)


# --- Runs -------------------------------------------------------------------------------------


def runs_table(results="results"):
    """Every trained network under `results`, runs that differ in their seed alone as one line.

    Accuracies are means over seeds with the standard deviation over them.

    Parameters
    ----------
    results : path-like
        Folder of the runs, one folder each.

    Returns
    -------
    list of str
        Lines of Markdown.

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
                _spread([100 * run["test_accuracy"] for run, _ in runs]),
                f"{np.mean(minutes):.0f}",
            )
        )
    return markdown_table(("flags", "seeds", "epochs", "test accuracy (%)", "minutes"), rows)


def _training(run):
    """All that decides on a run but for its seed, whatever the order of its flags."""
    parts = [run[name] for name in ("data_set", "valid_size", "debug")]
    # An option that is younger than a run is missing there, None in its twins.
    network = {name: value for name, value in run["network_params"].items() if value is not None}
    return json.dumps([*parts, network, {**run["training_params"], "seed": None}], sort_keys=True)


def _flags(run):
    """The flags of a run's first sitting that say what it trains."""
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
    """`python summary.py`: print the tables."""
    cli = argparse.ArgumentParser(prog="summary.py", description=__doc__.splitlines()[0])
    cli.parse_args(argv)
    with one_line_errors("summary.py"):
        print("\n".join([*claims_table(), "", *costs_table(), "", *runs_table()]))


if __name__ == "__main__":
    main()
