"""Models of stock Keras layers to try `survey.py` on: `python -m examples.NAME --out DIR`."""

import argparse
from contextlib import AbstractContextManager
from pathlib import Path

from utils import one_line_errors, require


def arguments(name: str, epochs: int, argv: list | None = None) -> argparse.Namespace:
    """The folder to write to, where the data lie, and how many epochs.

    Parameters
    ----------
    name : str
        Of the example.
    epochs : int
        The default.
    argv : list of str, optional
        The command line; by default the process's own.
    """
    cli = argparse.ArgumentParser(prog=f"python -m examples.{name}", allow_abbrev=False)
    folder = "folder of the model and its data (default: output/examples)"
    cli.add_argument("--out", type=Path, default=Path("output/examples"), help=folder)
    cli.add_argument("--data_dir", help="folder of the data sets (default: $BNN_DATA_DIR, data/)")
    cli.add_argument("--epochs", type=int, default=epochs, help=f"default: {epochs}")
    cli.add_argument("--steps", type=int, help="end each epoch after so many steps, to try it")
    args = cli.parse_args(argv)
    with one_line_errors(cli.prog):
        require(args.epochs >= 1, f"--epochs must be at least 1, not {args.epochs}")
        require(args.steps is None or args.steps >= 1, "--steps must be at least 1")
    return args


def command(name: str) -> AbstractContextManager[None]:
    """Runs the example's block: bad input and Ctrl-C end it with one line."""
    again = "interrupted: the same command goes on after the last finished epoch"
    return one_line_errors(f"python -m examples.{name}", again)
