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


def test_data_sets_are_known_by_their_images():
    assert [module.data_set_of(shape) for shape in module.IMAGE_SHAPES.values()] == [
        *module.DATA_SETS
    ]
    with pytest.raises(ValueError, match="no data set has images of shape"):
        module.data_set_of((5, 5, 5))


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
