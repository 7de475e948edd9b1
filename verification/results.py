"""The verdicts of one run: their table, their files and their figures."""

import csv
import io
import itertools
import json
import math
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from experiment_figures import plot_counterexample
from files import atomic_path, require_writable, write_json, write_text
from utils import require

ROBUST, NOT_ROBUST, UNDECIDED, MISCLASSIFIED = VERDICTS = (
    "robust",
    "not robust",
    "undecided",
    "misclassified",
)
COLUMNS = ("index", "label", "predicted", "verdict", "seconds")
TABLE, ARRAYS = "verify.csv", "counterexamples.npz"
RECORD, FIGURES = "verify.json", "counterexamples"
# Seconds between two writings of what is done.
SAVED_EVERY = 5.0


@dataclass(frozen=True)
class Verdict:
    """What is known about the images around one image.

    Attributes
    ----------
    verdict : {'robust', 'not robust', 'undecided', 'misclassified'}
    predicted : int
        The packed network's answer for the image itself.
    seconds : float
        How long it took.
    counterexample : ndarray of uint8, or None
        Of a network that is not robust there: an image within ε that gets another label.
    """

    verdict: str
    predicted: int
    seconds: float
    counterexample: np.ndarray | None = field(default=None, repr=False)


class Results:
    """The verdicts of one run and their files.

    Parameters
    ----------
    folder : Path
    record : dict
        What the verdicts hold for; kept in verify.json.
    resume, overwrite : bool

    Raises
    ------
    ValueError
        If the folder holds verdicts that are neither to be gone on with nor overwritten, or
        verdicts of something else.
    """

    def __init__(self, folder: Path, record: dict, resume: bool, overwrite: bool):
        self.folder, self.record, self.rows, self.images = folder, record, {}, {}
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        require(existing.is_dir(), f"{existing} is no folder: take another --out")
        require_writable(existing)
        there = (folder / RECORD).exists() or (folder / TABLE).exists()
        require(
            not there or resume or overwrite,
            f"{folder} holds verdicts already: go on with --resume, take another --out, or replace "
            "them with --overwrite",
        )
        if there and resume:
            self._read()
        self._saved = 0.0

    def _read(self):
        try:
            record = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
            with open(self.folder / TABLE, newline="", encoding="utf-8") as file:
                rows = {int(row["index"]): row for row in csv.DictReader(file)}
            with np.load(self.folder / ARRAYS, allow_pickle=False) as arrays:
                images = dict(zip(arrays["index"].tolist(), arrays["image"], strict=True))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"the verdicts in {self.folder} are damaged ({error}): replace them with "
                "--overwrite"
            ) from None
        for name, value in self.record.items():
            require(
                name == "time_limit" or record.get(name) == value,
                f"the verdicts in {self.folder} are of {name} {record.get(name)}, not {value}: "
                "take another --out",
            )
        longer = self.record["time_limit"] > record.get("time_limit", 0)
        for index, row in rows.items():
            again = row["verdict"] == UNDECIDED and longer
            if not again and (row["verdict"] != NOT_ROBUST or index in images):
                self.rows[index] = row
        self.images = {index: images[index] for index in self.rows if index in images}

    def add(self, index: int, label: int, verdict: Verdict) -> None:
        """Take in one verdict, and write all of them if that is some seconds ago."""
        values = index, label, verdict.predicted, verdict.verdict, f"{verdict.seconds:.3f}"
        self.rows[index] = dict(zip(COLUMNS, values, strict=True))
        if verdict.counterexample is not None:
            self.images[index] = verdict.counterexample
        if time.monotonic() - self._saved > SAVED_EVERY:
            self.save()

    def save(self) -> None:
        """Write what there is, each file whole or not at all."""
        write_json(self.folder / RECORD, self.record)
        found = sorted(self.images)
        images = [self.images[index] for index in found]
        images = np.array(images, np.uint8).reshape(len(found), *self.record["in_dim"])
        with atomic_path(self.folder / ARRAYS) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, index=np.array(found, int), image=images)
        # Last, as it is what counts as done.
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows[index] for index in sorted(self.rows))
        write_text(self.folder / TABLE, text.getvalue())
        self._saved = time.monotonic()

    def draw(self, originals: np.ndarray, predict: Callable[[np.ndarray], np.ndarray]) -> None:
        """A figure of each counterexample beside its image, in the order of the images.

        Parameters
        ----------
        originals : ndarray of uint8
            All images.
        predict : callable
            Takes images to scores.
        """
        shutil.rmtree(self.folder / FIGURES, ignore_errors=True)
        for index, found in tqdm(sorted(self.images.items()), desc="figures"):
            label, predicted = self.rows[index]["label"], predict(found[None]).argmax()
            figure = plot_counterexample(originals[index], found, label, predicted)
            with atomic_path(self.folder / FIGURES / f"{index}.png") as temporary:
                figure.savefig(temporary)
            plt.close(figure)

    def table(self) -> str:
        """Counts and times of the verdicts, and the accuracies that follow, as text."""
        seconds = {name: [] for name in VERDICTS}
        for row in self.rows.values():
            seconds[row["verdict"]].append(float(row["seconds"]))
        total = len(self.rows)
        lines = [
            (name, len(s), 100 * len(s) / total, np.mean(s), np.median(s), max(s))
            for name, s in [*seconds.items(), ("all", list(itertools.chain(*seconds.values())))]
            if s
        ]
        headers = ("verdict", "images", "%", "mean s", "median s", "worst s")
        text = tabulate(lines, headers, floatfmt=("", "", ".1f", ".2f", ".2f", ".2f"))
        robust, undecided = len(seconds[ROBUST]), len(seconds[UNDECIDED])
        share = robust / total
        error = 100 * math.sqrt(share * (1 - share) / total)
        right = 100 - 100 * len(seconds[MISCLASSIFIED]) / total
        text += f"\naccuracy {right:.1f} %, verified accuracy {100 * share:.1f} ± {error:.1f} %"
        if undecided:
            text += f" (at most {100 * (robust + undecided) / total:.1f} % with the undecided)"
        return text
