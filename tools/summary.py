"""The tables of README.md and docs/results.md, from the files under results/.

`python -m tools.summary` prints them. With `--check` it compares the documents with them, and looks
up every other number of README.md and docs/*.md under results/.
"""

import argparse
import csv
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tabulate import DataRow, TableFormat, tabulate

import geometry
from claims import figure, spread_exponents
from tools import arms, recurrent
from tools.numbers import unfounded
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


# --- Reports ----------------------------------------------------------------------------------


def _read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _reports(results, names):
    """From the title of each network that has reports to its reports, of all seeds."""
    found = {
        title: [
            _read(path) | {"val_accuracy": _validation(path.parent)}
            for pattern in (name, f"{name}_seed*")
            for path in sorted(Path(results).glob(f"{pattern}/report.json"))
        ]
        for name, title in names.items()
    }
    found = {title: reports for title, reports in found.items() if reports}
    require(found, f"{results} holds no report of any of {', '.join(names.values())}")
    return found


def _validation(folder):
    """The validation accuracy after the last epoch."""
    return float(_history(folder)[-1]["val_accuracy"])


def _history(folder):
    with open(folder / "history.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _convs(report):
    return [layer for layer in report["layers"] if layer["layer"].startswith("conv_")]


def _range(values, form):
    low, high = (form.format(bound).replace("-", "−") for bound in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _accuracy(name):
    return lambda reports: arms.spread([100 * report[name] for report in reports])


def _inner(value, form="{:.3f}", at_least=-np.inf, at_most=np.inf):
    """The range of a figure over the inner layers, bold if it leaves its bounds."""

    def cell(reports):
        get = value if callable(value) else lambda layer: figure(layer, value)
        values = [get(layer) for report in reports for layer in _convs(report)[1:]]
        text = _range(values, form)
        return text if at_least <= min(values) and max(values) <= at_most else f"**{text}**"

    return cell


def _judged(claim_id, cell):
    """A figure, bold if the claim fails in a report, a dash if it does not apply."""

    def judged(reports):
        holds = [c["holds"] for report in reports for c in report["claims"] if c["id"] == claim_id]
        if None in holds:
            return "—"
        return cell(reports) if all(holds) else f"**{cell(reports)}**"

    return judged


def _first(value, form="{:.3f}"):
    """The range of a figure of the first layer."""
    return lambda reports: _range([value(_convs(report)[0]) for report in reports], form)


def _off(key):
    return lambda layer: abs(layer["angle"] - layer[key])


def _off_gaussian(layer):
    return abs(layer["angle"] - np.degrees(np.arccos(geometry.ternary_cosine(layer["tau"]))))


def _exponents(reports):
    fits = [[exponent for _, exponent, _ in spread_exponents(_convs(one))] for one in reports]
    return "; ".join(_range(values, "{:.2f}") for values in zip(*fits, strict=True))


def _spread(reports):
    ratios = [layer["spread_ratio"] for report in reports for layer in _convs(report)]
    return _range(ratios, "{:.2f}")


def _fall(reports):
    before = _inner("weights_dot.inside_unit_r", "{:.2f}")(reports)
    return f"{before} → {_inner('permuted.inside_unit_r', '{:.2f}')(reports)}"


def _whitened(reports):
    share = _first(lambda layer: 100 * layer["variance_shares"][0], "{:.0f} %")(reports)
    whitened = _range([report["rotation"]["zca"]["weights"] for report in reports], "{:.3f}")
    return f"{share}; {_first(lambda layer: layer['weights_dot']['r'])(reports)} → {whitened}"


def _points_lost(reports):
    lost = [
        100 * (report["test_accuracy"] - report["substitution"][layer["layer"]][1])
        for report in reports
        for layer in _convs(report)[1:]
    ]
    return _range(lost, "{:.2f}")


_TEST = ("test accuracy (%)", _accuracy("test_accuracy"))
_VALIDATION = ("validation accuracy (%)", _accuracy("val_accuracy"))
_ANGLE = ("angle between w<sup>c</sup> and w<sup>b</sup> (°)", _inner("angle", "{:.1f}"))
_WEIGHTS = ("pooled r of A·w<sup>c</sup> and A·w<sup>b</sup>", _inner("weights_dot.r"))
_ACTIVATIONS = (
    "pooled r of A<sup>c</sup>·w<sup>b</sup> and A<sup>b</sup>·w<sup>b</sup>",
    _inner("activations_dot.r"),
)
# What is measured; what the paper, theory or the condition says; the figure.
QUANTITIES = (
    (_TEST[0], "CIFAR-10: 88.6 to 89.9 after 500 epochs", _TEST[1]),
    (_VALIDATION[0], "not published", _VALIDATION[1]),
    (_ANGLE[0], "37.07; less if ternary", _ANGLE[1]),
    (
        "distance to the Gaussian angle at t/σ (°)",
        "≤ 4",
        _inner(_off_gaussian, "{:.1f}", at_most=4),
    ),
    (
        "distance to the angle of κ (°)",
        "≤ 1",
        _inner(_off("kurtosis_angle"), "{:.2f}", at_most=1),
    ),
    (
        "distance to the angle of κ and peak (°)",
        "descriptive",
        _inner(_off("peaked_angle"), "{:.2f}"),
    ),
    (
        "σ of w<sup>c</sup> / σ at initialization",
        "≥ 2",
        _inner("sd_over_initial", "{:.1f}", at_least=2),
    ),
    (
        "sd of the cosine over units / that of i.i.d. weights",
        "within a factor 1.5",
        _judged("angle-scaling", _spread),
    ),
    ("exponent of d of the sd of the angle: with conv_1; without", "−0.5", _exponents),
    (_WEIGHTS[0], "≥ 0.9", _judged("weights-dot", _WEIGHTS[1])),
    (
        "the same in the first layer",
        "below",
        _judged("weights-dot", _first(lambda layer: layer["weights_dot"]["r"])),
    ),
    (_ACTIVATIONS[0], "≥ 0.85", _judged("activations-dot", _ACTIVATIONS[1])),
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
    options = {"stralign": None, "disable_numparse": True}
    return tabulate(rows, head, _UNPADDED, **options).splitlines()


def claims_table(
    results: str | os.PathLike = "results", networks: Mapping[str, str] = NETWORKS
) -> list[str]:
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
    columns = _reports(results, networks)
    rows = [
        (claim, theory, *(cell(reports) for reports in columns.values()))
        for claim, theory, cell in QUANTITIES
    ]
    return _markdown(("quantity", "paper, theory or condition", *columns), rows)


def paper_table(results: str | os.PathLike = "results") -> list[str]:
    """The part of `claims_table` that is about the paper's two networks."""
    return claims_table(results, PAPER_NETWORKS)


def costs_table(results: str | os.PathLike = "results") -> list[str]:
    """What quantization costs: angles and r of the inner layers, and accuracies, of `TWINS`."""
    columns = dict((_ANGLE, _WEIGHTS, _ACTIVATIONS, _VALIDATION, _TEST))
    columns["seeds"] = len
    rows = [
        (label, *(cell(reports) for cell in columns.values()))
        for label, reports in _reports(results, TWINS).items()
    ]
    return _markdown(("half width", *columns), rows)


def evidence_table(results: str | os.PathLike = "results") -> list[str]:
    """How many conditions hold in each network with a report, and which fail."""
    rows = []
    for path in sorted(Path(results).glob("*/report.json")):
        judged = [c for c in _read(path)["claims"] if c["part"] == "evidence"]
        judged = [c for c in judged if c["holds"] is not None]
        failed = [f"`{c['id']}`" for c in judged if not c["holds"]]
        if judged:
            count = f"{len(judged) - len(failed)} of {len(judged)}"
            rows.append((f"`{path.parent.name}`", count, ", ".join(failed)))
    require(rows, f"{results} holds no report")
    return _markdown(("network, a folder of results/", "evidence that holds", "fails"), rows)


def demo(results: str | os.PathLike = "results") -> list[str]:
    """What the demo printed."""
    return (Path(results) / "demo.txt").read_text(encoding="utf-8").splitlines()


def runs_table(results: str | os.PathLike = "results") -> list[str]:
    """Every trained network under `results`. Runs that differ only in their seed share a line.

    Accuracies are those of `claims_table`, minutes the least and the most of the runs.
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
                arms.spread([100 * _validation(folder) for _, folder in runs]),
                arms.spread([100 * run["test_accuracy"] for run, _ in runs]),
                _range(minutes, "{:.0f}"),
            )
        )
    head = ("flags", "seeds", "epochs", _VALIDATION[0], _TEST[0], "minutes")
    return _markdown(head, rows)


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
    return sum(float(row["seconds"]) for row in _history(folder)) / 60


def causes_table(results: str | os.PathLike = "results", size: str = "half") -> list[str]:
    """What happens if the shape of the latent weights is set; see `tools.arms`."""
    return arms.markdown(arms.table_path(results, "causes", size)).splitlines()


def causes_digits_table(results: str | os.PathLike = "results") -> list[str]:
    """`causes_table` of the small networks on digits."""
    return causes_table(results, "digits")


def roads_table(results: str | os.PathLike = "results", size: str = "half") -> list[str]:
    """Bop, teachers and floats beside the latent weights; see `tools.arms`."""
    return arms.markdown(arms.table_path(results, "roads", size)).splitlines()


def roads_digits_table(results: str | os.PathLike = "results") -> list[str]:
    """`roads_table` of the small networks on digits."""
    return roads_table(results, "digits")


def recurrent_table(
    results: str | os.PathLike = "results", data_set: str = "digits", cell: str = "gru"
) -> list[str]:
    """Recurrent networks with batch norm and without; see `tools.recurrent`."""
    rows = arms.rows_of(Path(results) / "recurrent.csv")
    networks = (cell, f"scaled_{cell}", f"raw_{cell}")
    return recurrent.table(rows, data_set, networks).splitlines()


def recurrent_lstm_table(results: str | os.PathLike = "results") -> list[str]:
    """`recurrent_table` of LSTMs."""
    return recurrent_table(results, cell="lstm")


def recurrent_mnist_table(results: str | os.PathLike = "results") -> list[str]:
    """`recurrent_table` on MNIST."""
    return recurrent_table(results, "MNIST")


def shortcuts_table(results: str | os.PathLike = "results") -> list[str]:
    """Shortcuts of floats, of bits, and none, at half width; see `tools.arms`."""
    return arms.markdown(arms.table_path(results, "shortcuts", "half")).splitlines()


# Rows of `other_roads_table`: a file of `tools.arms`, an arm of it, and what is special.
_ROADS = {
    ("roads", "baseline"): "latent weights and labels",
    ("roads", "bop"): "no latent weights: Bop",
    ("roads", "bop_short"): "Bop with a shorter memory",
    ("roads", "teacher"): "a teacher, no labels",
    ("roads", "teacher_labels"): "a teacher and labels",
    ("shortcuts", "strided"): "strides, no shortcuts",
    ("shortcuts", "residual"): "strides, shortcuts of floats",
    ("shortcuts", "boolnet"): "strides, shortcuts of bits: no floats between layers",
}


def other_roads_table(results: str | os.PathLike = "results") -> list[str]:
    """What other roads to a binary network reach, with angle and r of their inner layers."""
    lines = []
    for (name, arm), title in _ROADS.items():
        rows = arms.rows_of(arms.table_path(results, name, "half"))
        rows = [row for row in rows if row["arm"] == arm]
        # Bop has no w^c: −m stands for it.
        of, mark = ("m_", " of −m") if arm.startswith("bop") else ("", "")
        geometry = (
            arms.range_of(rows, of + figure, form) + mark
            for figure, form in (("angle", "{:.1f}"), ("r", "{:.3f}"))
        )
        lines.append([f"CIFAR-10, half width: {title}", *_runs_and_accuracy(rows), *geometry])
    for kind in recurrent.KINDS:
        rows = arms.rows_of(Path(results) / "recurrent.csv")
        key = {"data_set": "MNIST", "network": "gru", "kind": kind}
        rows = [row for row in rows if key.items() <= row.items()]
        geometry = (
            _range([float(row[f"gru_1_state_{figure}"]) for row in rows], form)
            for figure, form in (("angle", "{:.1f}"), ("r", "{:.3f}"))
        )
        title = f"MNIST by rows: GRU with {kind} kernels"
        lines.append([title, *_runs_and_accuracy(rows), *geometry])
    head = ["network", "seeds", "validation (%)", "angle (°)", "r"]
    return tabulate(lines, head, "github", disable_numparse=True).splitlines()


def _runs_and_accuracy(rows):
    return len(rows), arms.spread([100 * float(row["val_accuracy"]) for row in rows])


# The documents that hold them.
TABLES = {
    other_roads_table: "docs/results.md",
    causes_table: "docs/roads.md",
    causes_digits_table: "docs/roads.md",
    roads_table: "docs/roads.md",
    roads_digits_table: "docs/roads.md",
    shortcuts_table: "docs/roads.md",
    recurrent_table: "docs/roads.md",
    recurrent_lstm_table: "docs/roads.md",
    recurrent_mnist_table: "docs/roads.md",
    demo: "README.md",
    paper_table: "README.md",
    claims_table: "docs/results.md",
    evidence_table: "docs/results.md",
    costs_table: "docs/results.md",
    runs_table: "docs/results.md",
}


# --- Command line -----------------------------------------------------------------------------


def check(root: str | os.PathLike = ".") -> list[str]:
    """What is wrong in README.md and docs/*.md, one line each: a table or a number that differs.

    Parameters
    ----------
    root : path-like
        The repository.

    Returns
    -------
    list of str
    """
    root, wrong = Path(root), []
    tables = {table: table(root / "results") for table in TABLES}
    for table, lines in tables.items():
        document = TABLES[table]
        if "\n".join(lines) not in (root / document).read_text(encoding="utf-8"):
            wrong.append(f"{document}: {table.__name__} is not what {PROGRAM} prints")
    return wrong + unfounded(root, [line for lines in tables.values() for line in lines])


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m tools.summary`: print the tables, or check the documents."""
    cli = argparse.ArgumentParser(
        prog=PROGRAM,
        description="The tables of README.md and docs/results.md, from the files under results/.",
    )
    cli.add_argument("--check", action="store_true", help="compare README.md and docs/ with them")
    args = cli.parse_args(argv)
    with one_line_errors(PROGRAM):
        if not args.check:
            print("\n\n".join("\n".join(table()) for table in TABLES))
            return
        wrong = check()
        print("\n".join(wrong))
        require(not wrong, f"{len(wrong)} numbers or tables differ from those under results/")


if __name__ == "__main__":
    main()
