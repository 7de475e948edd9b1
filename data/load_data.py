"""CIFAR-10, MNIST, scikit-learn's digits and your own .npz files as NumPy arrays.

Every published file is read once, its md5 sum is compared with the published one, and these same
bytes are then parsed: a file that is not the published one is never opened, and nothing can change
between the check and the use.
"""

import functools
import gzip
import hashlib
import io
import math
import os
import pickle
import shlex
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from files import file_digest
from utils import is_whole, require

IMAGE_SHAPES = {"cifar-10": (32, 32, 3), "MNIST": (28, 28, 1), "digits": (8, 8, 1)}
NUM_CLASSES = 10
DATA_SETS = tuple(IMAGE_SHAPES)
VALID_SIZES = {"cifar-10": 500, "MNIST": 10_000, "digits": 180}

# The published md5 sums, of paths inside the data folder.
MD5 = {
    "cifar-10": {
        "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
        "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
        "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
        "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    "MNIST": {
        "mnist/train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "mnist/train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "mnist/t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "mnist/t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "digits": {},
}
# What a mirror holds, where that is not the files themselves.
ARCHIVES = {"cifar-10": {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}}
MIRRORS = {
    "cifar-10": ("https://www.cs.toronto.edu/~kriz/",),
    "MNIST": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
}


class Data(NamedTuple):
    """Images, uint8 of shape (n, height, width, channels), and labels, int64 of shape (n,)."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_valid: np.ndarray
    y_valid: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_data(
    data_set: str, data_dir: str | os.PathLike | None = None, valid_size: int | None = None
) -> Data:
    """Load a data set whose files are the published ones.

    Parameters
    ----------
    data_set : {"cifar-10", "MNIST", "digits"} or path of a .npz file
        "digits" are the 1,797 images of 8 x 8 pixels that scikit-learn carries, their values
        0 ... 16 rescaled to 0 ... 255; a fixed stratified fifth of them is the test set. A .npz
        file holds `x_train`, `y_train`, `x_test` and `y_test` as `keras.datasets` returns them.
    data_dir : path-like, optional
        The folder that holds `cifar-10-batches-py/` and `mnist/`; see `data_folder`.
    valid_size : int, optional
        How many of the last training images are for validation: 500 of CIFAR-10's 50,000, as
        published, 10,000 of MNIST's 60,000, 180 of the digits' 1,437 and a tenth of a .npz file's
        unless told otherwise. With 0 the validation arrays are empty.

    Returns
    -------
    Data
        Arrays (x_train, y_train, x_valid, y_valid, x_test, y_test).

    Raises
    ------
    FileNotFoundError
        If files are missing.
    ValueError
        If a file is not the published one, or an argument is out of range.
    """
    if is_own(data_set):
        x_train, y_train, x_test, y_test = _own_arrays(data_set)
    else:
        x_train, y_train, x_test, y_test = _READERS[_known(data_set)](data_dir)
    if valid_size is None:
        valid_size = VALID_SIZES.get(data_set, len(x_train) // 10)
    require(
        is_whole(valid_size) and 0 <= valid_size < len(x_train),
        f"valid_size must be a whole number from 0 to {len(x_train) - 1}, because {data_set} has "
        f"{len(x_train)} training images, not {valid_size!r}",
    )
    split = len(x_train) - valid_size
    return Data(x_train[:split], y_train[:split], x_train[split:], y_train[split:], x_test, y_test)


def is_own(data_set: str) -> bool:
    """Whether the name of a data set is the path of a .npz file."""
    return str(data_set).endswith(".npz")


def images_and_classes(data_set: str) -> tuple:
    """Shape (height, width, channels) of a data set's images, and its number of classes.

    Raises
    ------
    FileNotFoundError
        If it is a .npz file that is not there.
    ValueError
        If the data set is unknown, or the file holds something else.
    """
    if is_own(data_set):
        return _own_images_and_classes(data_set, _existing(data_set).stat().st_mtime_ns)
    return IMAGE_SHAPES[_known(data_set)], NUM_CLASSES


def data_folder(data_dir: str | os.PathLike | None = None) -> Path:
    """Folder of the data files: `data_dir`, else $BNN_DATA_DIR, else the folder of this module.

    Raises
    ------
    ValueError
        If that is not a folder. It need not exist yet.
    """
    folder = Path(data_dir or os.environ.get("BNN_DATA_DIR") or Path(__file__).resolve().parent)
    require(
        folder.is_dir() or not folder.exists(),
        f"{folder} is not a folder: give one with --data_dir or BNN_DATA_DIR",
    )
    return folder


def missing_files(data_set: str, data_dir: str | os.PathLike | None = None) -> list[str]:
    """Files of a data set, as paths inside the data folder, that are not there."""
    if is_own(data_set):
        return [] if Path(data_set).is_file() else [data_set]
    folder = data_folder(data_dir)
    return [name for name in MD5[_known(data_set)] if not (folder / name).is_file()]


def data_md5(data_set: str) -> dict[str, str]:
    """Names and md5 sums of what `load_data` reads, to record with a run.

    The digits have no file: their sum is of the arrays, split as `load_data` splits them.
    """
    if is_own(data_set):
        return {Path(data_set).name: file_digest(_existing(data_set))}
    if _known(data_set) != "digits":
        return dict(MD5[data_set])
    digest = hashlib.md5()
    for array in _digits():
        digest.update(array.tobytes())
    return {"sklearn.datasets.load_digits": digest.hexdigest()}


def ways_out(data_set: str, folder: str | os.PathLike) -> str:
    """What to do, in one line, when a data set is missing and cannot be downloaded."""
    names = [Path(name) for name in ARCHIVES.get(data_set, MD5[data_set])]
    return (
        f"download {', '.join(name.name for name in names)} by hand from {MIRRORS[data_set][0]} "
        f"to {folder / names[0].parent} and run the same again, or name the folder that has the "
        "files with --data_dir, or use --data_set digits, which needs none"
    )


def _known(data_set):
    require(
        data_set in DATA_SETS,
        f"unknown data set {data_set!r}: choose one of {', '.join(DATA_SETS)}, or name a .npz file",
    )
    return data_set


def _verified(data_set, data_dir):
    """Contents of all files of a data set, by name, each with the published md5 sum."""
    folder = data_folder(data_dir)
    command = (
        f"python data/download_data.py --data_set {data_set} --data_dir {shlex.quote(str(folder))}"
    )
    if missing := missing_files(data_set, folder):
        raise FileNotFoundError(
            f"{folder / missing[0]} is missing ({len(missing)} of the {len(MD5[data_set])} files "
            f"of {data_set} are): run {command}; without a network {ways_out(data_set, folder)}"
        )
    contents = {}
    for name, expected in MD5[data_set].items():
        contents[name] = (folder / name).read_bytes()
        actual = hashlib.md5(contents[name]).hexdigest()
        require(
            actual == expected,
            f"{folder / name} is damaged: its md5 sum is {actual}, not {expected}; run {command}, "
            "which replaces it",
        )
    return contents


def _checked(data_set, x, y):
    """The images and their labels, once they are known to fit each other and the data set."""
    require(
        x.dtype == np.uint8 and x.shape == (*y.shape, *IMAGE_SHAPES[data_set]) and y.size > 0,
        f"labels of shape {y.shape} for images of {x.dtype} and shape {x.shape}",
    )
    require(
        y.min() >= 0 and y.max() < NUM_CLASSES,
        f"labels from {y.min()} to {y.max()}, not from 0 to {NUM_CLASSES - 1}",
    )
    return x, y


# --- CIFAR-10 ---------------------------------------------------------------------------------

# What a pickled array is made of, by the names that NumPy had when the batches were written.
# All three are immutable: a pickle cannot plant an attribute in them.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module!r} {name!r} is not allowed") from None


def _cifar_batch(name, content):
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        x = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return _checked("cifar-10", np.ascontiguousarray(x), np.array(batch[b"labels"], np.int64))
    # A damaged pickle can raise nearly anything.
    except Exception as error:
        raise ValueError(f"{name} is not a CIFAR-10 batch: {error}") from error


def _cifar_10(data_dir):
    contents = _verified("cifar-10", data_dir)
    folder = "cifar-10-batches-py"
    train = [f"{folder}/data_batch_{number}" for number in range(1, 6)]
    # Each file is let go once parsed: the whole set is 180 MB.
    batches = [_cifar_batch(name, contents.pop(name)) for name in train]
    x_train, y_train = (np.concatenate(part) for part in zip(*batches, strict=True))
    return x_train, y_train, *_cifar_batch(f"{folder}/test_batch", contents[f"{folder}/test_batch"])


# --- MNIST ------------------------------------------------------------------------------------


def _idx(name, content, rank):
    """Array in a gzipped idx file: 0, 0, 8 (for uint8), the rank, big-endian sizes, the values."""
    start = 4 + 4 * rank
    try:
        raw = gzip.decompress(content)
        shape = struct.unpack_from(f">{rank}I", raw, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{name} is not a gzipped idx file: {error}") from error
    require(
        raw[:4] == bytes([0, 0, 8, rank]) and len(raw) == start + math.prod(shape),
        f"{name} is not an idx file of uint8 and rank {rank}, or not of the size that it states",
    )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()


def _mnist(data_dir):
    contents = _verified("MNIST", data_dir)
    arrays = []
    for part in ("mnist/train", "mnist/t10k"):
        images, labels = f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"
        x = _idx(images, contents[images], rank=3)[..., None]
        y = _idx(labels, contents[labels], rank=1).astype(np.int64)
        arrays += _checked("MNIST", x, y)
    return arrays


# --- Digits -----------------------------------------------------------------------------------


def _digits(data_dir=None):
    # Imported here: it takes longer than reading MNIST, which does without it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    y = digits.target.astype(np.int64)
    # The images come writer by writer, so the test set is drawn from all of them.
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=0.2, stratify=y, random_state=0
    )
    return x_train, y_train, x_test, y_test


# --- A file of one's own ----------------------------------------------------------------------

_OWN_NAMES = ("x_train", "y_train", "x_test", "y_test")


def _existing(path):
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no data set {path}")
    return Path(path)


@functools.lru_cache
def _own_images_and_classes(path, _modified):
    x_train, y_train, _, y_test = _own_arrays(path)
    return x_train.shape[1:], int(max(y_train.max(), y_test.max())) + 1


def _own_arrays(path):
    """Images and labels of a .npz file in the forms of `Data`."""
    # NumPy would open other files, too.
    require(zipfile.is_zipfile(_existing(path)), f"{path} is damaged or no .npz file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = [archive[name] for name in _OWN_NAMES]
    except KeyError:
        raise ValueError(f"{path} must hold the arrays {', '.join(_OWN_NAMES)}") from None
    # What a damaged or hostile archive can raise.
    except (ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as e:
        raise ValueError(f"{path} is damaged or holds no plain arrays: {e}") from None
    for i in (0, 2):
        arrays[i : i + 2] = _own_pair(path, _OWN_NAMES[i], *arrays[i : i + 2])
    require(
        arrays[0].shape[1:] == arrays[2].shape[1:],
        f"{path}: x_train has images of shape {arrays[0].shape[1:]}, x_test {arrays[2].shape[1:]}",
    )
    return arrays


def _own_pair(path, name, x, y):
    x = x[..., None] if x.ndim == 3 else x
    require(
        x.dtype == np.uint8 and x.ndim == 4 and x.size,
        f"{path}: {name} must be images as uint8 of shape (n, height, width) or (n, height, width, "
        f"channels), not {x.dtype} of shape {x.shape}",
    )
    whole = np.issubdtype(y.dtype, np.integer) and y.shape in ((len(x),), (len(x), 1))
    require(
        whole and y.min() >= 0,
        f"{path}: y{name[1:]} must be one whole number from 0 for each of the {len(x)} images, not "
        f"{y.dtype} of shape {y.shape}",
    )
    return x, y.reshape(-1).astype(np.int64)


_READERS = {"cifar-10": _cifar_10, "MNIST": _mnist, "digits": _digits}
