"""Which layers of a trained Keras model may be held in few bits, and what that costs.

python survey.py MODEL.keras --npz DATA.npz        # arrays x and, if there are labels, y
python survey.py MODEL.keras --data_set cifar-10

writes survey.md, survey.json and survey.html beside the model.
"""

import argparse
import json
import math
import os
import sys
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.load_data import DATA_SETS, load_data
from files import require_writable, write_json, write_text
from utils import one_line_errors, require

# isort: split
import numpy as np

if TYPE_CHECKING:
    import keras

IMAGES, LOSE = 1000, 1.0
FILES = ("survey.md", "survey.json", "survey.html")
# All quantizers together.
ALL = "all"
# What layers are ranked by, with the sign that makes more of it more harm.
PREDICTORS = {"predicted_r": -1, "r": -1, "angle_deg": 1, "sqnr_db": -1, "kurtosis": 1}


# --- Survey -----------------------------------------------------------------------------------


def survey(
    model: "keras.Model",
    x: np.ndarray,
    y: np.ndarray | None = None,
    quantizers: Sequence[str] | None = None,
    lose: float = LOSE,
    progress: bool = False,
) -> dict:
    """Measure what quantizing each layer of a model does, and plan which bits each should have.

    Parameters
    ----------
    model : keras.Model
        Functional, sequential or subclassed, with one input.
    x : ndarray, shape (n, ...)
        Images, or whatever the model takes.
    y : ndarray of int, optional
        The right class of each vector of scores that the model returns.
    quantizers : sequence of str, optional
        Names from `survey_measure.NAMES`; all of them by default.
    lose : float
        Points of accuracy that the plan may cost.
    progress : bool
        Draw progress bars?

    Returns
    -------
    dict
        What survey.json holds; docs/survey.md lists it.

    Raises
    ------
    ValueError
        If the data do not fit the model, or the labels do not match.
    """
    import survey_inputs
    import survey_measure
    from survey_plan import Planner

    started = time.perf_counter()
    names = survey_measure.known(quantizers)
    require(lose >= 0, f"the points to lose must be at least 0, not {lose}")
    sites, left_out, batch = survey_inputs.sites(model, x := _checked(x))
    scores = None if y is None else survey_measure.Scores(model, x, y, batch)
    forward = _forward_seconds(model, x, batch)
    layers = [
        survey_measure.geometry_of(site, names)
        for site in survey_inputs.collected(model, x, sites, batch, progress)
    ]
    planner = Planner(scores, sites, layers, names, progress)
    result = {
        "model": model.name,
        "images": len(x),
        "quantizers": names,
        "layers": layers,
        "left_out": left_out,
        "accuracy": None,
        "curve": None,
        "plan": None,
    }
    if scores is None:
        result |= {"order": planner.orders(), "why_no_accuracy": "there are no labels"}
    else:
        scores.add_accuracies(sites, layers, names, progress)
        result["accuracy"] = scores.accuracy()
        result["order"] = planner.orders()
        result["curve"] = planner.curves(result["order"])
        result["plan"] = planner.plan(lose)
        result["correlations"] = rank_correlations(plain(result))
    result["cost"] = {
        "seconds": time.perf_counter() - started,
        "forward_seconds": forward,
        "peak_memory_mb": _peak_memory_mb(),
        "batch": batch,
    }
    return plain(result)


def _checked(x):
    x = np.asarray(x)
    require(x.ndim >= 1 and len(x), "there are no data")
    numeric = np.issubdtype(x.dtype, np.number) or x.dtype == bool
    require(numeric, f"data must be numbers, not {x.dtype}")
    floats = np.issubdtype(x.dtype, np.inexact)
    require(not floats or np.isfinite(x).all(), "the data hold NaN or infinity")
    return x.astype(np.float32) if x.dtype in (np.float64, bool) else x


def _forward_seconds(model, x, batch):
    """Seconds of one run of the model over all the data, as the survey runs it."""
    model(x[:1], training=False)
    started = time.perf_counter()
    for start in range(0, len(x), batch):
        model(x[start : start + batch], training=False)
    return time.perf_counter() - started


def _peak_memory_mb():
    import resource  # Not on Windows.

    unit = 1024**2 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def plain(value: object) -> object:
    """`value` in the types of JSON: nan and infinity become None, as JSON has neither."""
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- Does geometry predict harm? --------------------------------------------------------------


def rank_correlations(surveyed: dict) -> list[dict]:
    """Spearman's ρ over layers between what predicts harm and the accuracy that is lost.

    Parameters
    ----------
    surveyed : dict
        What `survey` returned, or survey.json, of a model with labels.

    Returns
    -------
    list of dict
        For each quantizer the number of layers and, for each of `PREDICTORS`, [ρ, p]: ρ is positive
        where more harm is predicted where more is lost, and p is that of no correlation, by
        Student's t. None where one of the two does not vary. 'loss' says whether batch norm was
        re-estimated. The quantizer 'all' stands for all layers under all quantizers; these are not
        independent, so p is None.

    Raises
    ------
    ValueError
        If no accuracy was measured.
    """
    base = surveyed["accuracy"]
    require(base is not None, "harm needs labels: the survey measured no accuracy")
    found = []
    for loss, key in (("as it is", "accuracy"), ("re-estimated", "refitted_accuracy")):
        rows = [
            {"name": name, "kurtosis": layer["kurtosis"], **layer["quantizers"][name]}
            for layer in surveyed["layers"]
            for name in surveyed["quantizers"]
        ]
        for name in [*surveyed["quantizers"], ALL] if key in rows[0] else ():
            some = [row for row in rows if name in (row["name"], ALL)]
            lost = [base - row[key] for row in some]
            of = {p: _spearman(sign, p, some, lost) for p, sign in PREDICTORS.items()}
            if name == ALL:
                of = {p: value and [value[0], None] for p, value in of.items()}
            found.append({"quantizer": name, "loss": loss, "layers": len(some), **of})
    return found


def _spearman(sign, predictor, rows, lost):
    from scipy.stats import spearmanr

    pairs = [(row[predictor], loss) for row, loss in zip(rows, lost, strict=True)]
    pairs = [(sign * v, loss) for v, loss in pairs if v is not None and math.isfinite(v)]
    if len(pairs) < 3 or any(len(set(column)) == 1 for column in zip(*pairs, strict=True)):
        return None
    return [float(value) for value in spearmanr(pairs)]


# --- The model that a plan describes ----------------------------------------------------------


def apply(model: "keras.Model", plan: dict, x: np.ndarray | None = None) -> "keras.Model":
    """A copy of a model that is quantized as a plan says; see `survey_plan.apply`."""
    import survey_plan

    return survey_plan.apply(model, plan, x)


# --- Command line -----------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="survey.py",
        description="Which layers of a trained Keras model may be held in few bits?",
        allow_abbrev=False,
    )
    cli.add_argument("model", metavar="MODEL.keras", help="the trained model")
    data = cli.add_mutually_exclusive_group(required=True)
    data.add_argument("--npz", metavar="FILE", help="arrays x and, if there are labels, y")
    data.add_argument("--data_set", choices=DATA_SETS, help="its test images, from 0 to 255")
    cli.add_argument("--data_dir", metavar="DIR", help="folder of the data sets")
    cli.add_argument("--out", metavar="DIR", help="where to write (default: beside the model)")
    cli.add_argument("--lose", type=float, default=LOSE, metavar="X", help="points of accuracy")
    cli.add_argument("--images", type=int, default=IMAGES, metavar="N", help="the first N")
    cli.add_argument("--quantizers", nargs="+", metavar="NAME", help="some of them (default: all)")
    cli.add_argument("--save", metavar="FILE.keras", help="also write the plan's quantized model")
    return cli


def read_npz(path: str | os.PathLike, images: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The first images, and labels or None, of an .npz file.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it holds no array x, or pickled objects.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = set(archive.files)
            arrays = [archive[name] if name in names else None for name in ("x", "y")]
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or no .npz file of numbers: {error}") from None
    x, y = arrays
    require(x is not None and x.ndim, f"{path} holds no array x; it holds {', '.join(names)}")
    require(
        y is None or (y.ndim and len(y) == len(x)),
        f"{path}: y has shape {y is not None and y.shape} for {len(x)} rows of x",
    )
    # Copies, so that the rest is freed.
    return x[:images].copy(), None if y is None else y[:images].copy()


def check_folder(folder: Path) -> None:
    """Raise ValueError if the files of a survey would replace anything but an earlier survey's."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    require(existing.is_dir(), f"{existing} is no folder: take another --out")
    require_writable(existing)
    there = [name for name in FILES if (folder / name).exists()]
    if not there:
        return
    try:
        earlier = json.loads((folder / "survey.json").read_text(encoding="utf-8"))
        ours = isinstance(earlier, dict) and {"model", "layers", "plan"} <= earlier.keys()
    except (OSError, ValueError):
        ours = False
    require(ours, f"{folder / there[0]} belongs to no earlier survey: take another --out")


def fitting(x: np.ndarray, model: "keras.Model", reshaped: bool) -> np.ndarray:
    """The data in the shape that the model takes.

    Raises
    ------
    ValueError
        If they do not fit.
    """
    shape = getattr(model, "input_shape", None)
    if shape is None:
        return x
    single = isinstance(shape, tuple) and not any(isinstance(n, tuple) for n in shape)
    require(single, "the model takes several inputs: one is surveyed")
    same = len(shape) == x.ndim and all(
        n in (None, m) for n, m in zip(shape[1:], x.shape[1:], strict=True)
    )
    if not same and reshaped and None not in shape[1:]:
        same = math.prod(shape[1:]) == math.prod(x.shape[1:])
        x = x.reshape(len(x), *shape[1:]) if same else x
    require(
        same, f"the model takes inputs of shape {shape[1:]}, the data have {tuple(x.shape[1:])}"
    )
    return x


def run(argv: Sequence[str]) -> None:
    """Do what the command line says; ValueError or OSError where it cannot be done."""
    args = parser().parse_args(argv)
    path = Path(args.model)
    if not path.is_file():
        raise FileNotFoundError(f"there is no model {path}")
    require(args.images >= 1, f"--images must be at least 1, not {args.images}")
    require(args.lose >= 0 and math.isfinite(args.lose), "--lose must be a number of at least 0")
    out = Path(args.out) if args.out else path.parent
    check_folder(out)
    if args.save:
        saved = Path(args.save)
        require(saved.suffix == ".keras", f"--save must name a .keras file, not {saved}")
        require(not saved.exists(), f"there is a file {saved} already: take another --save")
    if args.npz:
        x, y = read_npz(args.npz, args.images)
    else:
        data = load_data(args.data_set, args.data_dir)
        x, y = data.x_test[: args.images], data.y_test[: args.images]
        del data
    require(not args.save or y is not None, "--save needs labels: without them there is no plan")

    # Only now, as TensorFlow takes seconds: a wrong argument should be answered at once.
    import bnn  # noqa: F401 (registers its classes)
    from checkpoint import open_model, save
    from survey_report import html, markdown

    model = open_model(path)
    x = fitting(x, model, reshaped=args.npz is None)
    result = survey(model, x, y, args.quantizers, args.lose, progress=True)
    result["file"] = path.name
    write_json(out / "survey.json", result)
    write_text(out / "survey.md", markdown(result))
    write_text(out / "survey.html", html(result))
    print(f"{out / 'survey.md'}, survey.json and survey.html are written")
    if args.save:
        save(apply(model, result["plan"], x), args.save)
        print(f"{args.save}: {result['plan']['bytes']:,} bytes of weights once packed")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (default: the process's own); bad input ends with exit code 2."""
    with one_line_errors("survey.py"):
        run(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
