"""A run's own folder: what belongs to it, who writes to it, and when it may be replaced."""

import contextlib
import json
import os
import shutil
from pathlib import Path

from files import HALF_WRITTEN, locked, write_text
from utils import require

# The trained network; weights and optimizer after the last finished epoch; a row per epoch; the
# geometry per epoch; what made them; the last epoch's flips.
CHECKPOINT, STATE = "network.keras", "state.keras"
HISTORY, GEOMETRY, RECORD = "history.csv", "geometry.csv", "run.json"
FLIPS = "flips.npz"
# What else a run or a report of it leaves there.
DERIVED = (
    *("network.compact.keras", "network.packed"),
    *("report.md", "report.html", "report.json", "report.npz"),
)
TENSORBOARD = "tensorboard"
FOLDERS = ("figures", TENSORBOARD)
LOCK = ".run.lock"


class RunFolder:
    """The folder of one run.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    ValueError
        If `path` is empty.
    """

    def __init__(self, path: str | os.PathLike):
        require(str(path), "--out_dir is empty: name a folder")
        self.path = Path(path)
        self._lock = contextlib.ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """Let other processes write there again."""
        self._lock.close()

    def __truediv__(self, name):
        return self.path / name

    def check(self, record: dict, resume: bool, overwrite: bool) -> dict:
        """The record of the run to go on with, or `record` of a new one; changes nothing.

        Raises
        ------
        ValueError
            If the folder holds something else, a run that is neither to be resumed nor
            overwritten, or another run than the one to be resumed.
        """
        require(
            self.path.exists() or not self.path.is_symlink(),
            f"--out_dir {self.path} is a link to {os.path.realpath(self.path)}, which is missing",
        )
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        names = {name for name in names if name != LOCK and not name.startswith(HALF_WRITTEN)}
        if RECORD not in names:
            require(
                not names,
                f"{self.path} is not empty and holds no run: take another --out_dir",
            )
            return record
        if overwrite:
            return record
        require(
            resume,
            f"{self.path} holds a run already: go on with it by --resume, take another --out_dir, "
            "or replace it by --overwrite",
        )
        earlier = read_record(self.path / RECORD)
        other = difference(record, earlier)
        require(
            other is None,
            f"the run in {self.path} has {other and other[0]} {other and other[2]}, this command "
            f"{other and other[1]}: repeat its command with --resume, or take another --out_dir",
        )
        return earlier

    def begin(self, record: dict, resume: bool = False, overwrite: bool = False) -> dict:
        """Take the folder for this process: `check`, then lock it and clear what is replaced.

        Returns
        -------
        dict
            As `check`.

        Raises
        ------
        ValueError
            As `check`; and if the folder cannot be written to, or another process trains there.
        """
        self.check(record, resume, overwrite)
        try:
            refusal = f"another process trains in {self.path}: wait until it ends"
            self._lock.enter_context(locked(self.path / LOCK, refusal))
        except OSError as error:
            raise ValueError(f"cannot write to --out_dir {self.path}: {error.strerror}") from None
        # Another process may have begun, or ended, before the lock was taken.
        kept = self.check(record, resume, overwrite)
        for path in self.path.glob(f"{HALF_WRITTEN}*"):
            path.unlink()
        if kept is record:
            self._clear()
        return kept

    def _clear(self):
        for name in (STATE, CHECKPOINT, HISTORY, GEOMETRY, FLIPS, *DERIVED, RECORD):
            (self.path / name).unlink(missing_ok=True)
        for name in FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def cut_history(self, epochs: int) -> None:
        """Keep the first `epochs` rows of history.csv: a killed run may have written one more."""
        path = self.path / HISTORY
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                lines = file.read().splitlines()
            write_text(path, "".join(f"{line}\n" for line in lines[: epochs + 1]))


def read_record(path: Path) -> dict:
    """The record at `path`; ValueError if it is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        require(isinstance(record["sittings"], list), "it lists no sittings")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): replace the run by --overwrite, or take another "
            "--out_dir"
        ) from None
    return record


def difference(record: dict, other: dict) -> tuple | None:
    """What tells one run's record from another's: (name, value, other value), or None."""
    # As JSON gives them back: tuples have become lists.
    return _difference(*(json.loads(json.dumps(one)) for one in (record, other)))


def _difference(record, other):
    for name, value in record.items():
        if name in ("sittings", "test_accuracy") or value == other.get(name):
            continue
        if isinstance(value, dict) and isinstance(other.get(name), dict):
            # A run older than a parameter has its default.
            inner = {key: other[name].get(key, value[key]) for key in value}
            found = _difference(value, inner)
            if found is None:
                continue
            return found
        return name, value, other.get(name)
    return None
