"""The steps of a packed network and their file, without TensorFlow."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from packed.program import (
    Levels,
    PixelsProduct,
    Pool,
    Product,
    Program,
    Reshape,
    Scores,
    Threshold,
    Value,
)

RESULTS = Path(__file__).parent.parent / "results"


@contextlib.contextmanager
def peak_memory():
    """Give a function that tells the bytes that Python and NumPy held at most in the block."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def small_program(**scores):
    """Pixels → 5 ternary filters → pool → 4 scores."""
    rng = np.random.default_rng(0)
    ternary = lambda *shape: rng.choice(np.int8([-1, 0, 1]), shape)  # noqa: E731
    upper = rng.integers(-9, 9, 5).astype(np.int32)
    norm = {
        "moving_mean": rng.normal(size=4).astype(np.float32),
        "moving_variance": rng.uniform(1, 2, 4).astype(np.float32),
        "beta": rng.normal(size=4).astype(np.float32),
    }
    steps = [
        PixelsProduct.of_weights("conv", (0,), ternary(3, 2, 3, 5), strides=(2, 1), padding="same"),
        Threshold("threshold", (1,), ternary=True, upper=upper, lower=upper - 2),
        Pool("pool", (2,)),
        Reshape("flatten", (3,)),
        Product.of_weights("fc", (4,), ternary(60, 4)),
        Scores("norm", (5,), **(norm | scores)),
    ]
    return Program((9, 8, 3), 4, steps, {"network_params": {"levels": 3}})


def test_values_have_the_shapes_of_tensorflow():
    assert [value.shape for value in small_program().values] == [
        (9, 8, 3),
        (5, 8, 5),
        (5, 8, 5),
        (3, 4, 5),
        (60,),
        (4,),
        (4,),
    ]
    step = Product.of_weights("valid", (0,), np.ones((2, 3, 7, 4), np.int8), strides=(2, 2))
    assert step.made_of(Value("binary", (7, 8, 7))) == Value("integers", (3, 3, 4))


def test_weights_are_kept():
    for values in ([-1, 0, 1], [-1, 1]):
        weights = np.random.default_rng(1).choice(np.int8(values), (3, 2, 5, 7))
        step = Product.of_weights("conv", (0,), weights)
        np.testing.assert_array_equal(step.weights, weights)
        assert step.ternary == (0 in values)


def test_a_file_holds_the_program(tmp_path):
    program = small_program()
    program.save(tmp_path / "network.packed")
    opened = Program.load(tmp_path / "network.packed")
    assert (opened.in_dim, opened.out_dim) == (program.in_dim, program.out_dim)
    assert opened.about == program.about
    assert list(map(repr, opened.steps)) == list(map(repr, program.steps))
    arrays = opened.arrays()
    assert arrays.keys() == program.arrays().keys()
    for name, array in program.arrays().items():
        np.testing.assert_array_equal(arrays[name], array)
    assert os.listdir(tmp_path) == ["network.packed"]


def test_steps_need_no_tensorflow():
    code = (
        "import sys; from packed.program import Program; import packed; packed.Program; "
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=RESULTS.parent)


def of_weights(kind, *shape, **options):
    return kind.of_weights("fc", (0,), np.ones(shape, np.int8), **options)


def levels(inputs, table=None):
    return Levels("levels", inputs, np.arange(256, dtype=np.uint8) if table is None else table)


def test_a_table_of_levels_never_falls():
    steps = small_program().steps
    moved = [dataclasses.replace(step, inputs=(i + 1,)) for i, step in enumerate(steps)]
    assert Program((9, 8, 3), 4, [levels((0,)), *moved]).values[1] == Value("pixels", (9, 8, 3))
    falling = levels((0,), np.arange(256, dtype=np.uint8)[::-1])
    with pytest.raises(ValueError, match="the table of levels falls"):
        Program((9, 8, 3), 4, [falling, *moved])


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([of_weights(PixelsProduct, 2, 2, 3, 4)], "does not end in 4 scores"),
        ([of_weights(Product, 2, 2, 3, 4)], "cannot multiply pixels"),
        ([of_weights(PixelsProduct, 3, 4)], "does not fit values"),
        ([of_weights(PixelsProduct, 2, 2, 3, 4, strides=(0, 1))], "no proper kernel"),
        ([of_weights(PixelsProduct, 2, 2, 3, 4, padding="full")], "no proper kernel"),
        ([of_weights(PixelsProduct, 9, 2, 3, 4)], "larger than its images"),
        ([Pool("pool", (0,))], "cannot pool pixels"),
        ([of_weights(PixelsProduct, 1, 1, 3, 4), levels((1,))], "rounds integers as pixels"),
        ([levels((0,)), of_weights(Product, 1, 1, 3, 4)], "multiply pixels"),
        ([Reshape("flatten", (1,))], "not an earlier value"),
        ([Reshape("flatten", (-1,))], "not an earlier value"),
        ([Threshold("threshold", (0,))], "threshold on pixels"),
        ([Scores("scores", (0,))], "cannot make scores of pixels"),
    ],
)
def test_steps_that_do_not_fit_are_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        Program((4, 4, 3), 4, steps)


def test_sums_beyond_float32_are_refused():
    step = PixelsProduct.of_weights("fc", (1,), np.ones((2**24 // 255 + 1, 1), np.int8))
    with pytest.raises(ValueError, match="too many inputs for exact float32 sums"):
        Program((1, 1, 2**24 // 255 + 1), 1, [Reshape("flatten", (0,)), step])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("moving_variance", np.float32([1, 2, -1e-6, 3]), "negative"),
        ("moving_variance", np.float32([1, 2, np.nan, 3]), "NaN"),
        ("beta", np.float32([1, 2, np.inf, 3]), "NaN or infinity"),
        ("beta", np.float64([1, 2, 3, 4]), "do not fit"),
        ("beta", np.float32([1, 2, 3]), "do not fit"),
        ("scale", 2.0, "scale"),
    ],
)
def test_scores_that_make_no_sense_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        small_program(**{name: value})


# --- Files of others --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_published_files_open(kind):
    program = Program.load(RESULTS / f"cifar-10_{kind}" / "network.packed")
    assert program.in_dim == (32, 32, 3)
    assert program.out_dim == 10
    products = [step for step in program.steps if isinstance(step, Product)]
    assert [step.name for step in products] == [
        *(f"conv_{i + 1}" for i in range(6)),
        *(f"fc_{i + 1}" for i in range(3)),
    ]
    assert sum(step.weights.size for step in products) == 14_022_016
    values = {"binary": {-1, 1}, "ternary": {-1, 0, 1}}[kind]
    assert all(set(np.unique(step.weights)) == values for step in products)


def mutations(content, count):
    """Empty, truncated and bit-flipped versions of `content`, spread over all of it."""
    yield b""
    rng = np.random.default_rng(0)
    for position in np.linspace(0, len(content) - 1, count // 3).astype(int):
        yield content[:position]
    # The directory at the end of the archive is small but everything hangs on it.
    tail = rng.integers(len(content) - 500, len(content), count // 3)
    for position in [*rng.integers(0, len(content), count // 3), *tail]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.integers(8)
        yield bytes(damaged)


def test_a_damaged_file_is_refused_or_harmless(tmp_path):
    path, program = tmp_path / "network.packed", small_program()
    program.save(path)
    refused = 0
    for damaged in mutations(path.read_bytes(), 600):
        path.write_bytes(damaged)
        try:
            opened = Program.load(path)
        except ValueError as error:
            refused += 1
            assert f"{path} is damaged or no packed network: " in str(error)
            assert "\n" not in str(error)
        else:
            for name, array in program.arrays().items():
                np.testing.assert_array_equal(opened.arrays()[name], array)
    assert refused > 300


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no packed network {tmp_path}"):
        Program.load(tmp_path / "network.packed")


def refused(path, message):
    with pytest.raises(ValueError, match=f"is damaged or no packed network: .*{message}"):
        Program.load(path)


def test_a_hostile_file_is_not_unpickled(tmp_path):
    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for name in ("header", "beta_5"):
        arrays = {"header": np.uint8([1]), name: np.array([Touch()], dtype=object)}
        np.savez(tmp_path / "bad.npz", **arrays)
        refused(tmp_path / "bad.npz", "")
    assert not (tmp_path / "ran").exists()


def rewritten(path, change_header=None, change_arrays=None):
    """Save a small program with its header or arrays changed and every check sum in order."""
    small_program().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes())
    (change_header or (lambda header: None))(header)
    (change_arrays or (lambda arrays: None))(arrays)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    return path


HOSTILE_HEADERS = {
    "huge image": lambda h: h.update(in_dim=[2**40, 2**40, 3]),
    "huge kernel": lambda h: h["steps"][4].update(kernel=[2**60, 2**60]),
    "huge units": lambda h: h["steps"][0].update(kernel=[3, 2, 3, 2**40]),
    "negative kernel": lambda h: h["steps"][4].update(kernel=[-60, -4]),
    "a float for a size": lambda h: h["steps"][4].update(kernel=[60.0, 4]),
    "a word for a size": lambda h: h["steps"][4].update(kernel="60"),
    "other classes": lambda h: h.update(out_dim=5),
    "classes that are a float": lambda h: h.update(out_dim=4.0),
    "no steps": lambda h: h.update(steps=[]),
    "steps that are none": lambda h: h.update(steps=[1]),
    "an unknown step": lambda h: h["steps"][2].update(kind="eval"),
    "another field": lambda h: h["steps"][2].update(held=["beta"]),
    "a missing field": lambda h: h["steps"][2].pop("inputs"),
    "a later value": lambda h: h["steps"][2].update(inputs=[3]),
    "two values": lambda h: h["steps"][2].update(inputs=[1, 2]),
    "another format": lambda h: h.update(format=4),
    "format 1": lambda h: h.update(format=1),
    "no about": lambda h: h.pop("about"),
}


@pytest.mark.parametrize("name", HOSTILE_HEADERS)
def test_a_hostile_header_is_refused(name, tmp_path):
    refused(rewritten(tmp_path / "bad.npz", HOSTILE_HEADERS[name]), "")


HOSTILE_ARRAYS = {
    "missing": lambda a: a.pop("upper_1"),
    "one more": lambda a: a.update(other=np.zeros(3)),
    "too long": lambda a: a.update(upper_1=np.zeros(6, np.int32)),
    "another type": lambda a: a.update(upper_1=np.zeros(5, np.float32)),
    "another byte order": lambda a: a.update(upper_1=np.zeros(5, ">i4")),
    "negative variance": lambda a: a.update(moving_variance_5=np.float32([-1, 1, 1, 1])),
    "NaN": lambda a: a.update(moving_variance_5=np.float32([np.nan, 1, 1, 1])),
}


@pytest.mark.parametrize("name", HOSTILE_ARRAYS)
def test_hostile_arrays_are_refused(name, tmp_path):
    refused(rewritten(tmp_path / "bad.npz", change_arrays=HOSTILE_ARRAYS[name]), "")


def test_a_long_header_is_not_read(tmp_path):
    long = lambda header: header["about"].update(text="a" * 2**20)  # noqa: E731
    refused(rewritten(tmp_path / "bad.npz", long), "its header is larger than 1 MB")


def npy(shape, dtype="|u1"):
    """The start of a `.npy` file that claims this shape."""
    text = str({"descr": dtype, "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def test_what_would_unpack_to_much_more_is_not_unpacked(tmp_path):
    path = tmp_path / "bad.npz"
    zeros = bytes(2**20)
    for member in ("header.npy", "upper_1.npy"):
        small_program().save(path)
        with zipfile.ZipFile(path) as archive:
            kept = {n: archive.read(n) for n in archive.namelist() if n != member}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in kept.items():
                archive.writestr(name, content)
            info = zipfile.ZipInfo(member)
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as file:
                file.write(npy((2**28,)))
                for _ in range(2**8):
                    file.write(zeros)
        assert path.stat().st_size < 2**23
        with peak_memory() as peak:
            refused(path, "compressed")
            assert peak() < 2**24


def test_members_that_claim_more_than_they_hold_are_refused(tmp_path):
    path = tmp_path / "bad.npz"
    small_program().save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, content in (
        ("header.npy", npy((2**40,)) + b"{}"),
        ("upper_1.npy", npy((2**40,), "<i4") + bytes(20)),
        ("upper_1.npy", npy((5,), "<i4") + bytes(2**20)),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for member, kept in (members | {name: content}).items():
                archive.writestr(member, kept)
        with peak_memory() as peak:
            refused(path, "holds no")
            assert peak() < 2**24


def test_members_that_share_their_bytes_are_refused(tmp_path):
    """Many directory entries for one place would unpack to many times the file."""
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.npy", bytes(2**16))
        shared = archive.infolist()[0]
        for number in range(100):
            copy = zipfile.ZipInfo(f"upper_{number}.npy")
            for field in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(copy, field, getattr(shared, field))
            archive.filelist.append(copy)
    refused(path, "exceed the file")
