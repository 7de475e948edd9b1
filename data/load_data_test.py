"""Loaders on files that the tests write, and on the published files where they are."""

import gzip
import hashlib
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from data import load_data as module
from data.load_data import load_data

CIFAR, MNIST = "cifar-10-batches-py", "mnist"


def small_cifar():
    """Contents of a CIFAR-10 with 3 images a batch, by name, and its images as NHWC."""
    rng = np.random.default_rng(0)
    contents, images = {f"{CIFAR}/batches.meta": b"names"}, []
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = rng.integers(0, 256, (3, 3072), dtype=np.uint8)
        batch = {b"data": pixels, b"labels": [1, 2, 9]}
        # The names under which the published files ask for NumPy's constructors.
        content = pickle.dumps(batch, protocol=3)
        contents[f"{CIFAR}/{name}"] = content.replace(b"numpy._core", b"numpy.core")
        images.append(pixels.reshape(3, 3, 32, 32).transpose(0, 2, 3, 1))
    return contents, np.concatenate(images)


def idx(values):
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return gzip.compress(header + values.tobytes(), mtime=0)


def small_mnist():
    rng = np.random.default_rng(1)
    contents = {}
    for part, count in (("train", 6), ("t10k", 2)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        contents[f"{MNIST}/{part}-images-idx3-ubyte.gz"] = idx(images)
        contents[f"{MNIST}/{part}-labels-idx1-ubyte.gz"] = idx(np.arange(count, dtype=np.uint8))
    return contents


def write(folder, data_set, contents, monkeypatch):
    """Put `contents` into `folder` and make them the published files."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    table = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setitem(module.MD5, data_set, table)


def test_cifar_is_nhwc_with_the_last_training_images_for_validation(tmp_path, monkeypatch):
    contents, images = small_cifar()
    write(tmp_path, "cifar-10", contents, monkeypatch)
    data = load_data("cifar-10", tmp_path, valid_size=4)
    np.testing.assert_array_equal(data.x_train, images[:11])
    np.testing.assert_array_equal(data.x_valid, images[11:15])
    np.testing.assert_array_equal(data.x_test, images[15:])
    assert data.y_valid.tolist() == [9, 1, 2, 9]
    assert data.x_train.dtype == np.uint8
    assert data.y_train.dtype.kind == "i"


def test_mnist_reads_idx(tmp_path, monkeypatch):
    contents = small_mnist()
    write(tmp_path, "MNIST", contents, monkeypatch)
    data = load_data("MNIST", tmp_path, valid_size=2)
    assert data.x_train.shape == (4, 28, 28, 1)
    assert data.y_valid.tolist() == [4, 5]
    raw = gzip.decompress(contents[f"{MNIST}/t10k-images-idx3-ubyte.gz"])
    assert data.x_test.tobytes() == raw[16:]


def test_digits_need_no_files(tmp_path):
    data = load_data("digits", tmp_path)
    assert [len(part) for part in data[::2]] == [1257, 180, 360]
    assert (data.x_train.min(), data.x_train.max()) == (0, 255)
    assert data.x_train.dtype == np.uint8
    assert set(data.y_test.tolist()) == set(range(10))


def test_md5_sums_for_the_record():
    assert module.data_md5("MNIST") == module.MD5["MNIST"]
    # Another sum here means other images or another split: results no longer compare.
    assert module.data_md5("digits") == {
        "sklearn.datasets.load_digits": "4919dfd87396875e99b26508159685c4"
    }


def test_without_validation_images(tmp_path):
    data = load_data("digits", tmp_path, valid_size=0)
    assert data.x_valid.shape == (0, 8, 8, 1)
    assert len(data.x_train) == 1437


@pytest.mark.parametrize("valid_size", [-1, 1437, 1.5, True, "10"])
def test_impossible_validation_sizes(valid_size):
    with pytest.raises(ValueError, match="valid_size must be a whole number from 0 to 1436"):
        load_data("digits", valid_size=valid_size)


def test_unknown_data_set():
    with pytest.raises(ValueError, match="unknown data set 'imagenet'"):
        load_data("imagenet")


def test_missing_files_name_three_ways_out(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_data("cifar-10", tmp_path / "nowhere")
    for way in ("by hand", "--data_dir", "--data_set digits", str(tmp_path)):
        assert way in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_as_data_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is not a folder"):
        load_data("MNIST", tmp_path / "file")


def test_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BNN_DATA_DIR", str(tmp_path))
    assert module.data_folder() == tmp_path
    assert module.data_folder(tmp_path / "other") == tmp_path / "other"
    monkeypatch.delenv("BNN_DATA_DIR")
    assert module.data_folder() == Path(module.__file__).parent


# --- A file of one's own ---


def own_arrays(x=(20, 6, 5, 3), labels=4, **changes):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", x[0]), ("test", x[0] // 2)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (n, *x[1:]), dtype=np.uint8)
        arrays[f"y_{part}"] = (np.arange(n) % labels)[:, None]
    return {name: array for name, array in (arrays | changes).items() if array is not None}


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_an_own_file_is_loaded_as_keras_keeps_it(channels, tmp_path):
    arrays, path = own_arrays((20, 6, 5, *channels)), str(tmp_path / "my.npz")
    np.savez_compressed(path, **arrays)
    data = module.load_data(path)
    shape = (6, 5, *(channels or (1,)))
    assert [len(part) for part in data] == [18, 18, 2, 2, 10, 10]
    joined = np.concatenate([data.x_train, data.x_valid])
    assert joined.shape[1:] == shape and data.y_test.dtype == np.int64
    np.testing.assert_array_equal(joined.ravel(), arrays["x_train"].ravel())
    np.testing.assert_array_equal(data.y_test, arrays["y_test"][:, 0])
    assert len(module.load_data(path, valid_size=0).x_train) == 20
    assert module.images_and_classes(path) == (shape, 4)
    assert module.data_md5(path) == {"my.npz": hashlib.md5(Path(path).read_bytes()).hexdigest()}
    assert module.missing_files(path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "must hold the arrays x_train, y_train, x_test, y_test"),
        ({"x_train": np.zeros((20, 6, 5, 3))}, "x_train must be images as uint8"),
        ({"x_train": np.zeros((20, 6), np.uint8)}, "x_train must be images as uint8"),
        ({"x_test": np.zeros((0, 6, 5, 3), np.uint8)}, "x_test must be images"),
        ({"x_test": np.zeros((10, 6, 6, 3), np.uint8)}, "x_train has images of shape"),
        ({"y_train": np.zeros(19, int)}, "y_train must be one whole number"),
        ({"y_train": np.zeros((20, 4), int)}, "y_train must be one whole number"),
        ({"y_test": np.full(10, -1)}, "y_test must be one whole number"),
        ({"y_test": np.zeros(10)}, "y_test must be one whole number"),
        ({"y_test": np.int64(3)}, "y_test must be one whole number"),
        ({"x_train": np.array([{}], object)}, "holds no plain arrays"),
    ],
)
def test_an_own_file_of_another_form_is_refused_in_a_line(changes, message, tmp_path):
    np.savez(tmp_path / "my.npz", **own_arrays(**changes))
    with pytest.raises(ValueError, match=message) as error:
        module.load_data(str(tmp_path / "my.npz"))
    assert "\n" not in str(error.value)


def test_a_damaged_own_file_is_refused_in_a_line(tmp_path):
    path = tmp_path / "my.npz"
    with pytest.raises(FileNotFoundError, match="there is no data set"):
        module.load_data(str(path))
    np.savez_compressed(path, **own_arrays())
    for content in damaged_versions(path.read_bytes(), np.random.default_rng(0)):
        path.write_bytes(content)
        try:
            module.load_data(str(path))
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(path)
    with pytest.raises(ValueError, match="damaged or no"):
        module.images_and_classes(str(path))


def damaged_versions(content, rng):
    yield b""
    yield content[: len(content) // 2]
    yield content[:-1]
    yield content + b"\0"
    for position in rng.integers(0, len(content), 6):
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.integers(8)
        yield bytes(flipped)


@pytest.mark.parametrize("data_set", ["cifar-10", "MNIST"])
def test_every_damaged_file_is_named(data_set, tmp_path, monkeypatch):
    contents = small_cifar()[0] if data_set == "cifar-10" else small_mnist()
    write(tmp_path, data_set, contents, monkeypatch)
    rng = np.random.default_rng(2)
    for name, content in contents.items():
        for damaged in damaged_versions(content, rng):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(ValueError, match="is damaged: its md5 sum is") as error:
                load_data(data_set, tmp_path, valid_size=1)
            assert name in str(error.value)
            assert "\n" not in str(error.value)
        (tmp_path / name).write_bytes(content)
    load_data(data_set, tmp_path, valid_size=1)


@pytest.mark.parametrize("data_set", ["cifar-10", "MNIST"])
def test_damage_behind_a_right_md5_sum_is_no_wrong_answer(data_set, tmp_path, monkeypatch):
    """The second line of defence: parsers that meet garbage although the sums agree."""
    contents = small_cifar()[0] if data_set == "cifar-10" else small_mnist()
    name = [*contents][1]
    for damaged in [contents[name][: len(contents[name]) // 2], b"", b"garbage", b"\x80\x02K\x01."]:
        write(tmp_path, data_set, {**contents, name: damaged}, monkeypatch)
        with pytest.raises(ValueError, match=name):
            load_data(data_set, tmp_path, valid_size=1)


class _Touch:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", range(5))
def test_a_malicious_batch_runs_nothing_even_with_the_right_md5(protocol, tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    contents, _ = small_cifar()
    contents[f"{CIFAR}/data_batch_1"] = pickle.dumps(_Touch(marker), protocol=protocol)
    write(tmp_path, "cifar-10", contents, monkeypatch)
    with pytest.raises(ValueError, match="is not allowed"):
        load_data("cifar-10", tmp_path, valid_size=1)
    assert not marker.exists()
    pickle.loads(contents[f"{CIFAR}/data_batch_1"])
    assert marker.exists(), "the pickle was harmless all along"


def published(data_set):
    """Skip unless the published files are at hand."""
    beside = Path(module.__file__).parent.parent.parent / "shared" / "data"
    folder = os.environ.get("BNN_DATA_DIR") or beside
    if module.missing_files(data_set, folder):
        pytest.skip(f"{data_set} is not here: set BNN_DATA_DIR")
    return folder


def test_published_cifar():
    data = load_data("cifar-10", published("cifar-10"))
    assert [len(part) for part in data[::2]] == [49_500, 500, 10_000]
    counts = np.bincount(data.y_train) + np.bincount(data.y_valid)
    assert counts.tolist() == [5000] * 10
    assert data.x_test.shape == (10_000, 32, 32, 3)
    # The first test image is the published cat.
    assert data.y_test[:4].tolist() == [3, 8, 8, 0]


def test_published_mnist():
    data = load_data("MNIST", published("MNIST"))
    assert [len(part) for part in data[::2]] == [50_000, 10_000, 10_000]
    assert data.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.x_train.max() == 255
