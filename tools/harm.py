"""Does geometry predict which layers quantization harms? A table over surveyed models, as CSV.

python -m tools.harm results/survey/*/survey.json > results/survey/harm.csv
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import norm

from files import atomic_path
from survey import ALL as EVERY
from survey import PREDICTORS, rank_correlations
from survey_figures import plot_harm
from survey_report import correlation_table, grid
from utils import one_line_errors

RESULTS = Path(__file__).resolve().parent.parent / "results" / "survey"
ALL = "all models"
DRAWN = ("sign", "ternary", "lloyd_max_2", "uniform_3", "uniform_4")


def harm(surveys: dict[str, dict]) -> list[dict]:
    """Rank correlations of what predicts harm with the accuracy that is lost.

    Parameters
    ----------
    surveys : dict
        Contents of survey.json by the name of the model.

    Returns
    -------
    list of dict
        A row per model, quantizer and kind of loss, as `survey.rank_correlations` gives them; and
        for `ALL` models together the mean of Fisher's z = arctanh ρ, weighted by layers − 3, with
        the p of a normal variable of variance 1.06 / Σ(layers − 3).

    References
    ----------
    E. C. Fieller, H. O. Hartley, E. S. Pearson, "Tests for rank correlation coefficients. I",
    Biometrika 44 (1957): the variance.
    """
    rows = [
        {"model": model, **row}
        for model, surveyed in surveys.items()
        for row in rank_correlations(surveyed)
    ]
    kinds = dict.fromkeys((row["quantizer"], row["loss"]) for row in rows)
    for quantizer, loss in kinds if len(surveys) > 1 else ():
        if quantizer == EVERY:
            continue
        alike = [row for row in rows if (row["quantizer"], row["loss"]) == (quantizer, loss)]
        layers = sum(row["layers"] for row in alike)
        together = {p: _combined(p, alike) for p in PREDICTORS}
        rows.append(
            {"model": ALL, "quantizer": quantizer, "loss": loss, "layers": layers, **together}
        )
    return rows


def _combined(predictor, rows):
    pairs = [(row[predictor][0], row["layers"] - 3) for row in rows if row[predictor]]
    pairs = [(rho, weight) for rho, weight in pairs if weight > 0]
    if not pairs:
        return None
    rho, weights = np.array(pairs).T
    # A perfect correlation of few layers is no certainty.
    z = np.average(np.arctanh(np.clip(rho, -0.99, 0.99)), weights=weights)
    return [float(np.tanh(z)), float(2 * norm.sf(abs(z) * np.sqrt(weights.sum() / 1.06)))]


def read(paths: Iterable[str | os.PathLike]) -> dict[str, dict]:
    """Contents of survey.json files, by the name of the model.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or is no survey.
    """
    found = {}
    for path in map(Path, paths):
        try:
            surveyed = json.loads(path.read_text(encoding="utf-8"))
            found[surveyed["model"]] = surveyed
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path} is no survey.json of `python survey.py`") from None
    return found


def write_csv(rows: Sequence[dict], file: TextIO) -> None:
    """Rows of `harm` with two columns for each predictor: ρ, and p."""
    known = ("model", "quantizer", "loss", "layers")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*known, *(f"{p} {kind}" for p in PREDICTORS for kind in ("rho", "p"))])
    for row in rows:
        values = [part for p in PREDICTORS for part in row[p] or ("", "")]
        formed = [f"{v:.3g}" if isinstance(v, float) else "" for v in values]
        writer.writerow([*(row[key] for key in known), *formed])


def table(rows: Sequence[dict]) -> str:
    """The rows for all models as a Markdown table; those of the one model where it is alone."""
    together = [row for row in rows if row["model"] == ALL] or rows
    return grid(*correlation_table(together))


def main(argv: Sequence[str]) -> None:
    cli = argparse.ArgumentParser(prog="tools.harm", description=(__doc__ or "").partition("\n")[0])
    cli.add_argument("surveys", nargs="+", metavar="survey.json")
    cli.add_argument("--figure", metavar="FILE.png", help="also draw loss against 1 - predicted r")
    args = cli.parse_args(argv)
    surveys = read(args.surveys)
    write_csv(harm(surveys), sys.stdout)
    if args.figure:
        with atomic_path(args.figure) as path:
            draw(surveys).savefig(path, dpi=120)


def draw(surveys: dict[str, dict]) -> Figure:
    """Accuracy lost against predicted harm, a panel for each survey."""
    names = [n for n in DRAWN if all(n in surveyed["quantizers"] for surveyed in surveys.values())]
    return plot_harm(list(surveys.values()), names)


if __name__ == "__main__":
    with one_line_errors("tools.harm"):
        main(sys.argv[1:])
