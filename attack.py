"""Look for small changes of images that change the answer of a network.

python attack.py output/demo/network.keras --data_set digits --epsilon 0.1 --images 100
"""

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from checkpoint import saved_parameters
from data.load_data import DATA_SETS, IMAGE_SHAPES, load_data
from files import atomic_path, file_digest, require_writable, write_json
from utils import number_from, one_line_errors, radius_of, require

COLUMNS = ("index", "label", "predicted", "verdict")
TABLE, RECORD = "attack.csv", "attack.json"
MISCLASSIFIED, FOOLED, NOT_FOOLED = "misclassified", "fooled", "not fooled"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(prog="attack.py", description=(__doc__ or "").partition("\n")[0])
    add = cli.add_argument
    whole = {"type": int, "metavar": "N"}
    add("checkpoint", help="a network that run_bnn.py has trained, .keras")
    add("--data_set", default="cifar-10", choices=DATA_SETS, help="what it was trained on")
    add("--data_dir", help="folder of the data sets (default: $BNN_DATA_DIR, else data/)")
    add("--split", default="test", choices=("test", "valid"), help="which images (default: test)")
    epsilon = "the most that a pixel may change, on the scale from 0 to 1: 0.1 or 8/255"
    add("--epsilon", required=True, type=number_from, metavar="X", help=epsilon)
    add("--images", default=1000, help="the first N images (default: 1000)", **whole)
    add("--steps", default=100, help="of gradient ascent (default: 100)", **whole)
    add("--searches", default=1000, help="of the random search (default: 1000)", **whole)
    add("--seed", default=0, help="of both (default: 0)", **whole)
    add("--out", metavar="DIR", help="folder of attack.csv, .json and attacked.npz (default: none)")
    return cli


def run(argv: Sequence[str]) -> None:
    """Attack, print accuracies, write what was found."""
    args = parser().parse_args(argv)
    for name, low in (("images", 1), ("steps", 0), ("searches", 0), ("seed", 0)):
        value = getattr(args, name)
        require(value >= low, f"--{name} must be at least {low}, not {value}")
    radius_of(args.epsilon)
    in_dim, shape = saved_parameters(args.checkpoint)[0], IMAGE_SHAPES[args.data_set]
    require(
        tuple(in_dim) == shape,
        f"{args.checkpoint} takes images of shape {tuple(in_dim)}, but {args.data_set} has "
        f"{shape}: choose another --data_set",
    )
    names = ("epsilon", "data_set", "split", "images", "steps", "searches", "seed")
    record = {"network_sha256": file_digest(args.checkpoint, "sha256")}
    record |= {name: getattr(args, name) for name in names}
    if args.out:
        _require_own(Path(args.out), record)
    data = load_data(args.data_set, args.data_dir)
    x, y = (part[: args.images] for part in (getattr(data, f"{n}_{args.split}") for n in "xy"))

    # Only now, as it takes seconds: a wrong flag should be answered at once.
    from adversarial import fool
    from bnn import BinaryNeuralNetwork

    network = BinaryNeuralNetwork.load(args.checkpoint)
    predicted = network.classify(x)
    numbers = args.epsilon, args.steps, args.searches, args.seed
    images, _ = fool(network.model, x, y, *numbers, progress=True)
    # The network's own answer decides.
    answers = network.classify(images)
    verdicts = np.where(answers == y, NOT_FOOLED, FOOLED)
    verdicts[predicted != y] = MISCLASSIFIED
    print(f"natural accuracy {_share(predicted == y)}")
    print(f"attacked accuracy at epsilon {args.epsilon:g}: {_share(verdicts == NOT_FOOLED)}")
    if args.out:
        _write(Path(args.out), record, y, predicted, verdicts, images)


def _require_own(folder, record):
    """Raise ValueError unless `folder` can be written to, and holds no other attack."""
    folder.mkdir(parents=True, exist_ok=True)
    require_writable(folder)
    try:
        same = json.loads((folder / RECORD).read_text(encoding="utf-8")) == record
    except FileNotFoundError:
        same = True
    except ValueError:
        same = False
    require(same, f"{folder} holds another attack: take another --out")


def _share(right):
    share, n = right.mean(), len(right)
    return f"{share:.4f} ± {math.sqrt(share * (1 - share) / n):.4f} of {n} images"


def _write(folder, record, y, predicted, verdicts, images):
    write_json(folder / RECORD, record)
    with (
        atomic_path(folder / TABLE) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(zip(range(len(y)), y, predicted, verdicts, strict=True))
    (found,) = np.nonzero(verdicts == FOOLED)
    with atomic_path(folder / "attacked.npz") as temporary:
        np.savez_compressed(temporary, index=found, image=images[found])
    print(folder / TABLE)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (default: the process's own); bad input ends with exit code 2."""
    with one_line_errors("attack.py"):
        run(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
