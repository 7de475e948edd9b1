"""Prove that no small change of an image changes the answer of a packed network.

python verify.py output/demo/network.packed --data_set digits --epsilon 0.1 --images 100
"""

if __name__ == "__main__":
    import signal

    # Until `main` has a line for it, Ctrl-C just ends the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import concurrent.futures
import functools
import importlib.util
import queue
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from data.load_data import DATA_SETS, IMAGE_SHAPES, NUM_CLASSES, load_data
from files import file_digest, locked
from packed.program import Product, Program
from utils import is_whole, number_from, one_line_errors, radius_of, require
from verification import square_search
from verification.results import (
    MISCLASSIFIED,
    NOT_ROBUST,
    ROBUST,
    TABLE,
    UNDECIDED,
    VERDICTS,
    Results,
    Verdict,
)
from verification.workers import Worker, search_or_prove

if TYPE_CHECKING:
    from packed.run import PackedNetwork

IMAGES, TIME_LIMIT = 100, 120.0
LONGEST = 10**6  # Seconds, eleven days.
LOCK = ".verify.lock"


# --- One image --------------------------------------------------------------------------------


def verify(
    packed: "PackedNetwork",
    image: np.ndarray,
    label: int,
    epsilon: float,
    time_limit: float = TIME_LIMIT,
    confirm: Callable[[np.ndarray], np.ndarray] | None = None,
    solve: Callable[..., tuple[bool | None, np.ndarray | None]] | None = None,
) -> Verdict:
    """Prove that all images within `epsilon` of an image get its label, or find one that does not.

    Parameters
    ----------
    packed : PackedNetwork
    image : ndarray of uint8, shape packed.in_dim
    label : int
        The right one.
    epsilon : float
        The most that a pixel may differ, on the scale from 0 to 1. Pixels are whole numbers from 0
        to 255.
    time_limit : float
        Seconds for the solver.
    confirm : callable, optional
        The float network, from uint8 images to scores: it has to give a counterexample another
        label, too.
    solve : callable, optional
        What does the work of `verification.workers.search_or_prove`, which runs in this process.

    Returns
    -------
    Verdict

    Raises
    ------
    ValueError
        If an argument is wrong, or clingo is not installed.
    """
    radius = radius_of(epsilon)
    image = np.asarray(image)
    require(
        image.dtype == np.uint8 and image.shape == packed.in_dim,
        f"the image must be uint8 of shape {packed.in_dim}, not {image.dtype} of {image.shape}",
    )
    require(
        is_whole(label) and 0 <= label < packed.out_dim,
        f"the label must be a whole number from 0 to {packed.out_dim - 1}, not {label!r}",
    )
    require_time_limit(time_limit)
    require_solver()
    solve = solve or functools.partial(search_or_prove, packed.program, score_table(packed))
    start = time.perf_counter()

    def verdict(name, counterexample=None):
        seconds = time.perf_counter() - start
        return Verdict(name, predicted, seconds, counterexample)

    predict = functools.partial(full_batches, packed.predict)
    predicted = int(predict(image[None]).argmax())
    if predicted != label:
        return verdict(MISCLASSIFIED)
    found = square_search.search(predict, image, predicted, radius)
    exists = found is not None
    if not exists:
        exists, found = solve(image, predicted, radius, time_limit)
    if not exists:
        return verdict(UNDECIDED if exists is None else ROBUST)
    check_counterexample(found, image, predicted, radius, filter(None, (predict, confirm)))
    return verdict(NOT_ROBUST, found)


def full_batches(predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """Scores of a few images, in a batch of the one size that XLA compiles for."""
    return predict(np.resize(images, (square_search.BATCH, *images.shape[1:])))[: len(images)]


def check_counterexample(
    found: np.ndarray,
    image: np.ndarray,
    label: int,
    radius: int,
    networks: Iterable[Callable[[np.ndarray], np.ndarray]],
) -> None:
    """Raise RuntimeError unless each network gives `found` another label; it would be a fault."""
    distance = np.abs(found.astype(int) - image.astype(int)).max()
    if distance > radius:
        raise RuntimeError(f"the counterexample is {distance} grey levels away, not {radius}")
    for predict in networks:
        if predict(found[None]).argmax() == label:
            raise RuntimeError("the counterexample gets the same label: please report this")


def score_table(packed: "PackedNetwork") -> np.ndarray:
    """Scores of all whole numbers that the output layer may reach, as `Encoding` takes them."""
    largest = [step.largest for step in packed.program.steps if isinstance(step, Product)][-1]
    products = np.arange(-largest, largest + 1, dtype=np.float32)
    return packed.scores_of(np.repeat(products[:, None], packed.out_dim, axis=1))


def require_time_limit(seconds: float) -> None:
    require(
        0 < seconds <= LONGEST,
        f"the time limit must be above 0 and at most {LONGEST} seconds, not {seconds}",
    )


def require_solver() -> None:
    """Raise ValueError if clingo is not installed."""
    installed = importlib.util.find_spec("clingo") is not None
    require(installed, "the solver clingo is missing: pip install -r requirements-verify.txt")


# --- Many images ------------------------------------------------------------------------------


def verify_images(
    packed: "PackedNetwork",
    images: np.ndarray,
    labels: np.ndarray,
    results: Results,
    epsilon: float,
    time_limit: float,
    jobs: int,
    confirm: Callable[[np.ndarray], np.ndarray] | None,
) -> None:
    """Verify those images that `results` lacks, `jobs` at a time, with a progress bar."""
    left = [index for index in range(len(images)) if index not in results.rows]
    table = score_table(packed)
    workers = queue.SimpleQueue()
    everyone = [Worker(packed.program, table) for _ in range(min(jobs, len(left)))]
    for worker in everyone:
        worker.start()
        workers.put(worker)
    full_batches(packed.predict, images[:1])  # Compiles, which takes seconds.

    def verdict_on(index):
        worker = workers.get()
        try:
            label = int(labels[index])
            return index, verify(packed, images[index], label, epsilon, time_limit, confirm, worker)
        finally:
            workers.put(worker)

    counts = dict.fromkeys(VERDICTS, 0)
    for row in results.rows.values():
        counts[row["verdict"]] += 1
    with concurrent.futures.ThreadPoolExecutor(max(1, len(everyone))) as pool:
        futures = [pool.submit(verdict_on, index) for index in left]
        done = concurrent.futures.as_completed(futures)
        try:
            with tqdm(total=len(images), initial=len(images) - len(left), unit="image") as bar:
                for future in done:
                    index, verdict = future.result()
                    results.add(index, int(labels[index]), verdict)
                    counts[verdict.verdict] += 1
                    bar.set_postfix({name: n for name, n in counts.items() if n}, refresh=False)
                    bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in everyone:
                worker.close()
            results.save()


# --- Command line -----------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="verify.py",
        description="Prove that no small change of an image changes a packed network's answer.",
        allow_abbrev=False,
    )
    cli.add_argument("network", metavar="NETWORK.packed", help="written by run_bnn.py --pack")
    cli.add_argument("--data_set", choices=DATA_SETS, required=True, help="whose test images")
    cli.add_argument("--data_dir", metavar="DIR", help="folder of the data sets")
    epsilon = "the most that a pixel may change, on the scale from 0 to 1: 0.1 or 8/255"
    cli.add_argument("--epsilon", type=number_from, required=True, metavar="X", help=epsilon)
    cli.add_argument("--images", type=int, default=IMAGES, metavar="N", help="the first N")
    limit = f"seconds for the solver, for each image (default: {TIME_LIMIT:.0f})"
    cli.add_argument("--time_limit", type=float, default=TIME_LIMIT, metavar="X", help=limit)
    cli.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="images at a time (default: 1)"
    )
    float_network = "the float network, which also has to be fooled (default: that beside it)"
    cli.add_argument("--checkpoint", metavar="FILE.keras", help=float_network)
    cli.add_argument("--out", metavar="DIR", help="folder of the verdicts (default: the network's)")
    cli.add_argument("--resume", action="store_true", help="go on with the verdicts in --out")
    cli.add_argument("--overwrite", action="store_true", help="replace the verdicts in --out")
    return cli


def float_network(
    path: Path, packed: "PackedNetwork", images: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """The checkpoint at `path` as a function of uint8 images; ValueError if it is another network.

    Parameters
    ----------
    path : Path
    packed : PackedNetwork
    images : ndarray of uint8
        On which the two are compared.
    """
    import bnn  # noqa: F401 (registers its classes)
    from checkpoint import open_model

    model = open_model(path)
    fits = model.input_shape[1:] == packed.in_dim and model.output_shape[1:] == (packed.out_dim,)
    require(fits, f"{path} is not the network that was packed: its images or classes differ")

    def predict(x):
        return np.asarray(model(x, training=False))

    same = np.array_equal(predict(images), full_batches(packed.predict, images))
    require(same, f"{path} is not the network that was packed: its scores differ")
    return predict


def run(argv: Sequence[str]) -> None:
    """Do what the command line says; ValueError or OSError where it cannot be done."""
    args = parser().parse_args(argv)
    path = Path(args.network)
    radius_of(args.epsilon)
    require_time_limit(args.time_limit)
    for name in ("images", "jobs"):
        require(getattr(args, name) >= 1, f"--{name} must be at least 1")
    require(not (args.resume and args.overwrite), "--resume and --overwrite exclude each other")
    require(path.suffix != ".keras", f"{path} is a checkpoint: pack it with run_bnn.py --pack")
    program = Program.load(path)
    require_solver()
    shape = IMAGE_SHAPES[args.data_set]
    require(
        (program.in_dim, program.out_dim) == (shape, NUM_CLASSES),
        f"{path} takes images of shape {program.in_dim} with {program.out_dim} classes, but "
        f"{args.data_set} has {shape} with {NUM_CLASSES}: choose another --data_set",
    )
    checkpoint = Path(args.checkpoint) if args.checkpoint else path.with_suffix(".keras")
    if args.checkpoint:
        require(checkpoint.is_file(), f"there is no checkpoint {checkpoint}")
    record = {
        "network": path.name,
        "sha256": file_digest(path, "sha256"),
        "data_set": args.data_set,
        "epsilon": args.epsilon,
        "time_limit": args.time_limit,
        "checkpoint": checkpoint.name if checkpoint.is_file() else None,
        "in_dim": list(program.in_dim),
        "solver": f"clingo {metadata.version('clingo')}",
    }
    folder = Path(args.out or path.parent)
    options = record, args.resume, args.overwrite
    Results(folder, *options)  # Whatever is wrong is said before a folder is made.
    with locked(folder / LOCK, f"another process verifies in {folder}: wait until it ends"):
        _verify_and_write(args, program, checkpoint, Results(folder, *options))


def _verify_and_write(args, program, checkpoint, results):
    data = load_data(args.data_set, args.data_dir)
    images, labels = data.x_test[: args.images], data.y_test[: args.images]
    del data

    # Only now, as TensorFlow takes seconds: a wrong argument should be answered at once.
    from packed.run import PackedNetwork

    packed, confirm = PackedNetwork(program), None
    if checkpoint.is_file():
        confirm = float_network(checkpoint, packed, images[: square_search.BATCH])
    else:
        print(f"no {checkpoint.name} beside it: the packed network alone confirms counterexamples")
    verify_images(
        packed, images, labels, results, args.epsilon, args.time_limit, args.jobs, confirm
    )
    results.draw(images, functools.partial(full_batches, packed.predict))
    print(results.table())
    print(results.folder / TABLE)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (default: the process's own); bad input ends with exit code 2."""
    again = "interrupted: the same command with --resume goes on from the last image"
    with one_line_errors("verify.py", again):
        run(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
