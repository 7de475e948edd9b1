"""Train a binary or ternary network on CIFAR-10, MNIST or digits, and look inside it.

python run_bnn.py                       # the paper's network on CIFAR-10
python run_bnn.py --data_set digits     # data that scikit-learn carries
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoint import require_teacher, saved_parameters
from data.download_data import download
from data.load_data import (
    DATA_SETS,
    Data,
    data_md5,
    images_and_classes,
    is_own,
    load_data,
    missing_files,
)
from distribute.cluster import WEIGHTS, cluster_from_environment
from export import FORMATS
from export import check as check_export
from files import file_digest, write_json
from run_folder import (
    CHECKPOINT,
    FLIPS,
    GEOMETRY,
    HISTORY,
    RECORD,
    STATE,
    TENSORBOARD,
    RunFolder,
    difference,
)
from utils import (
    NETWORK_NAMES,
    PIXEL_LEVELS,
    RECIPES,
    NetworkParams,
    TrainingParams,
    one_line_errors,
    require,
    require_flips,
    require_packable,
    require_size,
)

# isort: split
from tqdm import tqdm

if TYPE_CHECKING:
    import keras
    import numpy as np

    from bnn import BinaryNeuralNetwork, PackedNetwork

# Images from which the table's correlations are taken: enough for three digits.
TABLE_IMAGES = 500
# Images on which --track_geometry measures r after every epoch.
TRACKED_IMAGES = 200
# Images that a rate is measured on, and between two steps of a progress bar: some batches.
RATE_IMAGES = SCORED_IMAGES = 1000
# --debug keeps this many images of each split, as published, and by default this many epochs.
DEBUG_IMAGES, DEBUG_EPOCHS = 100, 2


# --- Command line -----------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line; a flag that is not given is absent from what it returns."""
    network, training = NetworkParams(), TrainingParams()
    cli = argparse.ArgumentParser(
        prog="run_bnn.py",
        description="Train a binary or ternary network, and look inside it.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )

    def add(group, flag, default, text, **options):
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        group.add_argument(flag, help=f"{text} (default: {shown})", **options)

    whole = {"type": int, "metavar": "N"}
    number = {"type": float, "metavar": "X"}
    several = {"type": int, "nargs": "*", "metavar": "N"}

    files = cli.add_argument_group("data and files")
    data_sets = f"{', '.join(DATA_SETS)}, or a .npz file with x_train, y_train, x_test, y_test"
    add(files, "--data_set", "cifar-10", data_sets, metavar="NAME")
    add(files, "--data_dir", "$BNN_DATA_DIR, else data/", "folder of the data sets")
    add(files, "--valid_size", "500; MNIST 10000", "last training images, for validation", **whole)
    add(files, "--out_dir", "output/<data_set>_<kind>", "the run's own folder")
    add(files, "--param_file", "none", "start from this checkpoint, with its network parameters")
    resume = "go on with the interrupted run in --out_dir"
    add(files, "--resume", "off", resume, action="store_true")
    replace = "replace the run in --out_dir, and all that belongs to it"
    add(files, "--overwrite", "off", replace, action="store_true")
    add(files, "--ckpt_n", 10, "write the checkpoint every N epochs", **whole)
    packing = "also write the network packed into bits, beside the checkpoint"
    add(files, "--pack", "off", packing, action="store_true")
    compact = "also write the checkpoint at half its size, beside it"
    add(files, "--compact", "off", compact, action="store_true")
    exporting = "also write the network as C and in other programs' formats into this folder"
    add(files, "--export", "off", exporting, metavar="DIR")

    net = cli.add_argument_group("network")
    kinds = "the paper's, with shortcuts of floats or of bits, or recurrent"
    add(net, "--network", network.network, kinds, choices=NETWORK_NAMES)
    add(net, "--conv", network.conv, "filters of each convolutional layer", **several)
    add(net, "--filter_size", network.filter_size, "height and width of the filters", **whole)
    add(net, "--stride", network.stride, "of each conv layer, or one for all", **several)
    add(net, "--max_pool", (0, 1, 0, 1, 0, 1), "per conv layer: 1 for 2×2 pooling", **several)
    add(net, "--fc", network.fc, "units of each fully connected or recurrent layer", **several)
    add(net, "--slices", "8", "thresholds of a pixel that boolnet reads", **whole)
    add(net, "--levels", 2, "2 for binary, 3 for ternary", type=int, choices=(2, 3))
    add(net, "--threshold", "0.0; ternary 0.02", "of the ternary quantizer", **number)
    add(net, "--threshold_sigma", "none", "threshold in standard deviations", **number)
    add(net, "--activation_threshold", "the weights'", "that of activations", **number)
    levels = "round pixels to so many, evenly spaced from black to white"
    add(net, "--input_levels", "none", levels, type=int, choices=PIXEL_LEVELS)
    rotations = ("random", "pca", "zca")
    rotate = "quantize the first layer in this basis"
    add(net, "--rotate_first", "none", rotate, choices=rotations)
    own = "a quantizer of quantizers.py in place of the sign"
    add(net, "--quantizer", "none", own, metavar="NAME")
    add(net, "--continuous", "off", "quantize nothing", action="store_true")

    train = cli.add_argument_group("training")
    recipe = "defaults of the flags below: the paper's, or those of a training of 40 epochs"
    add(train, "--recipe", "paper", recipe, choices=tuple(RECIPES))
    track = "angles and r after every epoch, in geometry.csv"
    add(train, "--track_geometry", "off", track, action="store_true")
    flips = "flips and drift of the latent weights in the last epoch, in flips.npz"
    add(train, "--track_flips", "off", flips, action="store_true")
    add(train, "--epochs", training.epochs, "0 only evaluates", **whole)
    add(train, "--batch_size", training.batch_size, "images in a step", **whole)
    add(train, "--lr_start", training.lr_start, "learning rate of the first epoch", **number)
    add(train, "--lr_end", "0.0000003", "learning rate that the decay leads to", **number)
    schedules = ("exponential", "linear")
    add(train, "--lr_schedule", training.lr_schedule, "form of the decay", choices=schedules)
    add(
        train,
        "--loss_mode",
        training.loss_mode,
        "loss function",
        choices=("hinge-loss", "softmax"),
    )
    add(
        train,
        "--precision",
        "auto",
        "of the training: bfloat16 where it is faster",
        choices=("auto", "float32", "mixed_bfloat16"),
    )
    mirrored = "mirror training images at random, or shift them too"
    add(train, "--augment", "none", mirrored, choices=("none", "flip", "crop-flip"))
    bop = "Adam on latent weights, or Bop, which flips binary weights and needs none"
    add(train, "--optimizer", training.optimizer, bop, choices=("adam", "bop"))
    gamma = "share of the newest gradient in Bop's average; with adam, keep that average too"
    add(train, "--bop_gamma", "bop 0.0001", gamma, **number)
    add(train, "--bop_threshold", "bop 1e-08", "average at which Bop flips a weight", **number)
    attacked = "train on images whose pixels were changed by up to X (of 1) to raise the loss"
    add(train, "--adversarial", training.adversarial, attacked, **number)
    thresholds = "factor of a loss that grows with the threshold of each unit"
    add(train, "--threshold_penalty", training.threshold_penalty, thresholds, **number)
    kurtosis = "penalize the distance of each unit's kurtosis from X"
    add(train, "--kurtosis", "none", kurtosis, **number)
    freeze = "freeze binary weights that flip more often per step than X"
    add(train, "--freeze_oscillating", "none", freeze, **number)
    teacher = "learn this checkpoint's scores in place of the labels"
    add(train, "--teacher", "none", teacher, metavar="CHECKPOINT")
    add(train, "--with_labels", "off", "with --teacher: learn both", action="store_true")
    temperature = "with --teacher: divide all scores by X before softmax"
    add(train, "--temperature", "1.0", temperature, **number)
    add(train, "--seed", training.seed, "of initialization and shuffling", **whole)
    add(
        train,
        "--debug",
        "off",
        f"{DEBUG_IMAGES} images of each split and, unless told, {DEBUG_EPOCHS} epochs",
        action="store_true",
    )
    return cli


def network_params(args: argparse.Namespace) -> NetworkParams:
    """NetworkParams that the flags describe, or those of the checkpoint in --param_file.

    Raises
    ------
    ValueError
        If the flags are out of range, or contradict the checkpoint.
    """
    given = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(NetworkParams)
        if field.name in args
    }
    if "continuous" in args:
        given.update(bin_weights=False, bin_acts=False)
    if "param_file" not in args:
        return NetworkParams(**given)
    saved = saved_parameters(args.param_file)[2]
    # Only what is given can contradict, and only as the dataclass understands it.
    wanted = dataclasses.replace(saved, **given)
    for field in dataclasses.fields(saved):
        before, now = getattr(saved, field.name), getattr(wanted, field.name)
        require(
            before == now,
            f"--param_file was trained with {field.name} {before}, the flags say {now}: "
            "drop the flag or the file",
        )
    return saved


def default_folder(args: argparse.Namespace, data_set: str, network: NetworkParams) -> str:
    """The folder of a run whose command names none: one for each kind of network."""
    other = network.network if network.network != "paper" else None
    debug = "debug" if "debug" in args else None
    name = Path(data_set).stem if is_own(data_set) else data_set
    parts = (name, network.kind, other, network.rotate_first, debug)
    return f"output/{'_'.join(filter(None, parts))}"


def training_params(args: argparse.Namespace) -> TrainingParams:
    """TrainingParams of the recipe and the flags, all but the precision, which takes TensorFlow."""
    names = [field.name for field in dataclasses.fields(TrainingParams) if field.name in args]
    given = {name: getattr(args, name) for name in names if name != "precision"}
    if given.get("augment") == "none":  # Not the same as no flag, with a recipe that augments.
        given["augment"] = None
    if "debug" in args:
        given.setdefault("epochs", DEBUG_EPOCHS)
    return dataclasses.replace(RECIPES[getattr(args, "recipe", "paper")], **given)


def load_images(args: argparse.Namespace, data_set: str) -> Data:
    """The data set, downloaded if it is missing."""
    folder = getattr(args, "data_dir", None)
    if missing_files(data_set, folder):
        download(data_set, folder)
    data = load_data(data_set, folder, getattr(args, "valid_size", None))
    return data._make(part[:DEBUG_IMAGES] for part in data) if "debug" in args else data


def check_checkpoint_fits(path: str | os.PathLike, data_set: str) -> None:
    """Raise ValueError unless the checkpoint at `path` takes images of `data_set`."""
    in_dim, out_dim, *_ = saved_parameters(path)
    wanted = images_and_classes(data_set)
    require(
        (tuple(in_dim), out_dim) == wanted,
        f"{path} takes images of shape {tuple(in_dim)} with {out_dim} classes, "
        f"but {data_set} has {wanted[0]} with {wanted[1]}: choose another --data_set",
    )


def git_revision() -> str | None:
    """Revision of the code, with '-dirty' after it where files were changed, or None."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def run_record(
    args: argparse.Namespace, data_set: str, network: NetworkParams, training: TrainingParams
) -> dict:
    """What traces the figures of a run to what made them."""
    teacher = {}
    if training.teacher is not None:
        teacher["teacher_sha256"] = file_digest(training.teacher, "sha256")
    return {
        "data_set": data_set,
        "data_md5": data_md5(data_set),
        "valid_size": getattr(args, "valid_size", None),
        "debug": "debug" in args,
        "network_params": dataclasses.asdict(network),
        "training_params": dataclasses.asdict(training),
        **teacher,
        "sittings": [],
    }


def sitting(argv: Sequence[str]) -> dict:
    """What belongs to one start of the program: a run that is resumed has several."""
    return {
        "command": ["run_bnn.py", *argv],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git_revision": git_revision(),
        "versions": {
            "python": sys.version.split()[0],
            **{name: metadata.version(name) for name in ("tensorflow", "keras", "numpy")},
        },
    }


# --- Run --------------------------------------------------------------------------------------


def callbacks(
    network: BinaryNeuralNetwork,
    folder: RunFolder,
    every: int,
    tracked: np.ndarray | None = None,
    flips: bool = False,
) -> list[keras.callbacks.Callback]:
    """Keras callbacks that write history, TensorBoard's files, checkpoint, geometry and flips.

    The geometry is measured on the images `tracked`, if there are any.
    """
    import keras

    from flips import FlipLog
    from geometry_log import GeometryLog

    class Run(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            done = int(self.model.optimizer.iterations.numpy()) // self.params["steps"]
            folder.cut_history(done)
            self.begun = []

        def on_epoch_begin(self, epoch, logs=None):
            self.begun.append(time.perf_counter())
            if len(self.begun) > 1:
                seconds = seconds_left(self.begun, self.params["epochs"] - epoch)
                print(f"time left: {tqdm.format_interval(seconds)}")

        def on_epoch_end(self, epoch, logs=None):
            logs["seconds"] = round(time.perf_counter() - self.begun[-1], 1)
            if (epoch + 1) % every == 0:
                network.save(folder / CHECKPOINT)

    board = folder / TENSORBOARD
    track = []
    if tracked is not None:
        track = [GeometryLog(network, tracked, folder / GEOMETRY, board / "geometry")]
    if flips:
        track.append(FlipLog(folder / FLIPS))
    return [
        *track,
        Run(),
        keras.callbacks.CSVLogger(folder / HISTORY, append=True),
        keras.callbacks.TensorBoard(board),
    ]


def seconds_left(begun: Sequence, epochs: int) -> float:
    """Seconds that `epochs` more epochs take.

    Parameters
    ----------
    begun : sequence of float
        Times at which epochs began, in seconds. The first epoch, in which the network is compiled,
        counts only as long as there is no other.
    epochs : int
    """
    begun = begun[1:] if len(begun) > 2 else begun
    return epochs * (begun[-1] - begun[0]) / (len(begun) - 1)


def train(
    network: BinaryNeuralNetwork,
    data: Data,
    folder: RunFolder,
    args: argparse.Namespace,
    strategy: object,
) -> None:
    """Train `network`, in `folder`, from the state that an interrupted run left there."""
    tracked = data.x_test[:TRACKED_IMAGES] if "track_geometry" in args else None
    every, flips = getattr(args, "ckpt_n", 10), "track_flips" in args
    valid = (data.x_valid, data.y_valid) if len(data.x_valid) else (None, None)
    network.fit(
        data.x_train,
        data.y_train,
        *valid,
        callbacks=callbacks(network, folder, every, tracked, flips),
        state=folder / STATE,
        strategy=strategy,
    )


def weights_digest(network: BinaryNeuralNetwork) -> str:
    """What tells whether two workers ended with the same weights."""
    weights = network.model.get_weights()
    return hashlib.sha256(b"".join(w.tobytes() for w in weights)).hexdigest()


def checked(argv: Sequence[str]) -> tuple:
    """The arguments, and the parameters that they describe, before TensorFlow is imported.

    Returns
    -------
    args : argparse.Namespace
    data_set : str
    network : NetworkParams
    training : TrainingParams

    Raises
    ------
    ValueError
        If they are wrong or contradict each other.
    """
    args = parser().parse_args(argv)
    data_set = getattr(args, "data_set", "cifar-10")
    images_and_classes(data_set)
    if is_own(data_set):
        data_set = str(Path(data_set).resolve())
    network, training = network_params(args), training_params(args)
    require_flips(network, training)
    if training.teacher is not None:
        require_teacher(training.teacher, *images_and_classes(data_set))
    every = getattr(args, "ckpt_n", 10)
    require(every >= 1, f"--ckpt_n must be at least 1, not {every}")
    require_size(network, *images_and_classes(data_set))
    if "param_file" in args:
        check_checkpoint_fits(args.param_file, data_set)
    if "pack" in args:
        require_packable(network)
    if "export" in args:
        check_export(network, args.export)
    for flag in ("pack", "compact", "export"):
        trained = training.epochs or "param_file" in args or flag not in args
        require(trained, f"--{flag} needs a trained network")
    for flag in ("resume", "overwrite"):
        # An evaluation would clear the run and put none in its place.
        require(training.epochs or flag not in args, f"--{flag} needs a training: --epochs is 0")
    both = "resume" in args and "overwrite" in args
    require(not both, "--resume and --overwrite exclude each other: give one")
    return args, data_set, network, training


def run(argv: Sequence[str]) -> None:
    """Do what the command line says; ValueError or OSError where it cannot be done."""
    args, data_set, network, training = checked(argv)
    path = getattr(args, "out_dir", default_folder(args, data_set, network))
    if training.teacher is not None:
        beside = Path(training.teacher).resolve().parent == Path(path).resolve()
        require(not beside, f"the teacher lies in --out_dir {path}: take another --out_dir")
    with RunFolder(path) as folder:
        run_in(folder, argv, args, data_set, network, training)


def run_in(
    folder: RunFolder,
    argv: Sequence[str],
    args: argparse.Namespace,
    data_set: str,
    network: NetworkParams,
    training: TrainingParams,
) -> None:
    """Train in a folder, or evaluate; the arguments are those that `checked` returns."""
    record = run_record(args, data_set, network, training)
    takes_folder = training.epochs or "out_dir" in args
    flags = "resume" in args, "overwrite" in args
    cluster = cluster_from_environment() if training.epochs else None
    chief = cluster is None or cluster.is_chief
    if takes_folder and chief and "resume" not in args:
        folder.check(record, *flags)
    data = load_images(args, data_set)

    # Only now, as it takes seconds: a wrong flag should be answered at once.
    from bnn import BinaryNeuralNetwork
    from distribute.devices import on_chief, training_strategy
    from fast.precision import choose_precision
    from graph_ops import get_quantizer

    get_quantizer(network.quantizer)
    strategy = None
    if training.epochs:
        precision, why = choose_precision(getattr(args, "precision", "auto"))
        print(f"training in {precision}: {why}")
        training = dataclasses.replace(training, precision=precision)
        strategy, devices = training_strategy(cluster, training.batch_size)
        print(f"training on {devices}")
    bnn = BinaryNeuralNetwork(*images_and_classes(data_set), network, training)
    if "param_file" in args:
        bnn.load_weights(args.param_file)
    # From here on nothing in the command can be wrong any more, and the folder may be changed.
    record = run_record(args, data_set, network, training)
    checkpoint = getattr(args, "param_file", None)
    if takes_folder:
        own, record = record, on_chief(strategy, folder.begin, record, *flags)
        other = difference(own, record)
        require(
            other is None,
            f"this worker has another {other and other[0]} than the first: give all the same "
            "command",
        )
    if training.epochs:
        checkpoint = folder / CHECKPOINT
        if "test_accuracy" in record:
            print(f"the run in {folder.path} is finished: nothing to resume")
            if not chief:
                return  # Its checkpoint is with the first worker, perhaps on another machine.
            bnn.load_weights(checkpoint)
            finish(args, bnn, data, checkpoint, folder.path, record["test_accuracy"])
            return
        record["sittings"].append({**sitting(argv), "devices": devices})

    print(f"{network.kind} network with {bnn.weight_count / 1e6:.2f} million weights on {data_set}")
    if training.epochs:
        if chief:
            write_json(folder / RECORD, record)
        train(bnn, data, folder, args, strategy)
        if cluster:
            print(f"{WEIGHTS}{weights_digest(bnn)}")
        if not chief:
            return
        bnn.save(checkpoint)
        # First of all that a failure could lose.
        record["test_accuracy"] = score(bnn, data.x_test, data.y_test)
        write_json(folder / RECORD, record)
        (folder / STATE).unlink()
        python, curves = os.path.relpath(sys.executable), str(folder / TENSORBOARD)
        command = shlex.join([python, "-m", "tensorboard.main", "--logdir", curves])
        print(f"the curves: {command}")
    look(bnn, data, folder if takes_folder else None)
    beside = folder.path if takes_folder or not checkpoint else Path(checkpoint).parent
    finish(args, bnn, data, checkpoint, beside, record.get("test_accuracy"))


def score(
    network: BinaryNeuralNetwork | PackedNetwork,
    x: np.ndarray,
    y: np.ndarray,
    description: str = "test accuracy",
) -> float:
    """Share of the images `x` that a network classifies as labelled, with a progress bar."""
    right = 0
    with tqdm(total=len(x), desc=description, unit="image") as bar:
        for start in range(0, len(x), SCORED_IMAGES):
            images = x[start : start + SCORED_IMAGES]
            right += int((network.classify(images) == y[start : start + SCORED_IMAGES]).sum())
            bar.update(len(images))
    return right / len(x)


def look(bnn: BinaryNeuralNetwork, data: Data, folder: RunFolder | None = None) -> None:
    """Print the table of the geometry and draw the figures, into `folder` if there is one."""
    from geometry_log import read_geometry
    from measure import format_table, measure_layers
    from plotting import run_figures

    layers = measure_layers(bnn, data.x_test[:TABLE_IMAGES])
    print(format_table(layers))
    if bnn.training_params.optimizer == "bop":
        print("There are no latent weights: wc is -m, the average of gradients times -1.")
    if folder is not None:
        try:
            run_figures(layers, folder / "figures", read_geometry(folder / GEOMETRY))
        # The network is what counts; no kind of it should fail for a figure.
        except Exception as error:
            print(f"not all figures could be drawn: {error}")


def finish(
    args: argparse.Namespace,
    bnn: BinaryNeuralNetwork,
    data: Data,
    checkpoint: str | os.PathLike | None,
    folder: Path,
    accuracy: float | None = None,
) -> None:
    """Write what --compact and --pack ask for into `folder`; print accuracy and checkpoint.

    The accuracy on the test images is measured unless it is given.
    """
    if accuracy is None:
        accuracy = score(bnn, data.x_test, data.y_test)
    name = Path(checkpoint or CHECKPOINT).stem.removesuffix(".compact")
    if "compact" in args:
        compact = folder / f"{name}.compact.keras"
        bnn.save(compact, compact=True)
        print(f"{compact}: {compact.stat().st_size} bytes")
    if "pack" in args:
        pack(bnn, folder / f"{name}.packed", data.x_test, data.y_test)
    if "export" in args:
        export(bnn, args.export, getattr(args, "data_set", "cifar-10"), accuracy, checkpoint)
    print(f"test accuracy {accuracy:.4f}")
    print(checkpoint or "no checkpoint: nothing was trained")


def pack(bnn: BinaryNeuralNetwork, path: Path, x: np.ndarray, y: np.ndarray) -> None:
    """Write the packed network to `path` and set it beside the float one."""
    from bnn import PackedNetwork

    packed = PackedNetwork.from_network(bnn)
    packed.save(path)
    rates = []
    for network in (bnn, packed):
        network.predict(x[:RATE_IMAGES])  # Compiles.
        start = time.perf_counter()
        network.predict(x[:RATE_IMAGES])
        rates.append(len(x[:RATE_IMAGES]) / (time.perf_counter() - start))
    accuracy = score(packed, x, y, "packed network")
    print(
        f"packed into {path}: {path.stat().st_size} bytes, test accuracy {accuracy:.4f}, "
        f"{rates[1]:.0f} images/s (float32: {rates[0]:.0f})"
    )


def export(
    bnn: BinaryNeuralNetwork,
    folder: str,
    data_set: str,
    accuracy: float,
    checkpoint: str | os.PathLike,
) -> None:
    """Write the network to `folder` in all forms whose packages are installed."""
    about = {
        "data_set": data_set,
        "test_accuracy": round(accuracy, 4),
        "checkpoint": Path(checkpoint).name,
        "checkpoint_sha256": file_digest(checkpoint, "sha256"),
    }
    made = bnn.export(folder, about)
    print(f"exported to {folder}: {', '.join(FORMATS[name][0] for name in made)}")
    for name, (_, package) in FORMATS.items():
        if name not in made:
            print(f"no {name}: it needs {package}, which requirements-export.txt installs")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (default: the process's own); bad input ends with exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    resume = "interrupted: the same command with --resume goes on from the last finished epoch"
    with one_line_errors("run_bnn.py", resume):
        run(argv)


if __name__ == "__main__":
    main()
