"""Wrong command lines and calls: each is answered by one line, which says what is wrong.

A command ends with exit code 2, a call with ValueError or FileNotFoundError. Nothing is written.
"""

import os
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest

import checkpoint
import graph_ops
import measure
import report
import run_bnn
import straight_through
import survey
import training
from bnn import BinaryNeuralNetwork, NetworkParams, PackedNetwork, TrainingParams
from data import download_data
from data.load_data import load_data
from packed.compile import compile_model
from tools import workers

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = "results/cifar-10_binary/network.keras"

# --- Command lines ----------------------------------------------------------------------------

# After `run_bnn.py --data_set digits --epochs 1 --out_dir NEW`, in the repository. What follows the
# message in a list of choices differs between versions of Python.
TRAINING = {
    "unknown flag": ("--learning_rate 1", "unrecognized arguments: --learning_rate 1"),
    "abbreviated flag": ("--epoch 1", "unrecognized arguments: --epoch 1"),
    "surplus word": ("digits", "unrecognized arguments: digits"),
    "data_set": (
        "--data_set imagenet",
        "unknown data set 'imagenet': choose one of cifar-10, MNIST, digits, or name a .npz file",
    ),
    "no value": ("--data_set", "argument --data_set: expected one argument"),
    "epochs negative": ("--epochs -1", "epochs must be a whole number from 0 to 2^31 - 1, not -1"),
    "epochs text": ("--epochs ten", "argument --epochs: invalid int value: 'ten'"),
    "epochs float": ("--epochs 1.5", "argument --epochs: invalid int value: '1.5'"),
    "epochs huge": (
        "--epochs 99999999999",
        "epochs must be a whole number from 0 to 2^31 - 1, not 99999999999",
    ),
    "batch_size": ("--batch_size 0", "batch_size must be a whole number from 1 to 2^31 - 1, not 0"),
    "lr_start negative": ("--lr_start -1", "lr_start must be a number above 0, not -1.0"),
    "lr_start nan": ("--lr_start nan", "lr_start must be a number above 0, not nan"),
    "lr_start infinite": ("--lr_start inf", "lr_start must be a number above 0, not inf"),
    "lr_start comma": ("--lr_start 0,1", "argument --lr_start: invalid float value: '0,1'"),
    "lr_end": ("--lr_end 0", "lr_end must be a number above 0, not 0.0"),
    "lr_schedule": ("--lr_schedule cosine", "argument --lr_schedule: invalid choice: 'cosine'"),
    "loss_mode": ("--loss_mode l2", "argument --loss_mode: invalid choice: 'l2'"),
    "precision": ("--precision float16", "argument --precision: invalid choice: 'float16'"),
    "augment": ("--augment rotate", "argument --augment: invalid choice: 'rotate'"),
    "optimizer": ("--optimizer sgd", "argument --optimizer: invalid choice: 'sgd'"),
    "bop of floats": (
        "--optimizer bop --continuous",
        "optimizer bop needs binary weights: drop it, or quantize by the sign",
    ),
    "bop_threshold of adam": ("--bop_threshold 1e-6", "bop_threshold needs optimizer bop"),
    "kurtosis": ("--kurtosis 0.5", "kurtosis must be a number at least 1, not 0.5"),
    "recipe": ("--recipe slow", "argument --recipe: invalid choice: 'slow'"),
    "seed negative": ("--seed -1", "seed must be a whole number from 0 to 2^31 - 1, not -1"),
    "seed huge": (
        "--seed 2147483648",
        "seed must be a whole number from 0 to 2^31 - 1, not 2147483648",
    ),
    "ckpt_n": ("--ckpt_n 0", "--ckpt_n must be at least 1, not 0"),
    "conv zero": (
        "--conv 0 8 --max_pool 0 1",
        "conv must hold whole numbers of at least 1, not [0, 8]",
    ),
    "conv against max_pool": (
        "--conv 8",
        "max_pool needs one entry per conv layer: 1, not (False, True, False, True, False, True)",
    ),
    "max_pool": ("--conv 8 --max_pool 3", "max_pool must hold 0 or 1, not [3]"),
    "max_pool text": ("--conv 8 --max_pool yes", "argument --max_pool: invalid int value: 'yes'"),
    "fc": ("--fc -3", "fc must hold whole numbers of at least 1, not [-3]"),
    "filter_size": ("--filter_size 0", "filter_size must be a whole number of at least 1, not 0"),
    "stride": (
        "--conv 8 --max_pool 0 --stride 0",
        "stride must hold whole numbers of at least 1, not [0]",
    ),
    "strides": (
        "--conv 8 --max_pool 0 --stride 1 2",
        "stride must be one number, or one per conv layer: 1, not (1, 2)",
    ),
    "too large": (
        "--conv 100000 100000 --max_pool 0 0",
        "a network of 96,555,558,816 weights would take 360 GB of memory; this machine "
        "has MEMORY GB",
    ),
    "too large in bases": (
        "--filter_size 3000 --rotate_first pca",
        "a network of 85,572,289,583,104 weights would take 318,782 GB of memory; this "
        "machine has MEMORY GB",
    ),
    "levels": ("--levels 4", "argument --levels: invalid choice: 4"),
    "threshold": ("--levels 3 --threshold -1", "threshold must be a number at least 0, not -1.0"),
    "threshold nan": (
        "--levels 3 --threshold nan",
        "threshold must be a number at least 0, not nan",
    ),
    "threshold alone": ("--threshold 0.1", "a threshold needs levels 3"),
    "both thresholds": (
        "--levels 3 --threshold 0.1 --threshold_sigma 0.6",
        "threshold and threshold_sigma exclude each other: give one",
    ),
    "threshold_sigma alone": ("--threshold_sigma 0.6", "threshold_sigma needs levels 3"),
    "activation_threshold alone": (
        "--activation_threshold 0.6",
        "activation_threshold needs levels 3",
    ),
    "rotate_first": (
        "--rotate_first fourier",
        "argument --rotate_first: invalid choice: 'fourier'",
    ),
    "rotate_first of nothing": (
        "--conv --max_pool --rotate_first pca",
        "rotate_first needs a convolutional layer",
    ),
    "quantizer": (
        "--quantizer sing",
        "no quantizer named 'sing'; known are binary, ternary, clip, scaled_sign",
    ),
    "quantizer empty": ("--quantizer ''", "quantizer must be the name of one, not ''"),
    "quantizer and levels": (
        "--quantizer scaled_sign --levels 3",
        "quantizer and levels exclude each other: a quantizer of one's own has its own levels",
    ),
    "quantizer and continuous": (
        "--quantizer scaled_sign --continuous",
        "quantizer and continuous exclude each other: nothing would be quantized",
    ),
    "network": ("--network alexnet", "argument --network: invalid choice: 'alexnet'"),
    "boolnet of ternary": (
        "--network boolnet --levels 3",
        "boolnet is a network of bits alone: it has no ternary, float or rotated form, "
        "and no quantizer of one's own",
    ),
    "gru of convolutions": (
        "--network gru --conv 8 --max_pool 0",
        "gru reads the rows of images: it has no convolution and nothing to rotate",
    ),
    "slices": (
        "--slices 4",
        "slices are thresholds of boolnet's pixels: they need network boolnet",
    ),
    "pack continuous": (
        "--continuous --pack",
        "cannot pack: bin_weights leaves layers unquantized",
    ),
    "pack quantizer": (
        "--quantizer scaled_sign --pack",
        "cannot pack: its quantizer is not the sign or its ternary form",
    ),
    "pack rotated": (
        "--rotate_first random --pack",
        "cannot pack: its first layer is rotated, so its weights are no bits",
    ),
    "export continuous": (
        "--continuous --export NEW/c",
        "cannot export: bin_weights leaves layers unquantized",
    ),
    "export to a file": ("--export README.md", "README.md is a file: name a folder to export to"),
    "export to a full folder": (
        "--export docs",
        "docs is not empty and holds no export.json: export to another folder",
    ),
    "pack untrained": ("--epochs 0 --pack", "--pack needs a trained network"),
    "compact untrained": ("--epochs 0 --compact", "--compact needs a trained network"),
    "overwrite untrained": (
        "--epochs 0 --overwrite",
        "--overwrite needs a training: --epochs is 0",
    ),
    "resume untrained": ("--epochs 0 --resume", "--resume needs a training: --epochs is 0"),
    "resume and overwrite": (
        "--resume --overwrite",
        "--resume and --overwrite exclude each other: give one",
    ),
    "valid_size": (
        "--valid_size 5000",
        "valid_size must be a whole number from 0 to 1436, because digits has 1437 "
        "training images, not 5000",
    ),
    "valid_size negative": (
        "--valid_size -1",
        "valid_size must be a whole number from 0 to 1436, because digits has 1437 "
        "training images, not -1",
    ),
    "data_dir": (
        "--data_set MNIST --data_dir README.md",
        "README.md is not a folder: give one with --data_dir or BNN_DATA_DIR",
    ),
    "out_dir empty": ("--out_dir ''", "--out_dir is empty: name a folder"),
    "out_dir a file": ("--out_dir run_bnn.py", "cannot write to --out_dir run_bnn.py: File exists"),
    "out_dir below a file": (
        "--out_dir run_bnn.py/run",
        "cannot write to --out_dir run_bnn.py/run: Not a directory",
    ),
    "out_dir unwritable": (
        "--out_dir /proc/nowhere",
        "cannot write to --out_dir /proc/nowhere: No such file or directory",
    ),
    "out_dir too long": (
        f"--out_dir {'a' * 4000}",
        "[Errno 36] File name too long: "
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…aaaaaaaaaaaaaaaaaaa'",
    ),
    "out_dir of the project": (
        "--out_dir geometry",
        "geometry is not empty and holds no run: take another --out_dir",
    ),
    "out_dir of the project, overwritten": (
        "--out_dir geometry --overwrite",
        "geometry is not empty and holds no run: take another --out_dir",
    ),
    "out_dir of all results": (
        "--out_dir results --resume",
        "results is not empty and holds no run: take another --out_dir",
    ),
    "out_dir the repository": (
        "--out_dir . --overwrite",
        ". is not empty and holds no run: take another --out_dir",
    ),
    "out_dir of a run": (
        "--out_dir results/MNIST_binary",
        "results/MNIST_binary holds a run already: go on with it by --resume, take "
        "another --out_dir, or replace it by --overwrite",
    ),
    "out_dir of another run": (
        "--out_dir results/MNIST_binary --resume",
        "the run in results/MNIST_binary has data_set MNIST, this command digits: "
        "repeat its command with --resume, or take another --out_dir",
    ),
    "param_file missing": ("--param_file nowhere.keras", "there is no checkpoint nowhere.keras"),
    "param_file too long": (
        f"--param_file {'a' * 4000}",
        "[Errno 36] File name too long: "
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…aaaaaaaaaaaaaaaaaaa'",
    ),
    "param_file a folder": ("--param_file docs", "there is no checkpoint docs"),
    "param_file a text": (
        "--param_file README.md",
        "README.md is damaged or no checkpoint of this program: File is not a zip file",
    ),
    "param_file of other images": (
        f"--param_file {PUBLISHED}",
        "results/cifar-10_binary/network.keras takes images of shape (32, 32, 3) with "
        "10 classes, but digits has (8, 8, 1) with 10: choose another --data_set",
    ),
    "param_file of another network": (
        f"--data_set cifar-10 --param_file {PUBLISHED} --fc 9",
        "--param_file was trained with fc (1024, 1024), the flags say (9,): drop the "
        "flag or the file",
    ),
    "threshold too high": (
        "--levels 3 --threshold 0.9",
        "the threshold leaves layer conv_1 without a single non-zero weight (its "
        "largest latent weight is 0.0718): choose a smaller one",
    ),
    "no data set": ("--data_set missing.npz", "there is no data set missing.npz"),
    "input_levels": ("--input_levels 3", "argument --input_levels: invalid choice: 3"),
    "levels rotated": (
        "--input_levels 2 --rotate_first pca",
        "input_levels excludes rotate_first and slices: give one",
    ),
    "adversarial": (
        "--adversarial 1.5",
        "adversarial must be a number at least 0 and at most 1, not 1.5",
    ),
    "two lessons": (
        "--adversarial 0.1 --teacher x.keras",
        "adversarial and teacher exclude each other: give one",
    ),
    "threshold_penalty": (
        "--threshold_penalty -1",
        "threshold_penalty must be a number at least 0, not -1.0",
    ),
    "pack residual": ("--network residual --pack", "cannot pack: its shortcuts are floats"),
    "bop_gamma": (
        "--optimizer bop --bop_gamma 2",
        "bop_gamma must be a number above 0 and at most 1, not 2.0",
    ),
    "bop ternary": (
        "--optimizer bop --levels 3",
        "optimizer bop needs binary weights: drop it, or quantize by the sign",
    ),
    "freeze": (
        "--freeze_oscillating 0",
        "freeze_oscillating must be a number above 0 and at most 1, not 0.0",
    ),
    "teacher of other images": (
        "--teacher results/cifar-10_binary/network.keras",
        "the teacher results/cifar-10_binary/network.keras takes images of shape (32, 32, 3) "
        "with 10 classes, this network (8, 8, 1) with 10: take another teacher",
    ),
    "with_labels": ("--with_labels", "with_labels needs a teacher: it adds to one"),
    "temperature": ("--temperature 2", "temperature needs a teacher"),
    "freeze continuous": (
        "--freeze_oscillating 0.02 --continuous",
        "freeze_oscillating needs binary weights: drop it, or quantize by the sign",
    ),
}
OTHERS = {
    "report without a checkpoint": (report, "", "the following arguments are required: checkpoint"),
    "report of nothing": (
        report,
        "''",
        "name a checkpoint: make report CHECKPOINT=output/…/network.keras",
    ),
    "report of a missing file": (report, "nowhere.keras", "there is no checkpoint nowhere.keras"),
    "report of a long name": (
        report,
        "a" * 4000,
        "[Errno 36] File name too long: "
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…aaaaaaaaaaaaaaaaaaa'",
    ),
    "report of a folder": (report, "results", "there is no checkpoint results"),
    "report of a text": (
        report,
        "README.md",
        "README.md is damaged or no checkpoint of this program: File is not a zip file",
    ),
    "report of no images": (report, f"{PUBLISHED} --images 0", "--images must be at least 1"),
    "report of many words": (
        report,
        f"{PUBLISHED} --images many",
        "argument --images: invalid int value: 'many'",
    ),
    "report on other images": (
        report,
        f"{PUBLISHED} --data_set digits",
        "results/cifar-10_binary/network.keras takes images of shape (32, 32, 3), but "
        "digits has (8, 8, 1)",
    ),
    "report on nothing known": (
        report,
        f"{PUBLISHED} --data_set letters",
        "unknown data set 'letters': choose one of cifar-10, MNIST, digits, or name a .npz file",
    ),
    "survey of nothing": (survey, "", "the following arguments are required: MODEL.keras"),
    "survey of a missing file": (
        survey,
        "nowhere.keras --npz x.npz",
        "there is no model nowhere.keras",
    ),
    "workers without a command": (workers, "", "the following arguments are required: command"),
    "no workers": (workers, "local 0 run_bnn.py", "there must be at least one worker, not 0"),
    "half a worker": (
        workers,
        "local 0.5 run_bnn.py",
        "argument workers: invalid int value: '0.5'",
    ),
    "workers of a missing script": (workers, "local 2 nope.py", "there is no script nope.py"),
    "workers at no rate": (
        workers,
        "scaling --rate -1",
        "--rate must be a positive number, not -1.0",
    ),
    "download of nothing": (download_data, "", "the following arguments are required: --data_set"),
    "download of what needs none": (
        download_data,
        "--data_set digits",
        "argument --data_set: invalid choice: 'digits'",
    ),
    "download into a file": (
        download_data,
        "--data_set MNIST --data_dir README.md",
        "README.md is not a folder: give one with --data_dir or BNN_DATA_DIR",
    ),
}


@pytest.fixture(autouse=True)
def only_quantizers_of_this_project(monkeypatch):
    """Messages list the known quantizers; other tests register their own."""
    names = ("binary", "ternary", "clip", "scaled_sign")
    known = {name: straight_through.QUANTIZERS[name] for name in names}
    monkeypatch.setattr(straight_through, "QUANTIZERS", known)


def memory():
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:,.0f}"


def refusal_of(main, argv, capsys):
    """The message of a command that ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    message = error.splitlines()[-1].partition(": error: ")[2]
    return message.partition(" (choose from")[0]


@pytest.mark.parametrize("name", TRAINING)
def test_a_wrong_training_is_refused_in_one_line(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags, message = TRAINING[name]
    new = tmp_path / "run"
    argv = ["--data_set", "digits", "--epochs", "1", "--precision", "float32"]
    argv += ["--out_dir", str(new), *shlex.split(flags.replace("NEW", str(new)))]
    assert refusal_of(run_bnn.main, argv, capsys) == message.replace("MEMORY", memory())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", OTHERS)
def test_another_wrong_command_is_refused_in_one_line(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    module, argv, message = OTHERS[name]
    assert refusal_of(module.main, shlex.split(argv), capsys) == message


# --- Calls ------------------------------------------------------------------------------------

X, Y = np.zeros((6, 8, 6, 2), np.uint8), np.arange(6) % 3
FLOATS = np.zeros((6, 8, 6, 2), np.float32)
SMALL = NetworkParams(conv=[4], max_pool=[1], fc=[5])
ONE_EPOCH = TrainingParams(epochs=1, batch_size=3)


@pytest.fixture(scope="module")
def network():
    return BinaryNeuralNetwork((8, 6, 2), 3, SMALL, ONE_EPOCH)


def made(**options):
    return BinaryNeuralNetwork((8, 6, 2), 3, NetworkParams(conv=[4], max_pool=[1], **options))


def layer_on(shape, layer):
    return layer(np.zeros(shape, np.float32))


def seen_twice(layer, *shapes):
    for shape in shapes:
        layer_on(shape, layer)


# What is called with a small network, and the message.
CALLS = {
    "conv a number": (lambda n: NetworkParams(conv=8), "conv must be a list of layer sizes, not 8"),
    "conv a word": (
        lambda n: NetworkParams(conv="8"),
        "conv must be a list of layer sizes, not '8'",
    ),
    "conv floats": (
        lambda n: NetworkParams(conv=[8.0], max_pool=[0]),
        "conv must hold whole numbers of at least 1, not [8.0]",
    ),
    "conv bools": (
        lambda n: NetworkParams(conv=[True], max_pool=[0]),
        "conv must hold whole numbers of at least 1, not [True]",
    ),
    "conv NumPy floats": (
        lambda n: NetworkParams(conv=np.ones(2), max_pool=[0, 0]),
        "conv must hold whole numbers of at least 1, not [1.0, 1.0]",
    ),
    "conv of None": (
        lambda n: NetworkParams(conv=[None], max_pool=[0]),
        "conv must hold whole numbers of at least 1, not [None]",
    ),
    "fc negative": (
        lambda n: NetworkParams(fc=[-1]),
        "fc must hold whole numbers of at least 1, not [-1]",
    ),
    "filter_size a pair": (
        lambda n: NetworkParams(filter_size=(3, 3)),
        "filter_size must be a whole number of at least 1, not (3, 3)",
    ),
    "max_pool a bool": (
        lambda n: NetworkParams(conv=[8], max_pool=True),
        "max_pool needs one entry per conv layer: 1, not True",
    ),
    "bin_weights too long": (
        lambda n: NetworkParams(bin_weights=[1, 0]),
        "bin_weights must be one bool, or one per layer (conv, fc, output: 9), not (1, 0)",
    ),
    "bin_acts twos": (
        lambda n: NetworkParams(bin_acts=2),
        "bin_acts must be one bool, or one per layer (conv, fc, output: 9), not 2",
    ),
    "levels a word": (lambda n: NetworkParams(levels="3"), "levels must be 2 or 3, not '3'"),
    "threshold a word": (
        lambda n: NetworkParams(levels=3, threshold="0.1"),
        "threshold must be a number at least 0, not '0.1'",
    ),
    "threshold infinite": (
        lambda n: NetworkParams(levels=3, threshold=np.inf),
        "threshold must be a number at least 0, not inf",
    ),
    "quantizer a class": (
        lambda n: NetworkParams(quantizer=graph_ops.Sign()),
        "quantizer must be the name of one, not Sign()",
    ),
    "network None": (
        lambda n: NetworkParams(network=None),
        "network must be one of paper, residual, boolnet, gru, lstm, not None",
    ),
    "batch_size float": (
        lambda n: TrainingParams(batch_size=50.0),
        "batch_size must be a whole number from 1 to 2^31 - 1, not 50.0",
    ),
    "epochs bool": (
        lambda n: TrainingParams(epochs=True),
        "epochs must be a whole number from 0 to 2^31 - 1, not True",
    ),
    "seed a word": (
        lambda n: TrainingParams(seed="0"),
        "seed must be a whole number from 0 to 2^31 - 1, not '0'",
    ),
    "lr_start None": (
        lambda n: TrainingParams(lr_start=None),
        "lr_start must be a number above 0, not None",
    ),
    "bn_momentum": (
        lambda n: TrainingParams(bn_momentum=1.5),
        "bn_momentum must be a number at least 0 and at most 1, not 1.5",
    ),
    "precision": (
        lambda n: TrainingParams(precision="bfloat16"),
        "precision must be float32 or mixed_bfloat16, not 'bfloat16'",
    ),
    "augment": (
        lambda n: TrainingParams(augment="none"),
        "augment must be flip or crop-flip, not 'none'",
    ),
    "in_dim without channels": (
        lambda n: BinaryNeuralNetwork((8, 8), 3),
        "in_dim must be (height, width, channels), all positive, not (8, 8)",
    ),
    "in_dim a number": (
        lambda n: BinaryNeuralNetwork(8, 3),
        "in_dim must be (height, width, channels), all positive, not 8",
    ),
    "in_dim of zeros": (
        lambda n: BinaryNeuralNetwork((8, 0, 1), 3),
        "in_dim must be (height, width, channels), all positive, not (8, 0, 1)",
    ),
    "one class": (lambda n: BinaryNeuralNetwork((8, 8, 1), 1), "out_dim must be at least 2, not 1"),
    "classes float": (
        lambda n: BinaryNeuralNetwork((8, 8, 1), 3.0),
        "out_dim must be at least 2, not 3.0",
    ),
    "unknown quantizer": (
        lambda n: made(quantizer="sing"),
        "no quantizer named 'sing'; known are binary, ternary, clip, scaled_sign",
    ),
    "threshold beyond all weights": (
        lambda n: made(levels=3, threshold=0.99, fc=[]),
        "the threshold leaves layer conv_1 without a single non-zero weight (its "
        "largest latent weight is 0.3269): choose a smaller one",
    ),
    "fit without labels": (
        lambda n: n.fit(X, None),
        "there are no labels: images and labels go together",
    ),
    "fit without images": (
        lambda n: n.fit(None, Y),
        "there are no images: images and labels go together",
    ),
    "fit nothing": (lambda n: n.fit(X[:0], Y[:0]), "there is not a single image"),
    "fit too few labels": (
        lambda n: n.fit(X, Y[:-1]),
        "labels must have the shape (6,), or be one-hot, not (5,)",
    ),
    "fit float labels": (
        lambda n: n.fit(X, Y / 1),
        "labels must be integers, not float64: y.astype(int) makes them so",
    ),
    "fit words as labels": (
        lambda n: n.fit(X, Y.astype(str)),
        "labels must be integers, not <U21: y.astype(int) makes them so",
    ),
    "fit labels beyond the classes": (
        lambda n: n.fit(X, Y + 1),
        "labels must lie between 0 and 2, not 1 to 3",
    ),
    "fit negative labels": (
        lambda n: n.fit(X, Y - 1),
        "labels must lie between 0 and 2, not -1 to 1",
    ),
    "fit soft labels": (
        lambda n: n.fit(X, np.full((6, 3), 1 / 3)),
        "labels must have the shape (6,), or be one-hot, not (6, 3)",
    ),
    "fit one-hot of other classes": (
        lambda n: n.fit(X, np.eye(4)[Y]),
        "labels must have the shape (6,), or be one-hot, not (6, 4)",
    ),
    "fit x_valid alone": (
        lambda n: n.fit(X, Y, X),
        "there are no labels: images and labels go together",
    ),
    "fit y_valid alone": (
        lambda n: n.fit(X, Y, None, Y),
        "there are no images: images and labels go together",
    ),
    "fit 2 epochs and a half": (
        lambda n: n.fit(X, Y, epochs=2.5),
        "epochs must be a whole number from 0 to 2^31 - 1, not 2.5",
    ),
    "fit negative epochs": (
        lambda n: n.fit(X, Y, epochs=-1),
        "epochs must be a whole number from 0 to 2^31 - 1, not -1",
    ),
    "images flat": (
        lambda n: n.predict(X.reshape(6, -1)),
        "images must have the shape (n, 8, 6, 2), not (6, 96)",
    ),
    "images without channels": (
        lambda n: n.predict(X[..., 0]),
        "images must have the shape (n, 8, 6, 2), not (6, 8, 6)",
    ),
    "images of other size": (
        lambda n: n.predict(X[:, :4]),
        "images must have the shape (n, 8, 6, 2), not (6, 4, 6, 2)",
    ),
    "a single image": (
        lambda n: n.predict(X[0]),
        "images must have the shape (n, 8, 6, 2), not (8, 6, 2)",
    ),
    "images of words": (
        lambda n: n.predict(X.astype(str)),
        "images must be pixels from 0 to 255 or floats, not <U3",
    ),
    "images of bools": (
        lambda n: n.predict(X > 0),
        "images must be pixels from 0 to 255 or floats, not bool",
    ),
    "images complex": (
        lambda n: n.predict(X * 1j),
        "images must be pixels from 0 to 255 or floats, not complex128",
    ),
    "images negative": (
        lambda n: n.predict(X.astype(int) - 1),
        "images must be pixels from 0 to 255 or floats, not int64",
    ),
    "images above 255": (
        lambda n: n.predict(X.astype(int) + 256),
        "images must be pixels from 0 to 255 or floats, not int64",
    ),
    "images NaN": (lambda n: n.predict(FLOATS * np.nan), "images hold NaN or infinity"),
    "images float64 too large": (
        lambda n: n.predict(FLOATS.astype(float) + 1e300),
        "images hold NaN or infinity",
    ),
    "images ragged": (
        lambda n: n.predict([[1], [1, 2]]),
        "images must be an array, not lists of unequal length",
    ),
    "score without labels": (
        lambda n: n.score(X, None),
        "there are no labels: images and labels go together",
    ),
    "inspect nothing": (lambda n: n.inspect_network(X[:0]), "there is not a single image"),
    "refit on other images": (
        lambda n: n.refit_batch_norm(X[..., :1]),
        "images must have the shape (n, 8, 6, 2), not (6, 8, 6, 1)",
    ),
    "weights of no layer": (
        lambda n: n.with_weights(["conv_9"]),
        "there is no layer ['conv_9']; there are conv_1, fc_1, fc_2",
    ),
    "save as h5": (lambda n: n.save("network.h5"), "a checkpoint ends in .keras, not network.h5"),
    "load a missing file": (
        lambda n: BinaryNeuralNetwork.load("nowhere.keras"),
        "there is no checkpoint nowhere.keras",
    ),
    "load weights of other images": (
        lambda n: n.load_weights(ROOT / PUBLISHED),
        "the weights in results/cifar-10_binary/network.keras do not fit its "
        "parameters: You called `set_weights(weights)` on layer 'bnn' with a weight "
        "list of length 36, but the layer was expecting 12 weights.",
    ),
    "packed missing": (
        lambda n: PackedNetwork.load("nowhere.packed"),
        "there is no packed network nowhere.packed",
    ),
    "packed of floats": (
        lambda n: PackedNetwork.from_network(made(bin_weights=False, fc=[])),
        "cannot pack: bin_weights leaves layers unquantized",
    ),
    "packed on other images": (
        lambda n: PackedNetwork.from_network(n).predict(X[:, :4]),
        "images must have the shape (n, 8, 6, 2), not (6, 4, 6, 2)",
    ),
    "packed on float64": (
        lambda n: PackedNetwork.from_network(n).predict(X / 255),
        "images must be uint8 or float32, not float64",
    ),
    "packed off the grid": (
        lambda n: PackedNetwork.from_network(n).predict(FLOATS + 0.001),
        "float32 images must hold 2u/255 − 1 for whole numbers u",
    ),
    "compiled of floats": (
        lambda n: compile_model(
            keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="floats")
        ),
        "cannot pack: the inputs of floats are no uint8 images of one size",
    ),
    "opened missing": (
        lambda n: checkpoint.open_model("nowhere.keras"),
        "there is no model nowhere.keras",
    ),
    "opened text": (
        lambda n: checkpoint.open_model(ROOT / "README.md"),
        "README.md is damaged or no Keras model: File is not a zip file",
    ),
    "layer on three axes": (
        lambda n: layer_on((2, 8, 8), graph_ops.QuantConv2D(4, 3, name="conv")),
        "Input 0 with name 'None' of layer 'conv' is incompatible with the layer: "
        "expected ndim=4, found ndim=3. Full shape received: (2, 8, 8)",
    ),
    "layer on other channels": (
        lambda n: seen_twice(graph_ops.QuantConv2D(4, 3, name="conv"), (2, 8, 8, 3), (2, 8, 8, 6)),
        "Input 0 with name 'None' of layer 'conv' is incompatible with the layer: "
        "expected axis -1 of input shape to have value 3, but received input with shape "
        "(2, 8, 8, 6)",
    ),
    "dense on other inputs": (
        lambda n: seen_twice(graph_ops.QuantDense(4, name="fc"), (2, 3), (2, 6)),
        "Input 0 with name 'None' of layer 'fc' is incompatible with the layer: "
        "expected axis -1 of input shape to have value 3, but received input with shape "
        "(2, 6)",
    ),
    "channels first": (
        lambda n: graph_ops.QuantConv2D(4, 3, data_format="channels_first"),
        "QuantConv2D takes images with their channels last, not data_format='channels_first'",
    ),
    "groups": (lambda n: graph_ops.QuantConv2D(4, 3, groups=2), "QuantConv2D has no groups, not 2"),
    "block of no kernel": (
        lambda n: graph_ops.BinaryConv2D(8, 0),
        "kernel_size must be a whole number of at least 1, not 0",
    ),
    "kernel quantizer": (
        lambda n: graph_ops.QuantDense(4, kernel_quantizer="sing"),
        "no quantizer named 'sing'; known are binary, ternary, clip, scaled_sign",
    ),
    "kernel quantizer a number": (
        lambda n: graph_ops.QuantDense(4, kernel_quantizer=2),
        "a quantizer is Sign(), Ternary(), … or a name, not 2",
    ),
    "input quantizer of the batch": (
        lambda n: graph_ops.QuantDense(4, input_quantizer=graph_ops.Ternary(sigma=0.6)),
        "the input quantizer Ternary(sigma=0.6) would depend on the other images of a "
        "batch: give it a fixed threshold or scale",
    ),
    "basis": (
        lambda n: graph_ops.RotatedConv2D(4, 3, basis="fourier"),
        "basis must be 'rotation' or 'whitening', not 'fourier'",
    ),
    "both thresholds": (
        lambda n: graph_ops.Ternary(0.1, 0.6),
        "threshold and sigma exclude each other: give one",
    ),
    "negative threshold": (
        lambda n: graph_ops.Ternary(-0.1),
        "threshold must be a number of at least 0, not -0.1",
    ),
    "negative sigma": (
        lambda n: graph_ops.Ternary(sigma=-0.1),
        "sigma must be a number of at least 0, not -0.1",
    ),
    "17 bits": (
        lambda n: graph_ops.Uniform(17),
        "bits must be a whole number from 2 to 16, not 17",
    ),
    "one level": (
        lambda n: graph_ops.LloydMax(1),
        "levels must be a whole number from 2 to 256, not 1",
    ),
    "scale zero": (
        lambda n: graph_ops.Uniform(4, scale=0),
        "scale must be a number above 0, not 0",
    ),
    "a name that is taken": (
        lambda n: graph_ops.register_quantizer("binary"),
        "there is a quantizer 'binary' already: choose another name",
    ),
    "activations of no quantizer": (
        lambda n: graph_ops.register_quantizer("mine", activations="sing"),
        "no quantizer named 'sing'; known are binary, ternary, clip, scaled_sign",
    ),
    "unknown data set": (
        lambda n: load_data("imagenet"),
        "unknown data set 'imagenet': choose one of cifar-10, MNIST, digits, or name a .npz file",
    ),
    "valid_size float": (
        lambda n: load_data("digits", valid_size=10.0),
        "valid_size must be a whole number from 0 to 1436, because digits has 1437 "
        "training images, not 10.0",
    ),
    "valid_size all": (
        lambda n: load_data("digits", valid_size=1437),
        "valid_size must be a whole number from 0 to 1436, because digits has 1437 "
        "training images, not 1437",
    ),
    "measured on other images": (
        lambda n: measure.measure_layers(n, X[:, :4]),
        "Input 0 with name 'images' of layer 'bnn' is incompatible with the layer: "
        "expected shape=(None, 8, 6, 2), found shape=(1, 4, 6, 2)",
    ),
    "measured on nothing": (
        lambda n: measure.measure_layers(n, X[:0]),
        "there is not a single image",
    ),
    "report of a missing file": (
        lambda n: report.measure_checkpoint("nowhere.keras"),
        "there is no checkpoint nowhere.keras",
    ),
    "report of no images": (
        lambda n: report.measure_checkpoint(ROOT / PUBLISHED, images=-1),
        "images must be at least 1, not -1",
    ),
    "trained on pixels that Keras casts": (
        lambda n: training.fit(
            keras.Sequential([keras.Input((8, 6, 2)), graph_ops.BinaryConv2D(3)]), X, Y
        ),
        "the images are uint8 and the model takes floats: give it keras.Input(..., dtype='uint8')",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_refused_in_one_line(name, network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, message = CALLS[name]
    with pytest.raises((ValueError, FileNotFoundError)) as refusal:
        call(network)
    assert str(refusal.value).replace(f"{ROOT}/", "") == message
    assert not list(tmp_path.iterdir())
